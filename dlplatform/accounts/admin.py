"""Django admin of accounts."""

from collections.abc import Callable
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin, TabularInline
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from dlplatform.api import Conflict
from dlplatform.web import add_errors

from . import audit, services
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


def apply_to_each(request: HttpRequest, rows: QuerySet[Any], verb: Callable[[Any], Any], done: str) -> None:
    """Call a service for every row; say how many were ``done``, and of each other why not."""
    names, count = rows.model._meta, 0
    for row in rows:
        try:
            verb(row)
            count += 1
        except Conflict as refusal:
            messages.warning(request, f"{row}: {refusal.detail}")
    name = names.verbose_name if count == 1 else names.verbose_name_plural
    tell = messages.success if count else messages.info
    tell(request, f"{count or 'No'} {name} {done}.")


class ServiceForm(forms.ModelForm):
    """Saves by a service, within validation: what the service refuses shows on the form."""

    service: ClassVar[Callable[..., Any]]
    actor: ClassVar[Any]

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if self.errors or not self.changed_data:
            return
        try:
            self.service(self.actor, self.instance, {name: self.cleaned_data[name] for name in self.changed_data})
        except ValidationError as error:
            add_errors(self, error)


class TenantAdmin(ModelAdmin):
    """For rows that belong to an organization: made and archived by the services, described here."""

    form = ServiceForm
    fields = ["name", "description", "id", "organization", "created_by", "created_at", "archived_at"]

    list_display = ["name", "organization", "created_by", "created_at", "archived_at"]
    list_filter = ["organization", "archived_at"]
    search_fields = ["name", "description", "id"]
    list_select_related = ["organization", "created_by"]
    readonly_fields = ["id", "organization", "created_by", "created_at", "archived_at"]

    def change(self, actor: Any, row: Any, changes: dict[str, Any]) -> None:
        """Have the service make the changes."""
        raise NotImplementedError

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> type:
        form = super().get_form(request, obj, change, **kwargs)
        return type(form.__name__, (form,), {"actor": request.user, "service": staticmethod(self.change)})

    def save_model(self, request: HttpRequest, obj: Model, form: Any, change: bool) -> None:
        """Nothing is left to do: the form has saved."""

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

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Members that were changed here stand in the audit log as those changed by an admin of the organization."""
        super().save_formset(request, form, formset, change)
        if formset.model is not Membership:
            return
        for verb, rows in (("add", formset.new_objects), ("change", [row for row, _ in formset.changed_objects])):
            for row in rows:
                audit.record(
                    request.user, f"member.{verb}", row, row.organization, user=row.user.username, role=row.role,
                    may_run_code=row.may_run_code,
                )  # fmt: skip


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnly):
    list_display = ["name", "user", "prefix", "state", "scopes", "created_at", "expires_at", "last_used_at"]
    list_filter = ["revoked_at", "expires_at"]
    search_fields = ["name", "prefix", "user__username"]
    list_select_related = ["user"]
    actions = ["revoke"]

    @admin.action(description="Revoke the chosen keys", permissions=["view"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        live = queryset.filter(revoked_at=None).select_related("user")
        apply_to_each(request, live, lambda key: services.revoke_api_key(actor=request.user, key=key), "revoked")


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly):
    list_display = ["created_at", "actor", "action", "object_type", "object_id", "organization"]
    list_filter = ["action", "organization"]
    search_fields = ["object_id", "actor__username", "action"]
    list_select_related = ["actor", "organization"]
    date_hierarchy = "created_at"
