from django.urls import path

from . import api, batch_api, log_api, writing_api
from .experiments.api_urls import urlpatterns as experiments

urlpatterns = [
    path("batch-predictions", batch_api.BatchesView.as_view()),
    path("batch-predictions/<uuid:batch>", batch_api.BatchView.as_view()),
    path("batch-predictions/<uuid:batch>/cancel", batch_api.BatchCancelView.as_view()),
    path("deployments", api.DeploymentsView.as_view()),
    path("deployments/<uuid:deployment>", api.DeploymentView.as_view()),
    path("deployments/<uuid:deployment>/changes", api.DeploymentChangesView.as_view()),
    path("deployments/<uuid:deployment>/undo", api.DeploymentUndoView.as_view()),
    path("deployments/<uuid:deployment>/requests", log_api.RequestsView.as_view()),
    path("deployments/<uuid:deployment>/requests/<uuid:request_id>", log_api.RequestView.as_view()),
    path(
        "deployments/<uuid:deployment>/requests/<uuid:request_id>/images/<str:sha256>",
        log_api.RequestImageView.as_view(),
    ),
    path("deployments/<uuid:deployment>/shadows", log_api.ShadowsView.as_view()),
    path("deployments/<uuid:deployment>/feedback", log_api.FeedbackView.as_view()),
    path("deployments/<uuid:deployment>/predict", api.DeploymentPredictView.as_view()),
    path("deployments/<uuid:deployment>/generate", writing_api.DeploymentGenerateView.as_view()),
    *experiments,
    path("deployments/<str:name>/predict", api.NamedDeploymentPredictView.as_view()),
    path("deployments/<str:name>/generate", writing_api.NamedDeploymentGenerateView.as_view()),
]
