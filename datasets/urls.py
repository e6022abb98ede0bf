"""Pages of datasets."""

from django.urls import path

from .views import changes, dataset, deletion, lists

urlpatterns = [
    path("datasets/", lists.dataset_list, name="datasets"),
    path("datasets/new", changes.dataset_new, name="dataset-new"),
    path("datasets/<uuid:dataset>/", dataset.dataset_page, name="dataset"),
    path("datasets/<uuid:dataset>/upload", changes.dataset_upload, name="dataset-upload"),
    path("datasets/<uuid:dataset>/edit", changes.dataset_edit, name="dataset-edit"),
    path("datasets/<uuid:dataset>/archive", changes.dataset_archive, name="dataset-archive"),
    path("datasets/<uuid:dataset>/restore", changes.dataset_restore, name="dataset-restore"),
    path("datasets/<uuid:dataset>/delete", deletion.dataset_delete, name="dataset-delete"),
    path(
        "datasets/<uuid:dataset>/versions/<int:number>/delete", deletion.version_delete, name="dataset-version-delete"
    ),
    path(
        "datasets/<uuid:dataset>/versions/<int:number>/restore",
        deletion.version_restore,
        name="dataset-version-restore",
    ),
    path("datasets/<uuid:dataset>/versions/<int:number>/cancel", changes.version_cancel, name="version-cancel"),
    path("datasets/<uuid:dataset>/versions/<int:number>/rows.csv", changes.version_csv, name="version-csv"),
]
