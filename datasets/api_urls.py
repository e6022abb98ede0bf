from django.urls import path

from . import api, deletion_api, images_api

urlpatterns = [
    path("datasets", api.DatasetsView.as_view()),
    path("datasets/<uuid:dataset>", api.DatasetView.as_view()),
    path("datasets/<uuid:dataset>/deletion", deletion_api.DatasetDeletionView.as_view()),
    path("datasets/<uuid:dataset>/archive", deletion_api.DatasetArchiveView.as_view()),
    path("datasets/<uuid:dataset>/restore", deletion_api.DatasetRestoreView.as_view()),
    path("datasets/<uuid:dataset>/versions/<int:number>/cancel", deletion_api.VersionCancelView.as_view()),
    path("datasets/<uuid:dataset>/versions/<int:number>/deletion", deletion_api.VersionDeletionView.as_view()),
    path("datasets/<uuid:dataset>/versions/<int:number>/restore", deletion_api.VersionRestoreView.as_view()),
    path("datasets/<uuid:dataset>/rows", api.AddedRowsView.as_view()),
    path("datasets/<uuid:dataset>/versions", api.VersionsView.as_view()),
    path("datasets/<uuid:dataset>/versions/<int:number>", api.VersionView.as_view()),
    path("datasets/<uuid:dataset>/versions/<int:number>/rows", api.RowsView.as_view()),
    path(
        "datasets/<uuid:dataset>/versions/<int:number>/images/<str:sha256>",
        images_api.ImageView.as_view(),
        name="dataset-image",
    ),
]
