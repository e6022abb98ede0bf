"""Models from the Hugging Face Hub, which our own façade plays over real HTTP, and from a directory of the server."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO

import httpx
import pytest
from django.core.management import CommandError, call_command

from dlplatform.accounts import keys
from dlplatform.accounts.models import ApiKey
from dlplatform.outgoing import RequestRefused, fetched
from dlplatform.valkey import shared_connection
from registry import hub_imports, services, uploads
from registry.jobs import import_upload
from registry.models import ModelVersion, RegisteredModel, Upload
from tests.unit.engine.transformers_bases import tiny_bert

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def token(trainer):
    prefix, secret, digest = keys.new_secret()
    ApiKey.objects.create(user=trainer, name="hub", prefix=prefix, digest=digest, scopes=["read"])
    return secret


@pytest.fixture
def hub(live_server, settings, organization, trainer, tmp_path):
    """A repository of the façade with weights, a pickle's worth of other files beside them, served over HTTP."""
    settings.HF_IMPORT_ENDPOINT = live_server.url
    folder = tiny_bert(tmp_path / "bert")
    (folder / "README.md").write_text("# A tiny BERT")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / ".gitattributes").write_text("")
    model = services.create_model(actor=trainer, organization=organization, name="tiny")
    tree = services.store_directory(organization.pk, folder)
    version = services.commit_version(
        actor=trainer, model=model, tree=tree, task="", signature={}, metrics={}, lineage={}, message="Pushed"
    )
    return version, f"{organization.slug}/tiny"


def wanted(api, actor, repository, **more):
    return api(actor).post("/api/v1/models/import", {"repository": repository, "name": "copy", **more}, format="json")


def ended(answer):
    assert answer.status_code == 202, answer.content
    import_upload(answer.json()["id"])
    return Upload.objects.select_related("output_version").get(pk=answer.json()["id"])


def test_a_repository_becomes_a_version(hub, token, trainer, api, web):
    version, repository = hub
    upload = ended(wanted(api, trainer, repository, token=token))
    assert upload.state == "succeeded", upload.error
    made = upload.output_version
    kept = {path for path in version.tree if path not in ("modeling.py", ".gitattributes")}
    assert made.tree == {path: version.tree[path] for path in kept}
    assert made.model.name == "copy" and made.lineage["model_type"] == "bert"
    assert made.lineage["repository"] == repository and len(made.lineage["commit"]) == 40
    assert token not in str(Upload.objects.values_list().get(pk=upload.pk))
    assert not shared_connection().keys("hub-token:*")
    assert "from the Hub" in web(trainer).get(f"/uploads/{upload.pk}/").content.decode()


def test_files_come_in_parts_and_what_came_is_not_fetched_again(hub, token, trainer, api, monkeypatch):
    _, repository = hub
    monkeypatch.setattr(uploads, "USUAL_PART", 4096)
    answer = wanted(api, trainer, repository, token=token)
    upload = Upload.objects.get(pk=answer.json()["id"])
    asked = []
    fetch = hub_imports.Fetching._fetch

    def dying(self, staged, path, place):
        asked.append((path, place.number))
        if len(asked) == 4:
            raise ConnectionResetError  # what a worker that is killed leaves behind
        fetch(self, staged, path, place)

    monkeypatch.setattr(hub_imports.Fetching, "_fetch", dying)
    with pytest.raises(ConnectionResetError):
        import_upload(str(upload.pk))
    there = set(upload.parts.values_list("file", "number"))
    assert len(there) == 3
    Upload.objects.filter(pk=upload.pk).update(state="queued", lease_owner="", lease_expires_at=None)
    again = ended(answer)
    assert again.state == "succeeded", again.error
    assert len(asked) == len(set(asked)) + 1 and upload.parts.count() > 10


def test_a_connection_that_breaks_off_is_tried_again(hub, token, trainer, api, monkeypatch):
    monkeypatch.setattr(hub_imports, "PAUSES", (0.01, 0.01))
    tried = []
    write = hub_imports.Fetching._write

    def breaking(self, response, part, place):
        tried.append(place)
        if len(tried) < 3:
            raise httpx.ReadError("reset")
        write(self, response, part, place)

    monkeypatch.setattr(hub_imports.Fetching, "_write", breaking)
    upload = ended(wanted(api, trainer, hub[1], token=token))
    assert upload.state == "succeeded", upload.error
    assert tried[0] == tried[1] == tried[2]


@pytest.mark.parametrize(
    ("repository", "revision", "told"),
    [("lab/not-there", "main", "404|no such thing|wants a token"), (None, "no-branch", "no such thing|404")],
)
def test_what_is_not_there_is_a_named_failure(hub, token, trainer, api, repository, revision, told):
    upload = ended(wanted(api, trainer, repository or hub[1], revision=revision, token=token))
    assert upload.state == "failed" and upload.error["code"] == "not_fetched"
    assert upload.error["next_step"].startswith("Check the name")
    assert "<" not in upload.error["sentence"] and "{" not in upload.error["sentence"]


def test_without_a_token_the_hub_refuses(hub, trainer, api):
    upload = ended(wanted(api, trainer, hub[1]))
    assert upload.state == "failed" and "token" in upload.error["sentence"]


def test_pickles_alone_are_not_imported(hub, token, trainer, api):
    version, repository = hub
    services.commit_files(
        actor=trainer, model=version.model, message="No weights", added={}, deleted=["model.safetensors"]
    )
    upload = ended(wanted(api, trainer, repository, token=token))
    assert upload.state == "failed" and "no weights in safetensors" in upload.error["sentence"]


def test_a_file_that_was_changed_on_the_way_is_refused(hub, token, trainer, api, monkeypatch):
    described = hub_imports._file
    monkeypatch.setattr(hub_imports, "_file", lambda entry: described(entry) | {"sha256": "0" * 64})
    upload = ended(wanted(api, trainer, hub[1], token=token))
    assert upload.state == "failed" and upload.error["code"] == "damaged"


def test_too_large_for_the_platform_is_told_before_it_is_fetched(hub, token, trainer, api, settings):
    settings.MODEL_UPLOAD_MAX_BYTES = 1000
    upload = ended(wanted(api, trainer, hub[1], token=token))
    assert upload.state == "failed" and "limit" in upload.error["sentence"]
    assert not upload.parts.exists()


def test_an_import_is_cancelled(hub, token, trainer, api):
    answer = wanted(api, trainer, hub[1], token=token)
    assert api(trainer).delete(f"/api/v1/uploads/{answer.json()['id']}").status_code == 200
    import_upload(answer.json()["id"])
    assert Upload.objects.get(pk=answer.json()["id"]).state == "cancelled"
    assert not ModelVersion.objects.filter(model__name="copy").exists()


@pytest.mark.parametrize("field", ["repository", "revision"])
@pytest.mark.parametrize("value", ["../../etc", "a/b/../c", "https://evil.example/x", "a b", "-x", "a/b?x=1"])
def test_names_that_lead_elsewhere_are_refused(trainer, api, field, value):
    answer = wanted(api, trainer, **{"repository": "owner/name", field: value})
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == field
    assert not RegisteredModel.objects.exists()


def test_who_may_import(viewer, stranger, organization, api, web):
    assert wanted(api, viewer, "owner/name").status_code == 403
    assert wanted(api, stranger, "owner/name", organization=organization.slug).status_code in (400, 404)
    assert web(viewer).get("/models/import").status_code == 403


def test_the_page_begins_an_import(trainer, web):
    assert "From the Hugging Face Hub" in web(trainer).get("/models/import").content.decode()
    wrong = web(trainer).post("/models/import", {"repository": "../x"})
    assert wrong.status_code == 200 and "Name a repository" in wrong.content.decode()
    answer = web(trainer).post("/models/import", {"repository": "owner/name"})
    upload = Upload.objects.get()
    assert answer.status_code == 302 and str(upload.pk) in answer.url
    assert upload.source == {"repository": "owner/name", "revision": "main"} and upload.model.name == "name"


# --- addresses ----------------------------------------------------------------------------------------


class Redirecting(BaseHTTPRequestHandler):
    target = ""

    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", self.target)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def redirecting():
    server = HTTPServer(("127.0.0.1", 0), Redirecting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:1/x", "https://127.0.0.1:1/x", "https://localhost/x", "https://169.254.169.254/latest",
     "https://[::1]/x", "https://10.0.0.1/", "file:///etc/passwd", "https://user:word@example.com/"],
)  # fmt: skip
def test_no_redirect_leads_into_a_private_network(redirecting, target, monkeypatch):
    monkeypatch.setattr(Redirecting, "target", target)
    with pytest.raises(RequestRefused), fetched(f"{redirecting}/a", trusted=redirecting):
        pass


def test_redirects_end(redirecting, monkeypatch):
    monkeypatch.setattr(Redirecting, "target", "/again")
    with pytest.raises(RequestRefused, match="too often"), fetched(f"{redirecting}/a", trusted=redirecting):
        pass


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/x", "https://127.0.0.1:1/x", "https://[::1]/"])
def test_a_private_address_that_is_not_the_endpoint_is_not_asked(address):
    with pytest.raises(RequestRefused, match=r"https|private"), fetched(address, trusted="https://hub.example"):
        pass


# --- directories of the server ------------------------------------------------------------------------


def test_a_directory_becomes_a_version(organization, trainer, tmp_path):
    folder = tiny_bert(tmp_path / "bert")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "link.md").symlink_to(folder / "config.json")
    out = StringIO()
    call_command(
        "import_model", str(folder), organization=organization.slug, name="local", user=trainer.username, stdout=out
    )
    version = ModelVersion.objects.get()
    assert str(version.pk) in out.getvalue() and version.model.name == "local"
    assert version.lineage["source"] == "directory" and version.lineage["model_type"] == "bert"
    assert "modeling.py" not in version.tree and "link.md" in version.tree


def test_what_the_command_refuses(organization, trainer, viewer, tmp_path):
    (tmp_path / "empty").mkdir()
    folder = tiny_bert(tmp_path / "bert")
    for directory, name, user in (
        (tmp_path / "empty", organization.slug, trainer.username),
        (tmp_path / "none", organization.slug, trainer.username),
        (folder, "nobody", trainer.username),
        (folder, organization.slug, "nobody"),
        (folder, organization.slug, viewer.username),
    ):
        with pytest.raises(CommandError):
            call_command("import_model", str(directory), organization=name, name="local", user=user)
    assert not ModelVersion.objects.exists()
