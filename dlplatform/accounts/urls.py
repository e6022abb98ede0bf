"""Pages of accounts."""

from django.contrib.auth.views import LogoutView
from django.urls import path

from . import views

urlpatterns = [
    path("login", views.SignInView.as_view(), name="login"),
    path("logout", LogoutView.as_view(), name="logout"),
    path("account/password", views.PasswordChangeView.as_view(), name="password-change"),
    path("account/organization", views.switch_organization, name="switch-organization"),
    path("organizations/new", views.organization_new, name="organization-new"),
    path("members", views.members, name="members"),
    path("members/<str:username>", views.member, name="member"),
    path("members/<str:username>/remove", views.member_remove, name="member-remove"),
    path("account/keys", views.api_keys, name="api-keys"),
    path("account/keys/<uuid:key>/revoke", views.api_key_revoke, name="api-key-revoke"),
]
