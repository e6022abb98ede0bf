"""REST API of accounts: tokens, API keys, organizations, members."""

from typing import Any
from uuid import UUID

from django.contrib.auth import authenticate
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import Throttled
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import AnonRateThrottle
from rest_framework.views import APIView

from dlplatform.api import PagedView, documented

from . import services
from .access import require, visible_or_404
from .authentication import Refused, revoke, rotate, tokens_for
from .idempotency import idempotent
from .models import ApiKey, Membership, Organization, User
from .organizations import default_for
from .serializers import (
    ApiKeyIn,
    ApiKeyOut,
    CredentialsIn,
    MemberIn,
    MemberOut,
    MeOut,
    NewApiKeyOut,
    OrganizationIn,
    OrganizationOut,
    RefreshIn,
    TokensOut,
)

TOKENS = {"access": "eyJhbGciOi…", "refresh": "eyJhbGciOi…"}
KEY = {
    "id": "7b0c…", "name": "ingest job", "prefix": "3f9a1c02be77", "scopes": ["ingest"], "state": "active",
    "created_at": "2026-11-20T09:30:00Z", "expires_at": None, "last_used_at": None,
}  # fmt: skip
ORGANIZATION = {
    "id": "0f1e…", "slug": "main", "name": "Main", "created_at": "2026-11-20T09:30:00Z", "role": "admin",
}  # fmt: skip
MEMBER = {"user": "maria", "role": "trainer", "may_run_code": False, "created_at": "2026-11-20T09:30:00Z"}


class LoginThrottle(AnonRateThrottle):
    scope = "login"


class Door(APIView):
    """What the token endpoints share: open to all, slow for guessers, 401 to what they refuse."""

    policy = {"POST": "public"}
    authentication_classes: list[Any] = []
    throttle_classes = [LoginThrottle]

    def get_authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="api"'


class TokenView(Door):
    """Username and password for a pair of tokens."""

    @documented(
        "Get an access and a refresh token", request=CredentialsIn, answer=TokensOut,
        example=({"username": "maria", "password": "correct horse battery"}, TOKENS), tags=["auth"],
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        given = CredentialsIn(data=request.data)
        given.is_valid(raise_exception=True)
        user = authenticate(request._request, **given.validated_data)
        if getattr(request._request, "axes_locked_out", False):
            raise Throttled(wait=600)
        if not isinstance(user, User):
            raise Refused
        return Response(tokens_for(user))


class RefreshView(Door):
    """A refresh token, which is spent, for a new pair."""

    @documented(
        "Exchange a refresh token", request=RefreshIn, answer=TokensOut,
        example=({"refresh": "eyJhbGciOi…"}, TOKENS), tags=["auth"],
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        given = RefreshIn(data=request.data)
        given.is_valid(raise_exception=True)
        tokens = rotate(given.validated_data["refresh"])
        if tokens is None:
            raise Refused
        return Response(tokens)


class RevokeView(Door):
    @documented(
        "Revoke a refresh token", request=RefreshIn, answer=None, status=204,
        example=({"refresh": "eyJhbGciOi…"}, None), tags=["auth"],
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        given = RefreshIn(data=request.data)
        given.is_valid(raise_exception=True)
        if not revoke(given.validated_data["refresh"]):
            raise Refused
        return Response(status=204)


class MeView(APIView):
    policy = {"GET": "signed-in"}

    @documented(
        "Who am I", answer=MeOut, tags=["auth"],
        example=(None, {"id": "5d…", "username": "maria", "default_organization": "main",
                        "organizations": [ORGANIZATION]}),
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        default = default_for(request.user)
        mine = Organization.objects.visible_to(request.user)
        return Response(
            {
                "id": request.user.pk,
                "username": request.user.username,
                "default_organization": default.slug if default else None,
                "organizations": OrganizationOut(mine, many=True, context={"roles": _roles(request.user)}).data,
            }
        )


class ApiKeysView(PagedView):
    policy = {"GET": "signed-in", "POST": "key.write"}

    @documented("List your API keys", answer=ApiKeyOut(many=True), example=(None, KEY), tags=["api keys"])
    def get(self, request: Request) -> Response:
        return self.paged(request, ApiKey.objects.filter(user=request.user), ApiKeyOut)

    @documented(
        "Create an API key", request=ApiKeyIn, answer=NewApiKeyOut, status=201, tags=["api keys"],
        description="The key is in this answer and never again: only a digest of it is stored.",
        example=({"name": "ingest job", "scopes": ["ingest"]}, {**KEY, "key": "dlp_3f9a1c02be77_…"}),
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        given = ApiKeyIn(data=request.data)
        given.is_valid(raise_exception=True)
        key, secret = services.create_api_key(actor=request.user, **given.validated_data)
        return Response({**ApiKeyOut(key).data, "key": secret}, status=201)


class ApiKeyView(APIView):
    policy = {"DELETE": "key.write"}

    @documented("Revoke an API key", answer=None, status=204, tags=["api keys"])
    def delete(self, request: Request, key: UUID) -> Response:
        row = get_object_or_404(ApiKey.objects.select_related("user"), pk=key)
        services.revoke_api_key(actor=request.user, key=row)
        return Response(status=204)


class OrganizationsView(PagedView):
    policy = {"GET": "signed-in", "POST": "signed-in"}

    @documented(
        "List your organizations", answer=OrganizationOut(many=True), example=(None, ORGANIZATION),
        tags=["organizations"],
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        mine = Organization.objects.visible_to(request.user)
        return self.paged(request, mine, OrganizationOut, roles=_roles(request.user))

    @documented(
        "Create an organization", request=OrganizationIn, answer=OrganizationOut, status=201,
        example=({"name": "Vision team"}, ORGANIZATION), tags=["organizations"],
    )  # fmt: skip
    @idempotent
    def post(self, request: Request) -> Response:
        given = OrganizationIn(data=request.data)
        given.is_valid(raise_exception=True)
        organization = services.create_organization(actor=request.user, **given.validated_data)
        data = OrganizationOut(organization, context={"roles": _roles(request.user)}).data
        return Response(data, status=201)


class MembersView(PagedView):
    policy = {"GET": "read", "POST": "organization.manage"}

    @documented("List the members", answer=MemberOut(many=True), example=(None, MEMBER), tags=["organizations"])
    def get(self, request: Request, slug: str) -> Response:
        organization = visible_or_404(Organization.objects, request.user, slug=slug)
        return self.paged(request, organization.memberships.select_related("user"), MemberOut)

    @documented(
        "Add a member or change a role", request=MemberIn, answer=MemberOut, tags=["organizations"],
        example=({"user": "maria", "role": "trainer"}, MEMBER),
    )  # fmt: skip
    def post(self, request: Request, slug: str) -> Response:
        organization = visible_or_404(Organization.objects, request.user, slug=slug)
        require(request.user, "organization.manage", organization)
        given = MemberIn(data=request.data)
        given.is_valid(raise_exception=True)
        membership = services.set_member(
            actor=request.user,
            organization=organization,
            username=given.validated_data["user"],
            role=given.validated_data["role"],
            may_run_code=given.validated_data["may_run_code"],
        )
        return Response(MemberOut(membership).data)


class MemberView(APIView):
    policy = {"DELETE": "signed-in"}

    @extend_schema(operation_id="organizations_members_destroy")
    @documented("Remove a member, or leave", answer=None, status=204, tags=["organizations"])
    def delete(self, request: Request, slug: str, username: str) -> Response:
        organization = visible_or_404(Organization.objects, request.user, slug=slug)
        services.remove_member(actor=request.user, organization=organization, username=username)
        return Response(status=204)


def _roles(user: User) -> dict[UUID, str]:
    return dict(Membership.objects.filter(user=user).values_list("organization_id", "role"))
