from django.urls import path

from . import api, history_api, uploads_api

urlpatterns = [
    path("models", api.ModelsView.as_view()),
    path("models/<uuid:model>", api.ModelView.as_view()),
    path("models/<uuid:model>/versions", api.ModelVersionsView.as_view()),
    path("models/<uuid:model>/uploads", uploads_api.UploadsView.as_view()),
    path("uploads/<uuid:upload>", uploads_api.UploadView.as_view()),
    path("uploads/<uuid:upload>/files/<int:file>/parts/<int:number>", uploads_api.UploadPartView.as_view()),
    path("uploads/<uuid:upload>/complete", uploads_api.UploadCompleteView.as_view()),
    path("models/<uuid:model>/refs", api.RefsView.as_view()),
    path("models/<uuid:model>/refs/log", api.RefLogView.as_view()),
    path("models/<uuid:model>/refs/<slug:kind>/<str:name>", api.RefView.as_view()),
    path("models/<uuid:model>/refs/<slug:kind>/<str:name>/predict", api.RefPredictView.as_view()),
    path("models/<uuid:model>/refs/at", history_api.RefsAtView.as_view()),
    path("models/<uuid:model>/diff", history_api.DiffView.as_view()),
    path("models/<uuid:model>/comparisons", history_api.ComparisonsView.as_view()),
    path("comparisons/<uuid:comparison>", history_api.ComparisonView.as_view()),
    path("comparisons/<uuid:comparison>/cancel", history_api.ComparisonCancelView.as_view()),
    path("models/<uuid:model>/merge", history_api.MergesView.as_view()),
    path("merges/<uuid:merge>", history_api.MergeView.as_view()),
    path("merges/<uuid:merge>/cancel", history_api.MergeCancelView.as_view()),
    path("models/<uuid:model>/rollback", history_api.RollbackView.as_view()),
    path("models/<uuid:model>/releases", history_api.ReleasesView.as_view()),
    path("model-versions/<uuid:version>/release", history_api.VersionReleaseView.as_view()),
    path("model-versions/<uuid:version>", api.VersionView.as_view()),
    path("model-versions/<uuid:version>/files/<path:path>", api.VersionFileView.as_view()),
    path("model-versions/<uuid:version>/archive", api.VersionArchiveView.as_view()),
    path("model-versions/<uuid:version>/link", api.VersionLinkView.as_view()),
    path("downloads/<str:token>", api.DownloadView.as_view()),
    path("model-versions/<uuid:version>/predict", api.VersionPredictView.as_view()),
]
