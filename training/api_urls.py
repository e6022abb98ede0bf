from django.urls import path

from . import api, finetune_api, lineage_api

urlpatterns = [
    path("experiments", api.ExperimentsView.as_view()),
    path("experiments/<uuid:experiment>", api.ExperimentView.as_view()),
    path("runs", api.RunsView.as_view()),
    path("runs/<uuid:run>", api.RunView.as_view()),
    path("runs/<uuid:run>/metrics", api.RunMetricsView.as_view()),
    path("runs/<uuid:run>/logs", api.RunLogsView.as_view()),
    path("runs/<uuid:run>/findings", api.RunFindingsView.as_view()),
    path("runs/<uuid:run>/cancel", api.RunCancelView.as_view()),
    path("runs/<uuid:run>/resume", api.RunResumeView.as_view()),
    path("runs/<uuid:run>/clone", api.RunCloneView.as_view()),
    path("models/<uuid:model>/finetune", finetune_api.FinetuneView.as_view()),
    path("model-versions/<uuid:version>/finetune-outlook", finetune_api.OutlookView.as_view()),
    path("lineage/<str:kind>/<uuid:id>", lineage_api.LineageView.as_view()),
]
