from django.urls import path

from . import api

urlpatterns = [
    path("deployments", api.DeploymentsView.as_view()),
    path("deployments/<uuid:deployment>", api.DeploymentView.as_view()),
    path("deployments/<uuid:deployment>/changes", api.DeploymentChangesView.as_view()),
    path("deployments/<uuid:deployment>/undo", api.DeploymentUndoView.as_view()),
    path("deployments/<uuid:deployment>/predict", api.DeploymentPredictView.as_view()),
    path("deployments/<str:name>/predict", api.NamedDeploymentPredictView.as_view()),
]
