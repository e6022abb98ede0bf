"""The files for docker compose, as far as they can be checked without it."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_only_the_services_that_run_code_of_users_get_room_for_its_sandbox():
    whole, beside = read("docker-compose.yml"), read("docker-compose.own-code.yml")
    assert beside.keys() == {"services"} and beside["services"].keys() == {"worker", "serve"}
    for name, service in beside["services"].items():
        assert service.keys() == {"security_opt"} and "seccomp=unconfined" in service["security_opt"]
        assert "security_opt" not in whole["services"][name], "not without being asked for"
    for name, service in whole["services"].items():
        assert "security_opt" not in service and not service.get("privileged"), name
