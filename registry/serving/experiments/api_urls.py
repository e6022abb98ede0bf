from django.urls import path

from . import api, canary_api

CANARY = "deployments/<uuid:deployment>/canaries/<int:number>"
ONE = "deployments/<uuid:deployment>/experiments/<int:number>"

urlpatterns = [
    path("deployments/<uuid:deployment>/experiment", api.CurrentExperimentView.as_view()),
    path("deployments/<uuid:deployment>/experiments", api.ExperimentsView.as_view()),
    path("deployments/<uuid:deployment>/experiments/plan", api.ExperimentPlanView.as_view()),
    path(ONE, api.ExperimentView.as_view()),
    path(f"{ONE}/start", api.ExperimentStartView.as_view()),
    path(f"{ONE}/stop", api.ExperimentStopView.as_view()),
    path(f"{ONE}/promote", api.ExperimentPromoteView.as_view()),
    path(f"{ONE}/keep", api.ExperimentKeepView.as_view()),
    path(f"{ONE}/put-back", api.ExperimentPutBackView.as_view()),
    path(f"{ONE}/looks", api.LooksView.as_view()),
    path(f"{ONE}/replay", api.ReplayView.as_view()),
    path("deployments/<uuid:deployment>/canary", canary_api.CurrentCanaryView.as_view()),
    path("deployments/<uuid:deployment>/canaries", canary_api.CanariesView.as_view()),
    path(CANARY, canary_api.CanaryView.as_view()),
    path(f"{CANARY}/pause", canary_api.CanaryPauseView.as_view()),
    path(f"{CANARY}/continue", canary_api.CanaryContinueView.as_view()),
    path(f"{CANARY}/abort", canary_api.CanaryAbortView.as_view()),
]
