"""A whole version as a zip, and links that need no account."""

import asyncio
import io
import zipfile
from datetime import timedelta

import pytest
from django.utils import timezone

from registry import links, services
from registry.archive import zipped
from tests import factories
from tests.integration.test_registry import commit

pytestmark = pytest.mark.django_db(transaction=True)
FILES = {"model.json": b"{}", "sub/weights.bin": b"w" * 3_000_000, "README.md": b""}


@pytest.fixture
def version(organization, trainer):
    model = factories.RegisteredModelFactory(organization=organization, name="crêpe/1")
    store = services.object_store(organization.pk)
    tree = {}
    for path, content in FILES.items():
        stored = store.put_bytes(content)
        tree[path] = {"sha256": stored.sha256, "size": stored.size}
    return commit(trainer, model, tree=tree)


def body(answer):
    async def gather():
        return b"".join([piece async for piece in answer.streaming_content])

    return asyncio.run(gather())


def test_a_version_comes_as_a_zip_in_pieces(api, viewer, stranger, version):
    address = f"/api/v1/model-versions/{version.pk}/archive"
    answer = api(viewer).get(address)
    assert answer.status_code == 200 and answer["Content-Type"] == "application/zip"
    assert "cr%C3%AApe%2F1-v1.zip" in answer["Content-Disposition"]
    with zipfile.ZipFile(io.BytesIO(body(answer))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
    assert api(viewer).get(address, headers={"If-None-Match": answer["ETag"]}).status_code == 304
    assert api(stranger).get(address).status_code == 404
    pieces = list(zipped(services.object_store(version.model.organization_id), version))
    assert len(pieces) > 1 and b"".join(pieces) == b"".join(
        zipped(services.object_store(version.model.organization_id), version)
    )


def test_a_link_needs_no_account_until_it_expires(api, viewer, version, monkeypatch):
    address = f"/api/v1/model-versions/{version.pk}/link"
    one = api(viewer).post(address, {"path": "sub/weights.bin", "seconds": 60}, format="json")
    assert one.status_code == 201, one.content
    anybody = api(None)
    answer = anybody.get(one.json()["url"].replace("http://testserver", ""))
    assert answer.status_code == 200 and body(answer) == FILES["sub/weights.bin"]
    whole = api(viewer).post(address, {}, format="json").json()["url"].replace("http://testserver", "")
    assert anybody.get(whole)["Content-Type"] == "application/zip"
    for wrong in ({"path": "nothing"}, {"seconds": 1}, {"seconds": 10**9}, {"more": 1}):
        assert api(viewer).post(address, wrong, format="json").status_code == 400
    later = timezone.now() + timedelta(seconds=61)
    monkeypatch.setattr(links.timezone, "now", lambda: later)
    late = anybody.get(one.json()["url"].replace("http://testserver", ""))
    assert late.status_code == 400 and "expired" in late.json()["errors"][0]["detail"]


def test_a_link_dies_with_its_makers_access_and_cannot_be_made_up(api, viewer, organization, version):
    address = f"/api/v1/model-versions/{version.pk}/link"
    url = api(viewer).post(address, {}, format="json").json()["url"].replace("http://testserver", "")
    assert api(None).get(url).status_code == 200
    assert api(None).get(url[:-3] + "abc").status_code == 400
    viewer.memberships.all().delete()
    assert api(None).get(url).status_code == 400
