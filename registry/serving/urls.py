"""Pages of deployments."""

from django.urls import path

from . import batch_views, details_views, live_views, request_views, views
from .experiments.urls import urlpatterns as experiments

urlpatterns = [
    *experiments,
    path("model-versions/<uuid:version>/batch", batch_views.batch_new, name="batch-new"),
    path("batch-predictions/<uuid:batch>/", batch_views.batch_page, name="batch"),
    path("batch-predictions/<uuid:batch>/cancel", batch_views.batch_cancel, name="batch-cancel"),
    path("deployments/", views.deployment_list, name="deployments"),
    path("deployments/new", views.deployment_new, name="deployment-new"),
    path("deployments/<uuid:deployment>/", views.deployment_page, name="deployment"),
    path("deployments/<uuid:deployment>/variants", views.deployment_variants, name="deployment-variants"),
    path("deployments/<uuid:deployment>/details", details_views.deployment_details, name="deployment-details"),
    path("model-versions/<uuid:version>/deploy", live_views.version_deploy, name="version-deploy"),
    path("deployments/<uuid:deployment>/go-live", live_views.deployment_go_live, name="deployment-go-live"),
    path("deployments/<uuid:deployment>/undo", views.deployment_undo, name="deployment-undo"),
    path("deployments/<uuid:deployment>/archive", views.deployment_archive, name="deployment-archive"),
    path("deployments/<uuid:deployment>/restore", views.deployment_restore, name="deployment-restore"),
    path(
        "deployments/<uuid:deployment>/requests/<uuid:request_id>/",
        request_views.request_page,
        name="deployment-request",
    ),
    path(
        "deployments/<uuid:deployment>/requests/<uuid:request_id>/images/<str:sha256>",
        request_views.request_image,
        name="deployment-request-image",
    ),
    path("deployments/<uuid:deployment>/try", views.deployment_try, name="deployment-try"),
    path("deployments/<uuid:deployment>/chat", views.deployment_chat, name="deployment-chat"),
]
