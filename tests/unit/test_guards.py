"""What keeps the house in order: migrations, schema, imports, policies, pinned floors."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from django.core.management import call_command
from django.urls import URLPattern, URLResolver, get_resolver
from packaging.version import Version

from dlplatform.accounts.roles import ACTIONS

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "docs" / "openapi.json"
# The least version of a library without a published hole that would reach us.
ADVISORY_FLOORS = {
    "django": "5.2.8",
    "djangorestframework": "3.15.2",
    "djangorestframework-simplejwt": "5.5.1",
    "cryptography": "44.0.1",
    "pyarrow": "17.0.0",
    "torch": "2.6.0",
    "python-multipart": "0.0.18",
    "safetensors": "0.4.0",
    "uvicorn": "0.30.0",
}
METHODS = {"get", "post", "put", "patch", "delete"}


def routes(resolver=None, prefix=""):
    for entry in (resolver or get_resolver()).url_patterns:
        if isinstance(entry, URLResolver):
            yield from routes(entry, prefix + str(entry.pattern))
        elif isinstance(entry, URLPattern):
            yield prefix + str(entry.pattern), entry


def api_views():
    return [(path, entry.callback.cls) for path, entry in routes() if path.startswith("api/v1/")]


@pytest.mark.django_db
def test_every_change_of_a_model_has_its_migration(capsys):
    try:
        call_command("makemigrations", check=True, dry_run=True)
    except SystemExit:
        raise AssertionError(f"run `python manage.py makemigrations`: {capsys.readouterr().out}") from None
    assert "No changes detected" in capsys.readouterr().out


def test_every_api_view_declares_a_policy_for_every_method_it_answers():
    for path, view in api_views():
        answered = {method.upper() for method in METHODS if hasattr(view, method)}
        assert set(view.policy) == answered, path
        assert set(view.policy.values()) <= set(ACTIONS) | {"public", "signed-in"}, path


def test_the_schema_in_docs_is_the_schema_of_the_code(tmp_path):
    fresh = tmp_path / "openapi.json"
    call_command("spectacular", format="openapi-json", file=str(fresh), verbosity=0, fail_on_warn=True)
    assert json.loads(SCHEMA.read_text()) == json.loads(fresh.read_text()), (
        "run `python manage.py spectacular --format openapi-json --file docs/openapi.json`"
    )


def test_every_operation_is_described_with_its_errors_and_parameters():
    schema = json.loads(SCHEMA.read_text())
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation.get("summary"), where
            assert operation.get("description"), where
            assert any(code.startswith("4") for code in operation["responses"]), where


def test_web_never_imports_torch():
    script = (
        "import os, sys; os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'dlplatform.settings');"
        "os.environ.setdefault('SECRET_KEY', 'x'); import dlplatform.asgi; from django.urls import get_resolver;"
        "get_resolver().url_patterns; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("name", "floor"), ADVISORY_FLOORS.items())
def test_libraries_are_above_their_advisories(name, floor):
    assert Version(version(name)) >= Version(floor)


def test_the_project_package_is_empty_at_its_root():
    assert (ROOT / "dlplatform" / "__init__.py").read_text() == ""


def test_a_pooled_connection_is_checked_before_it_is_handed_out():
    """A database that restarted leaves dead connections in the pool; a page must not fail over one."""
    code = (
        "import django; django.setup(); from dlplatform.management.commands.web import share_connections; "
        "from django.db import connection; share_connections(); assert connection.pool._check"
    )
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "dlplatform.settings"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_scheduler_does_without_the_libraries_of_data_and_training():
    """It runs all the time beside everything else: what it imports is memory for good."""
    code = "import django; django.setup(); import dlplatform.cron, sys; print({'torch', 'pyarrow'} & set(sys.modules))"
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "dlplatform.settings", "SECRET_KEY": "x"}
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert told.stdout.strip() == "set()", told.stdout + told.stderr


def test_a_worker_does_not_hold_what_only_groups_of_processes_need():
    """It costs 50 MB at rest."""
    program = (
        "import sys, dlplatform.engine.run; "
        "print([name for name in sys.modules if name.startswith(('torch.distributed.fsdp', 'torch.distributed.elastic'))])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
