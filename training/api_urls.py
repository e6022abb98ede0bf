from django.urls import path

from . import api, code_api, finetune_api, lineage_api, preflight_api, replay_api
from .sweeps import api as sweeps

urlpatterns = [
    path("experiments", api.ExperimentsView.as_view()),
    path("experiments/<uuid:experiment>", api.ExperimentView.as_view()),
    path("runs", api.RunsView.as_view()),
    path("runs/<uuid:run>", api.RunView.as_view()),
    path("runs/<uuid:run>/metrics", api.RunMetricsView.as_view()),
    path("runs/<uuid:run>/logs", api.RunLogsView.as_view()),
    path("runs/<uuid:run>/findings", api.RunFindingsView.as_view()),
    path("runs/<uuid:run>/cancel", api.RunCancelView.as_view()),
    path("runs/<uuid:run>/pause", api.RunPauseView.as_view()),
    path("runs/<uuid:run>/resume", api.RunResumeView.as_view()),
    path("runs/<uuid:run>/clone", api.RunCloneView.as_view()),
    path("code", code_api.CodesView.as_view()),
    path("code/<uuid:code>", code_api.CodeView.as_view()),
    path("sweeps", sweeps.SweepsView.as_view()),
    path("sweeps/<uuid:sweep>", sweeps.SweepView.as_view()),
    path("sweeps/<uuid:sweep>/cancel", sweeps.SweepCancelView.as_view()),
    path("sweeps/<uuid:sweep>/pause", sweeps.SweepPauseView.as_view()),
    path("sweeps/<uuid:sweep>/resume", sweeps.SweepResumeView.as_view()),
    path("sweeps/<uuid:sweep>/rerun-failed", sweeps.SweepRerunView.as_view()),
    path("sweeps/<uuid:sweep>/promote", sweeps.SweepPromoteView.as_view()),
    path("preflights", preflight_api.PreflightsView.as_view()),
    path("preflights/<uuid:preflight>", preflight_api.PreflightView.as_view()),
    path("model-versions/<uuid:version>/replay", replay_api.ReplayView.as_view()),
    path("model-versions/<uuid:version>/replays", replay_api.CertificatesView.as_view()),
    path("models/<uuid:model>/finetune", finetune_api.FinetuneView.as_view()),
    path("model-versions/<uuid:version>/finetune-outlook", finetune_api.OutlookView.as_view()),
    path("model-versions/<uuid:version>/finetune-preflight", finetune_api.FinetunePreflightView.as_view()),
    path("lineage/<str:kind>/<uuid:id>", lineage_api.LineageView.as_view()),
]
