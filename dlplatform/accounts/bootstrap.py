"""The first admin and the first organization of a fresh installation."""

import secrets

from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import transaction

from .models import Membership, Organization, User
from .roles import Role

FIRST_ORGANIZATION = "Main"


@transaction.atomic
def first_admin() -> tuple[str, str] | None:
    """Create the first admin when there is no user at all; (username, password) when one was made here.

    The password comes from DLP_ADMIN_PASSWORD, or is made up and must be shown once.
    """
    if User.objects.exists():
        return None
    password = settings.DLP_ADMIN_PASSWORD or secrets.token_urlsafe(12)
    _check(password)
    user = User.objects.create_superuser(username=settings.DLP_ADMIN_USERNAME, password=password, email="")
    organization = Organization.objects.create(name=FIRST_ORGANIZATION, slug="main")
    Membership.objects.create(organization=organization, user=user, role=Role.ADMIN)
    shown = "the one in DLP_ADMIN_PASSWORD" if settings.DLP_ADMIN_PASSWORD else f"{password} (shown only this once)"
    return user.username, shown


def _check(password: str) -> None:
    try:
        validate_password(password, User(username=settings.DLP_ADMIN_USERNAME))
    except ValidationError as error:
        raise ImproperlyConfigured(f"DLP_ADMIN_PASSWORD: {' '.join(error.messages)}") from None
