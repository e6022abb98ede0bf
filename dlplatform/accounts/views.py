"""Pages of accounts: signing in and out, members, API keys, switching the organization."""

from uuid import UUID

from django.contrib.auth import views as auth_views
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from dlplatform.web import add_errors

from . import services
from .access import visible_or_404
from .forms import ApiKeyForm, MemberForm, OrganizationForm, SignInForm
from .models import ApiKey, Organization
from .pages import no_organization, organization_of, organization_or_404, refusals_as_messages, said
from .roles import Role


class SignInView(auth_views.LoginView):
    template_name = "accounts/login.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True


class PasswordChangeView(auth_views.PasswordChangeView):
    template_name = "accounts/password_change.html"
    success_url = reverse_lazy("home")

    def form_valid(self, form):  # type: ignore[no-untyped-def]
        said(self.request, "Your password was changed.")
        return super().form_valid(form)


@require_POST
def switch_organization(request: HttpRequest) -> HttpResponse:
    organization = visible_or_404(Organization.objects, request.user, slug=request.POST.get("organization", ""))
    services.switch_organization(actor=request.user, organization=organization)
    return redirect("home")


@require_http_methods(["GET", "POST"])
def organization_new(request: HttpRequest) -> HttpResponse:
    """Anybody may make an organization, of which they become the admin; it is the one in force from then on."""
    form = OrganizationForm(request.POST or None)
    if request.method == "POST" and form.is_valid() and _made(request, form):
        return redirect("home")
    return render(request, "accounts/organization_new.html", {"form": form})


def _made(request: HttpRequest, form: OrganizationForm) -> bool:
    try:
        organization = services.create_organization(actor=request.user, name=form.cleaned_data["name"])
    except ValidationError as error:
        add_errors(form, error)
        return False
    services.switch_organization(actor=request.user, organization=organization)
    said(request, f"Organization “{organization.name}” was made; you are its admin.")
    return True


@require_http_methods(["GET", "POST"])
def members(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    form = MemberForm(request.POST or None)
    if request.method == "POST" and form.is_valid() and _added(request, organization, form):
        return redirect("members")
    rows = organization.memberships.select_related("user").order_by("user__username")
    return render(request, "accounts/members.html", {"form": form, "members": rows, "roles": Role.choices})


def _added(request: HttpRequest, organization: Organization, form: MemberForm) -> bool:
    given = form.cleaned_data
    name, role, code = given["user"], given["role"], given["may_run_code"]
    try:
        services.set_member(actor=request.user, organization=organization, username=name, role=role, may_run_code=code)
    except ValidationError as error:
        add_errors(form, error)
        return False
    said(request, f"{name} is {role} now.")
    return True


@require_POST
def member(request: HttpRequest, username: str) -> HttpResponse:
    organization = organization_or_404(request)
    form = MemberForm({**request.POST.dict(), "user": username})
    with refusals_as_messages(request):
        if not form.is_valid():
            raise ValidationError("Choose one of the roles.")
        role, code = form.cleaned_data["role"], form.cleaned_data["may_run_code"]
        services.set_member(
            actor=request.user, organization=organization, username=username, role=role, may_run_code=code
        )
        said(request, f"{username} is {role} now.")
    return redirect("members")


@require_POST
def member_remove(request: HttpRequest, username: str) -> HttpResponse:
    organization = organization_or_404(request)
    with refusals_as_messages(request):
        services.remove_member(actor=request.user, organization=organization, username=username.replace("\0", ""))
        said(request, f"{username} is no longer a member.")
    return redirect("home" if username == request.user.username else "members")


@never_cache
@require_http_methods(["GET", "POST"])
def api_keys(request: HttpRequest) -> HttpResponse:
    """The list; after a POST it also holds the new secret, which is in this one answer and nowhere else."""
    form = ApiKeyForm(request.POST or None)
    shown = {}
    if request.method == "POST" and form.is_valid():
        key, secret = services.create_api_key(actor=request.user, **form.given())
        shown = {"new_key": key, "secret": secret}
        form = ApiKeyForm()
    keys = ApiKey.objects.filter(user=request.user)
    return render(request, "accounts/api_keys.html", {"form": form, "keys": keys, **shown})


@require_POST
def api_key_revoke(request: HttpRequest, key: UUID) -> HttpResponse:
    row = get_object_or_404(ApiKey.objects.select_related("user"), pk=key)
    services.revoke_api_key(actor=request.user, key=row)
    said(request, f"The key “{row.name}” was revoked.")
    return redirect("api-keys")
