"""Fixtures that every test may use: three people and more, their clients, builders, and a running platform."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from rest_framework.test import APIClient

from dlplatform.accounts.models import Organization, User
from dlplatform.accounts.roles import Role
from tests import factories
from tests.live import Platform


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """The block that every run of the suite ends with."""
    count = {name: len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")}
    failed = count["failed"] + count["error"]
    total = count["passed"] + failed + count["skipped"]
    plugin = config.pluginmanager.getplugin("_cov")
    coverage = getattr(plugin, "cov_total", None) if plugin else None

    def share(part: int) -> str:
        return f"{part} ({100 * part / total if total else 0:.1f}%)"

    terminalreporter.write_line("================= TEST SUMMARY =================")
    terminalreporter.write_line(f"Total Tests: {total}")
    terminalreporter.write_line(f"Passed: {share(count['passed'])}")
    terminalreporter.write_line(f"Failed: {share(failed)}")
    terminalreporter.write_line(f"Skipped: {share(count['skipped'])}")
    terminalreporter.write_line(f"Coverage: {f'{coverage:.1f}%' if coverage is not None else 'not measured'}")
    terminalreporter.write_line("==============================================")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, settings: Any) -> None:
    """Every test writes its objects, jobs and caches into its own folder."""
    settings.JOB_PATH = tmp_path / "jobs"
    settings.CACHE_PATH = tmp_path / "cache"
    storages = {name: dict(options) for name, options in settings.STORAGES.items()}
    for name in ("models", "datasets", "default"):
        storages[name] = {
            "BACKEND": "dlplatform.objects.storages.DurableFileStorage",
            "OPTIONS": {"location": str(tmp_path / name)},
        }
    settings.STORAGES = storages


@pytest.fixture
def organization(db: None) -> Organization:
    return factories.OrganizationFactory(slug="lab", name="Lab")


def _member(organization: Organization, role: Role) -> User:
    user = factories.UserFactory(username=str(role))
    factories.MembershipFactory(organization=organization, user=user, role=role)
    return user


@pytest.fixture
def viewer(organization: Organization) -> User:
    return _member(organization, Role.VIEWER)


@pytest.fixture
def trainer(organization: Organization) -> User:
    return _member(organization, Role.TRAINER)


@pytest.fixture
def maintainer(organization: Organization) -> User:
    return _member(organization, Role.MAINTAINER)


@pytest.fixture
def admin_user(organization: Organization) -> User:
    return _member(organization, Role.ADMIN)


@pytest.fixture
def stranger(db: None) -> User:
    """A trainer of another organization."""
    user = factories.UserFactory(username="stranger")
    factories.MembershipFactory(
        organization=factories.OrganizationFactory(slug="elsewhere"), user=user, role=Role.ADMIN
    )
    return user


@pytest.fixture
def api() -> Any:
    """``api(user)`` is an API client that speaks for the user; ``api(None)`` for nobody."""

    def client(user: User | None) -> APIClient:
        made = APIClient(raise_request_exception=False)
        if user is not None:
            made.force_authenticate(User.objects.get(pk=user.pk))
        return made

    return client


@pytest.fixture
def web() -> Any:
    """``web(user)`` is a browser that is signed in as the user."""

    def client(user: User | None) -> Client:
        made = Client(raise_request_exception=False)
        if user is not None:
            made.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
        return made

    return client


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    """A whole platform, started by `manage.py up` with services, workers and data of its own."""
    with Platform() as running:
        yield running


@pytest.fixture
def live_platform(platform: Platform) -> str:
    return platform.address


assert settings.configured
