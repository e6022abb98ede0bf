"""What a start refuses, in one line that names the variable; and what it closes to other users of the machine."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from dlplatform import embedded
from dlplatform.management.commands import up

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "70000"),
        ("DATABASE_URL", "mysql://localhost/dlplatform"),
        ("DATABASE_URL", "postgresql://localhost:port/dlplatform"),
        ("REDIS_URL", "localhost"),
        ("ALLOWED_HOSTS", "*"),
        ("SECRET_KEY", ""),
        ("MODEL_STORAGE_PATH", "s3://"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_the_variable(variable, value, tmp_path):
    environment = {"PATH": os.environ["PATH"], "DLP_HOME": str(tmp_path), "SECRET_KEY": "x", variable: value}
    command = [sys.executable, str(ROOT / "manage.py"), "check"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith(f"{variable}: ") and done.stderr.count("\n") == 1, done.stderr


def test_two_services_on_one_port_are_refused(settings):
    settings.PORT = settings.SERVE_PORT = embedded.free_port()
    with pytest.raises(embedded.StartError, match=f"PORT and SERVE_PORT are both {settings.PORT}"):
        up._require_free_ports()


def test_what_people_store_is_closed_to_other_users_and_the_way_to_the_database_is_not(tmp_path):
    (tmp_path / "models").mkdir(mode=0o755)
    before = stat.S_IMODE(tmp_path.stat().st_mode)
    embedded.close_to_others(tmp_path)
    for name in ("datasets", "models", "jobs", "logs"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700, name
    assert stat.S_IMODE(tmp_path.stat().st_mode) == before


@pytest.mark.django_db
@pytest.mark.parametrize("password", ["short", "1234567890", "qwertyuiop", "the-admin-name"])
def test_a_weak_password_of_the_first_admin_is_refused(settings, password):
    from dlplatform.accounts.bootstrap import first_admin
    from dlplatform.accounts.models import User

    settings.DLP_ADMIN_USERNAME, settings.DLP_ADMIN_PASSWORD = "the-admin-name", password
    with pytest.raises(ImproperlyConfigured, match="DLP_ADMIN_PASSWORD: "):
        first_admin()
    assert not User.objects.exists()
