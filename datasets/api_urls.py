from django.urls import path

from . import api

urlpatterns = [
    path("datasets", api.DatasetsView.as_view()),
    path("datasets/<uuid:dataset>", api.DatasetView.as_view()),
    path("datasets/<uuid:dataset>/rows", api.AddedRowsView.as_view()),
    path("datasets/<uuid:dataset>/versions", api.VersionsView.as_view()),
    path("datasets/<uuid:dataset>/versions/<int:number>", api.VersionView.as_view()),
    path("datasets/<uuid:dataset>/versions/<int:number>/rows", api.RowsView.as_view()),
]
