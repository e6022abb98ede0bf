"""Pages of the registry."""

from django.urls import path

from .views import comparison, deletion, history, imports, lists, merge, model, optimization, upload, version

urlpatterns = [
    path("models/", lists.model_list, name="models"),
    path("models/upload", upload.model_new, name="model-new"),
    path("models/import", imports.model_import, name="model-import"),
    path("models/<uuid:model>/upload", upload.model_upload, name="model-upload"),
    path("uploads/<uuid:upload>/", upload.upload_page, name="upload"),
    path("uploads/<uuid:upload>/abort", upload.upload_abort, name="upload-abort"),
    path("models/<uuid:model>/", model.model_page, name="model"),
    path("models/<uuid:model>/edit", model.model_edit, name="model-edit"),
    path("models/<uuid:model>/archive", model.model_archive, name="model-archive"),
    path("models/<uuid:model>/delete", deletion.model_delete, name="model-delete"),
    path("model-versions/<uuid:version>/delete", deletion.version_delete, name="version-delete"),
    path("model-versions/<uuid:version>/restore", deletion.version_restore, name="version-restore"),
    path("models/<uuid:model>/restore", model.model_restore, name="model-restore"),
    path("models/<uuid:model>/refs", model.ref_move, name="ref-move"),
    path("models/<uuid:model>/refs/<str:kind>/<str:name>/remove", model.ref_delete, name="ref-delete"),
    path("models/<uuid:model>/history", history.model_history, name="model-history"),
    path("models/<uuid:model>/diff", history.model_diff, name="model-diff"),
    path("models/<uuid:model>/compare", comparison.model_compare, name="model-compare"),
    path("model-versions/compare", comparison.versions_compare, name="versions-compare"),
    path("comparisons/<uuid:comparison>/cancel", comparison.comparison_cancel, name="comparison-cancel"),
    path("models/<uuid:model>/merge", merge.model_merge, name="model-merge"),
    path("model-versions/<uuid:version>/merge-adapter", merge.adapter_merge, name="adapter-merge"),
    path("merges/<uuid:merge>/", merge.merge_page, name="merge"),
    path("merges/<uuid:merge>/cancel", merge.merge_cancel, name="merge-cancel"),
    path("model-versions/<uuid:version>/optimize", optimization.version_optimize, name="version-optimize"),
    path("optimizations/<uuid:optimization>/", optimization.optimization_page, name="optimization"),
    path("optimizations/<uuid:optimization>/cancel", optimization.optimization_cancel, name="optimization-cancel"),
    path("models/<uuid:model>/rollback", history.ref_rollback, name="ref-rollback"),
    path("model-versions/<uuid:version>/release", history.version_release, name="version-release"),
    path("model-versions/<uuid:version>/", version.version_page, name="model-version"),
    path("model-versions/<uuid:version>/try", version.version_try, name="version-try"),
    path("model-versions/<uuid:version>/chat", version.version_chat, name="version-chat"),
]
