from django.urls import path

from . import api

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
    path(f"{ONE}/looks", api.LooksView.as_view()),
    path(f"{ONE}/replay", api.ReplayView.as_view()),
]
