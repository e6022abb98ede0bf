"""Tokens, API keys, organizations, members, idempotency: as a program meets them."""

from datetime import timedelta

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from dlplatform.accounts import keys
from dlplatform.accounts.models import ApiKey, AuditEntry, Membership, User
from tests.factories import PASSWORD, ApiKeyFactory, MembershipFactory, UserFactory

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh_throttles():
    from django.core.cache import cache

    cache.clear()


def client(bearer=None):
    made = APIClient(raise_request_exception=False)
    if bearer:
        made.credentials(HTTP_AUTHORIZATION=f"Bearer {bearer}")
    return made


def tokens(user, password=PASSWORD):
    return client().post("/api/v1/auth/token", {"username": user.username, "password": password}, format="json")


def test_a_password_gives_tokens_that_open_the_api(trainer):
    answer = tokens(trainer)
    assert answer.status_code == 200
    me = client(answer.json()["access"]).get("/api/v1/me/").json()
    assert me["username"] == "trainer"
    assert me["organizations"][0]["role"] == "trainer"


def test_a_refresh_token_works_once(trainer):
    pair = tokens(trainer).json()
    first = client().post("/api/v1/auth/refresh", {"refresh": pair["refresh"]}, format="json")
    assert first.status_code == 200 and first.json()["refresh"] != pair["refresh"]
    again = client().post("/api/v1/auth/refresh", {"refresh": pair["refresh"]}, format="json")
    assert again.status_code == 401


def test_a_revoked_refresh_token_is_refused(trainer):
    pair = tokens(trainer).json()
    assert client().post("/api/v1/auth/revoke", {"refresh": pair["refresh"]}, format="json").status_code == 204
    assert client().post("/api/v1/auth/refresh", {"refresh": pair["refresh"]}, format="json").status_code == 401
    assert client().post("/api/v1/auth/revoke", {"refresh": "nonsense"}, format="json").status_code == 401


def change_password(user):
    user.set_password("another-password-1")
    user.save()


def deactivate(user):
    user.is_active = False
    user.save()


@pytest.mark.parametrize("happening", [change_password, deactivate, User.delete])
def test_every_token_ends_with_the_password_the_activity_or_the_person(trainer, happening):
    pair = tokens(trainer).json()
    happening(trainer)
    assert client(pair["access"]).get("/api/v1/me").status_code == 401
    assert client().post("/api/v1/auth/refresh", {"refresh": pair["refresh"]}, format="json").status_code == 401


def test_every_bad_credential_has_the_same_answer(trainer):
    expired = ApiKeyFactory(user=trainer, expires_at=timezone.now() - timedelta(days=1))
    bodies = {
        client(bearer).get("/api/v1/me").content
        for bearer in ("nonsense", "a.b.c", "dlp_nothing", "dlp_", f"dlp_{expired.prefix}_x", "dlp_" + "é" * 20)
    }
    assert len(bodies) == 1
    assert b"credentials are missing, wrong, expired or revoked" in bodies.pop()


def test_wrong_passwords_are_limited_by_account_and_address(trainer, settings):
    settings.AXES_FAILURE_LIMIT = 3
    answers = [tokens(trainer, "wrong").status_code for _ in range(4)]
    assert answers[:2] == [401, 401] and answers[-1] == 429
    refused = tokens(trainer)
    assert refused.status_code == 429 and refused["Retry-After"] == "600"
    error = {
        "code": "locked_out",
        "detail": "Too many wrong passwords for this name from here; try again in 10 minutes.",
        "attr": None,
    }
    assert refused.json() == {"type": "client_error", "errors": [error]}


def test_too_many_wrong_passwords_on_the_page_are_answered_by_a_page(trainer, settings, client):
    settings.AXES_FAILURE_LIMIT = 2
    for _ in range(3):
        answer = client.post("/login", {"username": trainer.username, "password": "wrong"})
    assert answer.status_code == 429 and answer["Retry-After"] == "600"
    assert "Too many sign-in attempts" in answer.content.decode()


def make_key(user, **wanted):
    made = APIClient(raise_request_exception=False)
    made.force_authenticate(user)
    return made.post("/api/v1/api-keys", {"name": "job", "scopes": ["read"]} | wanted, format="json")


def test_a_key_is_shown_once_and_only_its_digest_is_kept(trainer):
    made = make_key(trainer)
    assert made.status_code == 201
    secret = made.json()["key"]
    row = ApiKey.objects.get()
    assert secret.startswith("dlp_") and secret not in str(row.__dict__)
    assert client(secret).get("/api/v1/datasets").status_code == 200
    listed = client(secret).get("/api/v1/api-keys").json()["results"][0]
    assert "key" not in listed and listed["state"] == "active" and listed["last_used_at"]


def test_a_key_does_only_what_its_scopes_say(trainer):
    secret = make_key(trainer).json()["key"]
    answer = client(secret).post("/api/v1/datasets", {"name": "x"}, format="json")
    assert answer.status_code == 403
    ingest = make_key(trainer, scopes=["ingest", "read"]).json()["key"]
    assert client(ingest).post("/api/v1/datasets", {"name": "x"}, format="json").status_code == 201


def test_a_key_makes_no_key_with_more_than_itself(trainer):
    secret = make_key(trainer, scopes=["admin", "read"]).json()["key"]
    body = {"name": "more", "scopes": ["deploy"]}
    assert client(secret).post("/api/v1/api-keys", body, format="json").status_code == 403
    assert client(secret).post("/api/v1/api-keys", body | {"scopes": ["read"]}, format="json").status_code == 201


def test_a_revoked_key_is_refused_at_once_and_strangers_cannot_revoke(trainer, stranger, admin_user, api):
    made = make_key(trainer).json()
    assert api(stranger).delete(f"/api/v1/api-keys/{made['id']}").status_code == 404
    assert api(admin_user).delete(f"/api/v1/api-keys/{made['id']}").status_code == 204
    assert client(made["key"]).get("/api/v1/me").status_code == 401


def test_a_key_in_the_past_and_unknown_fields_are_named(trainer):
    past = make_key(trainer, expires_at="2020-01-01T00:00:00Z").json()
    assert past["errors"][0]["attr"] == "expires_at" and past["errors"][0]["code"] == "past"
    unknown = make_key(trainer, owner="me").json()
    assert unknown["errors"][0]["attr"] == "owner" and unknown["errors"][0]["code"] == "unknown_field"


def test_members_are_managed_by_admins_and_the_last_admin_stays(api, organization, admin_user, trainer):
    UserFactory(username="newcomer")
    url = f"/api/v1/organizations/{organization.slug}/members"
    assert api(trainer).post(url, {"user": "newcomer", "role": "viewer"}, format="json").status_code == 403
    added = api(admin_user).post(url, {"user": "newcomer", "role": "viewer"}, format="json")
    assert added.status_code == 200 and added.json()["role"] == "viewer"
    assert {row["user"] for row in api(trainer).get(url).json()["results"]} == {"admin", "newcomer", "trainer"}
    last = api(admin_user).post(url, {"user": "admin", "role": "viewer"}, format="json")
    assert last.status_code == 400 and last.json()["errors"][0]["code"] == "last_admin"
    assert api(admin_user).delete(f"{url}/admin").status_code == 400
    assert api(trainer).delete(f"{url}/trainer").status_code == 204
    assert api(admin_user).delete(f"{url}/trainer").status_code == 404
    nobody = api(admin_user).post(url, {"user": "nobody", "role": "viewer"}, format="json")
    assert nobody.json()["errors"][0]["attr"] == "user"
    assert AuditEntry.objects.filter(action="member.add").count() == 1


def test_an_organization_is_made_with_its_maker_as_admin(api, trainer):
    made = api(trainer).post("/api/v1/organizations", {"name": "Vision Team"}, format="json")
    assert made.status_code == 201 and made.json()["slug"] == "vision-team" and made.json()["role"] == "admin"
    assert api(trainer).post("/api/v1/organizations", {"name": "Vision Team"}, format="json").status_code == 400
    assert api(trainer).post("/api/v1/organizations", {"name": "!!!"}, format="json").status_code == 400


def test_the_organization_is_chosen_by_slug_or_default(api, trainer, organization, stranger):
    other = MembershipFactory(user=trainer).organization
    made = api(trainer).post("/api/v1/datasets", {"name": "x", "organization": other.slug}, format="json")
    assert made.json()["organization"] == other.slug
    made = api(trainer).post("/api/v1/datasets", {"name": "y"}, format="json")
    assert made.json()["organization"] == organization.slug
    refused = api(trainer).post("/api/v1/datasets", {"name": "z", "organization": "elsewhere"}, format="json")
    assert refused.json()["errors"][0]["attr"] == "organization"
    Membership.objects.filter(user=trainer).delete()
    alone = api(trainer).post("/api/v1/datasets", {"name": "z"}, format="json")
    assert alone.json()["errors"][0]["attr"] == "organization"


def test_the_same_idempotency_key_gives_the_same_answer_once(api, trainer):
    headers = {"HTTP_IDEMPOTENCY_KEY": "abc"}
    first = api(trainer).post("/api/v1/datasets", {"name": "once"}, format="json", **headers)
    again = api(trainer).post("/api/v1/datasets", {"name": "once"}, format="json", **headers)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json() and again["Idempotent-Replay"] == "true"
    other = api(trainer).post("/api/v1/datasets", {"name": "twice"}, format="json", **headers)
    assert other.status_code == 422 and other.json()["errors"][0]["code"] == "idempotency_key_reused"


def test_a_refused_request_does_not_use_up_its_idempotency_key(api, trainer):
    headers = {"HTTP_IDEMPOTENCY_KEY": "abc"}
    assert api(trainer).post("/api/v1/datasets", {}, format="json", **headers).status_code == 400
    assert api(trainer).post("/api/v1/datasets", {"name": "x"}, format="json", **headers).status_code == 201


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"name": "a\\u0000b"}'])
def test_malformed_json_is_a_400_in_the_house_format(api, trainer, body):
    answer = api(trainer).generic("POST", "/api/v1/datasets", body, content_type="application/json")
    assert answer.status_code == 400
    assert set(answer.json()) == {"type", "errors"}


def test_wrong_content_type_and_unknown_path_are_json(api, trainer):
    assert api(trainer).generic("POST", "/api/v1/datasets", b"a=b", content_type="text/plain").status_code == 415
    missing = api(trainer).get("/api/v1/nothing")
    assert missing.status_code == 404 and missing["Content-Type"] == "application/json"
    assert api(trainer).put("/api/v1/datasets", {}, format="json").status_code in (403, 405)


def test_finding_a_key_never_raises(trainer):
    for presented in ("", "dlp_", "dlp__", "dlp_a_b", "dlp_" + "0" * 5000, "dlp_\x00_x"):
        assert keys.find(presented.replace("\x00", "")) is None
