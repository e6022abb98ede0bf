"""Code of one's own on a whole platform, as a program uses it: permission, upload, run, prediction."""

import sys

import pytest

from tests.fixtures import own_code
from tests.integration.conftest import flower_rows

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces")]


@pytest.fixture
def client(platform):
    with platform.client() as made:
        yield made


@pytest.fixture
def version(platform, client):
    rows = flower_rows()
    text = "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])
    return platform.upload(client, "flowers of one's own", text.encode())["id"]


def upload(client, source):
    return client.post("/code", files={"file": ("code.zip", own_code.zipped(source))})


def test_an_architecture_and_a_script_go_all_the_way(platform, client, version):
    refused = upload(client, {"main.py": "x = 1"})
    assert refused.status_code == 403 and "permission of its own" in refused.json()["errors"][0]["detail"]
    slug = client.get("/me").json()["default_organization"]
    given = {"user": "admin", "role": "admin", "may_run_code": True}
    client.post(f"/organizations/{slug}/members", json=given).raise_for_status()
    wanted = {"task": "classification", "target": "kind"}

    code = upload(client, {"model.py": own_code.ARCHITECTURE}).raise_for_status().json()
    config = {"epochs": 4, "params": {"width": 12}}
    run = platform.train(client, version, code=code["id"], config=config, register_as="own architecture", **wanted)
    done = platform.finished(client, run["id"])
    assert done["state"] == "succeeded", done["error"]
    asked = {"instances": [{"length": 5.0, "width": 3.0, "colour": "red"}]}
    answer = client.post(f"/model-versions/{done['output_version']}/predict", json=asked)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()["predictions"][0]["probabilities"]) == {"a", "b", "c"}

    code = upload(client, {"main.py": own_code.SCRIPT}).raise_for_status().json()
    run = platform.train(client, version, code=code["id"], register_as="own script", **wanted)
    done = platform.finished(client, run["id"])
    assert done["state"] == "succeeded", done["error"]
    answer = client.post(f"/model-versions/{done['output_version']}/predict", json=asked)
    assert answer.status_code == 422
