"""The stock Hugging Face clients against a whole running platform: their processes, their caches, our addresses.

A function whose name begins with `client_` runs in a process of its own, with nothing but its source: the clients
read HF_ENDPOINT when they are imported.
"""

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import psutil
import pytest

from tests.live import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hub")]

PEOPLE = """
import json
from dlplatform.accounts import keys
from dlplatform.accounts.models import ApiKey, Membership, Organization, User
from dlplatform.accounts.roles import Scope
made = {}
for slug, name, role, scopes in [
    ("lab", "maria", "maintainer", Scope.values), ("lab", "tom", "trainer", ["read", "train"]),
    ("lab", "vera", "viewer", Scope.values), ("elsewhere", "stranger", "admin", Scope.values),
    ("lab", "reader", "maintainer", ["read"]),
]:
    organization, _ = Organization.objects.get_or_create(slug=slug, defaults={"name": slug})
    user, _ = User.objects.get_or_create(username=name)
    Membership.objects.get_or_create(user=user, organization=organization, defaults={"role": role})
    prefix, key, digest = keys.new_secret()
    ApiKey.objects.create(user=user, name="hub", prefix=prefix, digest=digest, scopes=list(scopes))
    made[name] = key
print("KEYS", json.dumps(made))
"""


@pytest.fixture(scope="module")
def keys(platform):
    """A key of each: maintainer, trainer, viewer, one that only reads, and somebody of another organization."""
    done = subprocess.run(
        [sys.executable, "manage.py", "shell", "-c", PEOPLE],
        env=platform.environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("KEYS "))
    return json.loads(line.removeprefix("KEYS "))


@pytest.fixture
def as_client(platform, keys, tmp_path):
    """``as_client(person, function, …)``: run the function as a program of that person."""

    def run(person, function, *arguments, xet=False):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "COV_"))}
        environment |= {"HF_ENDPOINT": platform.address, "HF_HOME": str(tmp_path / f"cache-{person}")}
        environment |= {"HF_TOKEN": keys[person]} if person else {}
        environment |= {} if xet else {"HF_HUB_DISABLE_XET": "1"}
        script = inspect.getsource(function) + f"\n{function.__name__}(*{arguments!r})\n"
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    return run


def client_full_circle(folder):
    import hashlib
    import os
    from pathlib import Path

    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

    api, repo = HfApi(), "lab/full-circle"
    assert api.whoami()["name"] == "maria"
    assert [one["name"] for one in api.whoami()["orgs"]] == ["lab"]

    assert api.create_repo(repo).repo_id == repo
    api.create_repo(repo, exist_ok=True)
    try:
        api.create_repo(repo)
    except HfHubHTTPError as error:
        assert error.response.status_code == 409
    assert api.repo_exists(repo)
    assert api.create_repo("default-place").repo_id == "lab/default-place"

    one = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo, commit_message="A config")
    assert len(one.oid) == 40 and api.model_info(repo).sha == one.oid

    source = Path(folder) / "source"
    (source / "nested" / "größe").mkdir(parents=True)
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Circle\n")
    (source / "nested" / "größe" / "a b.txt").write_text("text")
    (source / "empty.txt").write_bytes(b"")
    (source / "large.dat").write_bytes(os.urandom(20 * 1024 * 1024))
    two = api.upload_folder(folder_path=source, repo_id=repo, commit_message="A folder", commit_description="With all.")
    files = {".gitattributes", "config.json", "README.md", "nested/größe/a b.txt", "empty.txt", "large.dat"}
    assert set(api.list_repo_files(repo)) == files
    again = api.upload_folder(folder_path=source, repo_id=repo)
    assert again.oid == two.oid, "what is there already makes no commit"

    api.create_tag(repo, tag="1.0.0", tag_message="First")
    api.create_branch(repo, branch="try", revision=one.oid)
    three = api.upload_file(path_or_fileobj=b"[]", path_in_repo="config.json", repo_id=repo, revision="try")
    api.create_branch(repo, branch="try", exist_ok=True)
    refs = api.list_repo_refs(repo)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": two.oid, "try": three.oid}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"1.0.0": two.oid}

    four = api.delete_file("empty.txt", repo_id=repo, commit_message="Less")
    assert "empty.txt" not in api.list_repo_files(repo)
    titles = [commit.title for commit in api.list_repo_commits(repo)]
    assert titles == ["Less", "A folder", "A config", "initial commit"]
    assert api.list_repo_commits(repo)[0].commit_id == four.oid

    large = hf_hub_download(repo, "large.dat")
    digest = hashlib.sha256((source / "large.dat").read_bytes()).hexdigest()
    assert hashlib.sha256(Path(large).read_bytes()).hexdigest() == digest
    assert api.get_paths_info(repo, ["large.dat"])[0].lfs.sha256 == digest
    for revision, expected in {"v1.0.0": two, "1.0.0": two, two.oid: two, two.oid[:10]: two, "try": three}.items():
        place = Path(snapshot_download(repo, revision=revision))
        assert place.name == expected.oid
        found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
        assert found == (files if expected is two else {".gitattributes", "config.json"})
        assert (place / "config.json").read_bytes() == (b"{}" if expected is two else b"[]")

    for error, arguments in {EntryNotFoundError: {"filename": "no"}, RevisionNotFoundError: {"revision": "no"}}.items():
        try:
            hf_hub_download(repo, **({"filename": "config.json"} | arguments))
            raise AssertionError(error)
        except error:
            pass
    try:
        api.upload_file(path_or_fileobj=b"1", path_in_repo="x", repo_id=repo, parent_commit=one.oid)
        raise AssertionError("a commit on an old parent")
    except HfHubHTTPError as error:
        assert error.response.status_code == 412
    try:
        api.delete_file("never", repo_id=repo)
        raise AssertionError("what is not there was deleted")
    except EntryNotFoundError:
        pass
    assert [entry.path for entry in api.list_repo_tree(repo, "nested", expand=True)] == ["nested/größe"]
    assert repo in [model.id for model in api.list_models(search="circle")]
    api.delete_branch(repo, branch="try")
    api.delete_repo(repo)
    assert not api.repo_exists(repo)


def test_the_full_circle(as_client, tmp_path):
    as_client("maria", client_full_circle, str(tmp_path))


def client_makes_private_model():
    from huggingface_hub import HfApi

    HfApi().create_repo("lab/private", exist_ok=True)
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="lab/private")


def client_meets_nothing():
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    calls = [
        lambda: api.model_info("lab/private"),
        lambda: api.list_repo_refs("lab/private"),
        lambda: hf_hub_download("lab/private", "config.json"),
        lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="lab/private"),
        lambda: api.create_branch("lab/private", branch="x"),
        lambda: api.create_repo("lab/mine"),
        lambda: api.delete_repo("lab/private"),
    ]
    for call in calls:
        try:
            call()
        except RepositoryNotFoundError:
            continue
        raise AssertionError("let in")


def client_may_only_read():
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi()
    assert hf_hub_download("lab/private", "config.json")
    calls = [
        lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="lab/private"),
        lambda: api.create_repo("lab/another"),
        lambda: api.create_branch("lab/private", branch="x"),
        lambda: api.create_tag("lab/private", tag="x"),
        lambda: api.delete_repo("lab/private"),
    ]
    for call in calls:
        try:
            call()
        except RepositoryNotFoundError:
            raise
        except HfHubHTTPError as error:
            assert error.response.status_code == 403, error
            continue
        raise AssertionError("written")


def test_others_are_refused_in_words_that_the_client_knows(as_client):
    as_client("maria", client_makes_private_model)
    as_client("stranger", client_meets_nothing)
    as_client("", client_meets_nothing)
    as_client("vera", client_may_only_read)
    as_client("reader", client_may_only_read)


def client_sends_what_is_refused(folder):
    from pathlib import Path

    from huggingface_hub import HfApi
    from huggingface_hub.errors import BadRequestError

    api = HfApi()
    pickle = Path(folder) / "renamed.dat"
    pickle.write_bytes(b"\x80\x04\x95" + b"x" * 100)
    for content, path in [(b"x", "pytorch_model.bin"), (b"x", "a/old.CKPT"), (pickle, "renamed.dat")]:
        try:
            api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="lab/private")
            raise AssertionError(path)
        except BadRequestError as error:
            assert "safetensors" in str(error), error


def test_pickles_are_refused_with_what_to_do(as_client, tmp_path):
    as_client("maria", client_makes_private_model)
    as_client("tom", client_sends_what_is_refused, str(tmp_path))


def client_with_xet():
    import os

    from huggingface_hub import HfApi

    api = HfApi()
    api.upload_file(path_or_fileobj=os.urandom(3_000_000), path_in_repo="small.dat", repo_id="lab/private")
    try:
        api.upload_file(path_or_fileobj=os.urandom(9_000_000), path_in_repo="large.dat", repo_id="lab/private")
        raise AssertionError("sent by xet")
    except Exception as error:
        assert "xet-write-token" in str(error), error


@pytest.mark.skipif(not find_spec("hf_xet"), reason="hf_xet is not installed, so clients use LFS anyway")
def test_a_client_with_xet_sends_small_files_and_stops_at_large_ones(as_client):
    as_client("maria", client_makes_private_model)
    as_client("tom", client_with_xet, xet=True)


def client_round_trip():
    import torch
    from transformers import AutoModel, BertConfig, BertModel

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertModel(config)
    from huggingface_hub import HfApi

    model.push_to_hub("lab/tiny-bert")
    HfApi().create_tag("lab/tiny-bert", tag="v1.0.0")
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    model.push_to_hub("lab/tiny-bert")
    first, last = (AutoModel.from_pretrained("lab/tiny-bert", revision=name) for name in ("v1.0.0", "main"))
    assert any(weight.abs().sum() > 0 for weight in first.parameters())
    assert all(weight.abs().sum() == 0 for weight in last.parameters())


@pytest.mark.skipif(not find_spec("transformers"), reason="transformers is not installed")
def test_transformers_push_and_load(as_client):
    as_client("maria", client_round_trip)


def client_sends_large_file(path):
    import filecmp
    import os

    from huggingface_hub import HfApi, hf_hub_download

    if os.path.isdir(path):
        HfApi().upload_folder(folder_path=path, repo_id="lab/private")
        return
    HfApi().upload_file(path_or_fileobj=path, path_in_repo="large.safetensors", repo_id="lab/private")
    assert filecmp.cmp(path, hf_hub_download("lab/private", "large.safetensors"), shallow=False)


@pytest.mark.parametrize("kind", ["bytes", "tensors", "one commit"])
def test_web_stays_small_while_it_takes_200_mb_and_gives_them_back(as_client, platform, tmp_path, kind):
    import numpy
    from safetensors.numpy import save_file

    as_client("maria", client_makes_private_model)
    source = tmp_path / "source"
    if kind == "bytes":
        source.write_bytes(os.urandom(200_000_000))
    elif kind == "one commit":
        source.mkdir()
        for number in range(25):
            (source / f"{number}.dat").write_bytes(os.urandom(8_000_000))
    else:
        generator = numpy.random.default_rng(0)
        save_file({str(n): generator.normal(size=12_500_000).astype("float32") for n in range(4)}, source)
    web = platform.processes("web")[0]
    before = web.memory_info().rss
    with Watch(web) as watch:
        as_client("tom", client_sends_large_file, str(source))
    grown = watch.most - before
    print(f"{kind}: {grown / 1e6:.0f} MB more at most")
    assert grown < 100_000_000


class Watch:
    """The most memory that a process had while this was open."""

    def __init__(self, process):
        import threading

        self.process, self.most = process, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self):
        while not self._over.wait(0.02):
            try:
                self.most = max(self.most, self.process.memory_info().rss)
            except psutil.Error:
                return

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()
