from django.urls import path

from . import api

urlpatterns = [
    path("models", api.ModelsView.as_view()),
    path("models/<uuid:model>", api.ModelView.as_view()),
    path("models/<uuid:model>/versions", api.ModelVersionsView.as_view()),
    path("models/<uuid:model>/refs", api.RefsView.as_view()),
    path("models/<uuid:model>/refs/log", api.RefLogView.as_view()),
    path("models/<uuid:model>/refs/<slug:kind>/<str:name>", api.RefView.as_view()),
    path("models/<uuid:model>/refs/<slug:kind>/<str:name>/predict", api.RefPredictView.as_view()),
    path("model-versions/<uuid:version>", api.VersionView.as_view()),
    path("model-versions/<uuid:version>/files/<path:path>", api.VersionFileView.as_view()),
    path("model-versions/<uuid:version>/predict", api.VersionPredictView.as_view()),
]
