"""Django admin of accounts."""

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin, TabularInline
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from .models import ApiKey, AuditEntry, Membership, Organization, User

admin.site.unregister(Group)


class ReadOnly(ModelAdmin):
    """For rows that are history: they can be looked at and never changed here."""

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


class TenantAdmin(ModelAdmin):
    """For rows that belong to an organization: made and archived by the services, described here."""

    list_display = ["name", "organization", "created_by", "created_at", "archived_at"]
    list_filter = ["organization", "archived_at"]
    search_fields = ["name", "description", "id"]
    list_select_related = ["organization", "created_by"]
    readonly_fields = ["id", "organization", "created_by", "created_at", "archived_at"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


class MembershipInline(TabularInline):
    model = Membership
    extra = 0
    autocomplete_fields = ["user"]


@admin.register(User)
class PlatformUserAdmin(UserAdmin, ModelAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ["username", "email", "is_active", "is_superuser", "last_login", "date_joined"]


@admin.register(Group)
class GroupAdmin(ModelAdmin):
    search_fields = ["name"]


@admin.register(Organization)
class OrganizationAdmin(ModelAdmin):
    list_display = ["name", "slug", "created_at"]
    search_fields = ["name", "slug"]
    inlines = [MembershipInline]


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnly):
    list_display = ["name", "user", "prefix", "state", "scopes", "created_at", "expires_at", "last_used_at"]
    list_filter = ["revoked_at", "expires_at"]
    search_fields = ["name", "prefix", "user__username"]
    list_select_related = ["user"]
    actions = ["revoke"]

    @admin.action(description="Revoke the chosen keys", permissions=["view"])
    def revoke(self, request: HttpRequest, queryset: object) -> None:
        queryset.filter(revoked_at=None).update(revoked_at=timezone.now())  # type: ignore[attr-defined]


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly):
    list_display = ["created_at", "actor", "action", "object_type", "object_id", "organization"]
    list_filter = ["action", "organization"]
    search_fields = ["object_id", "actor__username", "action"]
    list_select_related = ["actor", "organization"]
    date_hierarchy = "created_at"
