from django.urls import path

from . import api

urlpatterns = [
    path("auth/token", api.TokenView.as_view()),
    path("auth/refresh", api.RefreshView.as_view()),
    path("auth/revoke", api.RevokeView.as_view()),
    path("me", api.MeView.as_view()),
    path("api-keys", api.ApiKeysView.as_view()),
    path("api-keys/<uuid:key>", api.ApiKeyView.as_view()),
    path("organizations", api.OrganizationsView.as_view()),
    path("organizations/<slug:slug>/members", api.MembersView.as_view()),
    path("organizations/<slug:slug>/members/<str:username>", api.MemberView.as_view()),
]
