"""Pages of experiments on deployments."""

from django.urls import path

from . import canary_views, views

ALL = "deployments/<uuid:deployment>/experiments"
CANARIES = "deployments/<uuid:deployment>/canaries"
CANARY = f"{CANARIES}/<int:number>"
ONE = f"{ALL}/<int:number>"

urlpatterns = [
    path(f"{ALL}/new", views.experiment_new, name="deployment-experiment-new"),
    path(f"{ALL}/plan", views.experiment_plan, name="deployment-experiment-plan"),
    path(f"{ALL}/same", views.experiment_same, name="deployment-experiment-same"),
    path(f"{ONE}/", views.experiment_page, name="deployment-experiment"),
    path(f"{ONE}/start", views.experiment_start, name="deployment-experiment-start"),
    path(f"{ONE}/stop", views.experiment_stop, name="deployment-experiment-stop"),
    path(f"{ONE}/promote", views.experiment_promote, name="deployment-experiment-promote"),
    path(f"{ONE}/keep", views.experiment_keep, name="deployment-experiment-keep"),
    path(f"{ONE}/put-back", views.experiment_put_back, name="deployment-experiment-put-back"),
    path(f"{ONE}/look", views.experiment_look, name="deployment-experiment-look"),
    path(f"{CANARIES}/new", canary_views.canary_new, name="canary-new"),
    path(f"{CANARY}/", canary_views.canary_page, name="canary"),
    path(f"{CANARY}/pause", canary_views.canary_pause, name="canary-pause"),
    path(f"{CANARY}/continue", canary_views.canary_continue, name="canary-continue"),
    path(f"{CANARY}/abort", canary_views.canary_abort, name="canary-abort"),
]
