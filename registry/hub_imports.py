"""Models imported from the Hugging Face Hub: asked for here, fetched and committed by the worker of `registry.jobs`.

An import is an upload whose parts the worker gets itself: what was there when a worker died is not fetched again.
"""

import base64
import hashlib
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import orjson
from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction

from dlplatform import jobs
from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import Organization, User
from dlplatform.outgoing import RequestRefused, fetched
from dlplatform.valkey import shared_connection

from . import services, uploads
from .models import RegisteredModel, Upload
from .trees import MOST_FILES
from .uploads import MAIN, Place

if TYPE_CHECKING:  # it imports torch, which the web process does without
    from .workbench import Workbench

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
REVISION = re.compile(r"[A-Za-z0-9](?!.*\.\.)[A-Za-z0-9._/-]{0,199}")
ENDINGS = (".json", ".safetensors", ".txt", ".md", ".jinja")
MOST_LISTING = 16 * 1024 * 1024
TOKEN_SECONDS = 24 * 3600
MEGABYTE = 1024 * 1024
PAUSES = (1.0, 5.0, 20.0)  # seconds before a part is asked for again
SERVER_TROUBLE = 500


@transaction.atomic
def begin_in(*, actor: User, organization: Organization, repository: str, name: str = "", **more: str) -> Upload:
    """`begin` for the model ``name`` of an organization, by default named as the repository; made when there is none."""
    _check_names(repository, more.get("revision", MAIN))
    called = name or repository.rpartition("/")[2][:120]
    model = services.model_named(actor=actor, organization=organization, name=called)
    return begin(actor=actor, model=model, repository=repository, **more)


@transaction.atomic
def begin(
    *, actor: User, model: RegisteredModel, repository: str, revision: str = MAIN, token: str = "", branch: str = MAIN
) -> Upload:
    """Queue the import of a repository of the Hub as a version of ``model``. Raises ValidationError, Conflict.

    ``token`` is for private repositories; it is handed to the worker and forgotten when the import ends.
    """
    require(actor, "model.write", model)
    _check_names(repository, revision)
    uploads.check_target(model, branch)
    upload: Upload = Upload.objects.create(
        model=model, branch=branch, message=f"Imported {repository} ({revision})", files=[], created_by=actor,
        part_size=uploads.USUAL_PART, source={"repository": repository, "revision": revision},
    )  # fmt: skip
    audit.record(actor, "model.import", model, model.organization, repository=repository, revision=revision)
    if token:
        _hand_over(upload, token)
    jobs.enqueue(upload)
    return upload


def _check_names(repository: str, revision: str) -> None:
    problems = {}
    if not REPOSITORY.fullmatch(repository) or ".." in repository:
        text = "Name a repository as the Hub does, such as sentence-transformers/all-MiniLM-L6-v2."
        problems["repository"] = ValidationError(text, code="invalid")
    if not REVISION.fullmatch(revision):
        problems["revision"] = ValidationError("Name a branch, a tag or a commit.", code="invalid")
    if problems:
        raise ValidationError(problems)


# --- the token ----------------------------------------------------------------------------------------


def _hand_over(upload: Upload, token: str) -> None:
    """To the worker, encrypted and for a day at most; it is in no table and no log."""
    shared_connection().set(_name(upload), _cipher().encrypt(token.encode()), ex=TOKEN_SECONDS)


def _token(upload: Upload) -> str:
    kept = shared_connection().get(_name(upload))
    try:
        return _cipher().decrypt(kept).decode() if kept else ""
    except InvalidToken:
        return ""


def forget_token(upload: Upload) -> None:
    """Once nobody needs it any more."""
    shared_connection().delete(_name(upload))


def _name(upload: Upload) -> str:
    return f"hub-token:{upload.pk}"


def _cipher() -> Fernet:
    key = hashlib.sha256(b"hub-token:" + settings.SECRET_KEY.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))


# --- the worker's side --------------------------------------------------------------------------------


class Fetching:
    """The files of an import: listed once, then fetched part by part into the upload's staging folder."""

    def __init__(self, upload: Upload, bench: "Workbench") -> None:
        self.upload = upload
        self.bench = bench
        self.source: dict[str, Any] = upload.source or {}
        self.token = _token(upload)
        self._done = 0

    def work(self) -> None:
        """Raises RequestRefused, ValidationError, Stopped."""
        if not self.upload.files:
            self._list()
        staged, there = uploads.staged(self.upload), set(self.upload.parts.values_list("file", "number"))
        for file, row in enumerate(self.upload.files):
            for number in range(uploads.count_of_parts(self.upload, file)):
                place = uploads.place_of(self.upload, file, number)
                assert place is not None
                if (file, number) not in there:
                    self._fetch_patiently(staged, row["path"], place)
                self._done += place.size
                self._tell()

    def _list(self) -> None:
        """Which files there are at the revision, which from now on is one commit."""
        told = self._json(
            f"/api/models/{self._repository}/revision/{quote(self.source['revision'], safe='')}?blobs=true"
        )
        commit, siblings = told.get("sha"), told.get("siblings")
        if not isinstance(commit, str) or not REVISION.fullmatch(commit) or not isinstance(siblings, list):
            raise RequestRefused("The Hub's answer is not one about a model.")
        files = [_file(entry) for entry in siblings[:MOST_FILES] if _is_wanted(entry)]
        if not any(file["path"].endswith(".safetensors") for file in files):
            raise RequestRefused("The repository has no weights in safetensors; pickles are not imported.")
        uploads.check_files(files)
        uploads.check_room(sum(file["size"] for file in files))
        self.source["commit"] = commit
        self.upload.write(files=files, source=self.source)

    def _json(self, path: str) -> dict[str, Any]:
        content = bytearray()
        with self._asked(path, {}) as response:
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > MOST_LISTING:
                    raise RequestRefused("The Hub's answer is too long.")
        try:
            found = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise RequestRefused("The Hub's answer is no JSON.") from error
        return found if isinstance(found, dict) else {}

    def _fetch_patiently(self, staged: Any, path: str, place: Place) -> None:
        """A connection that breaks off is tried again; what the server refuses is not."""
        for pause in PAUSES:
            try:
                self._fetch(staged, path, place)
                return
            except RequestRefused as refused:
                if refused.status is not None and refused.status < SERVER_TROUBLE:
                    raise
            self._wait(pause)
        self._fetch(staged, path, place)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._tell()
            time.sleep(min(0.2, seconds))

    def _fetch(self, staged: Any, path: str, place: Place) -> None:
        part = staged.part(place.file, place.offset)
        last = place.offset + place.size - 1
        try:
            address = f"/{self._repository}/resolve/{self.source['commit']}/{quote(path)}"
            with self._asked(address, {"Range": f"bytes={place.offset}-{last}"}) as response:
                self._write(response, part, place)
            if part.size != place.size:
                raise RequestRefused(f"{path[:100]!r} came shorter than the Hub said.")
            uploads.note_fetched(upload=self.upload, place=place, identity=part.finish())
        except BaseException:
            part.discard()
            raise

    def _write(self, response: httpx.Response, part: Any, place: Place) -> None:
        """The part's bytes; a server that knows no ranges sends all of the file."""
        skip = 0 if response.status_code == 206 else place.offset
        for chunk in response.iter_raw(MEGABYTE):
            taken = chunk[skip : skip + place.size - part.size] if skip < len(chunk) else b""
            skip = max(0, skip - len(chunk))
            part.write(taken)
            self._tell(part.size)
            if part.size == place.size:
                return

    def _asked(self, path: str, headers: Mapping[str, str]) -> Any:
        endpoint = settings.HF_IMPORT_ENDPOINT.rstrip("/")
        return fetched(endpoint + path, trusted=endpoint, headers=headers, token=self.token)

    def _tell(self, more: int = 0) -> None:
        done, size = self._done + more, max(self.upload.size, 1)
        phase = f"downloading, {done // MEGABYTE:,} of {size // MEGABYTE:,} MB"
        self.bench.beat(0.2 * min(done / size, 1.0), phase)

    @property
    def _repository(self) -> str:
        return str(self.source["repository"])


def _is_wanted(entry: Any) -> bool:
    """Weights and what describes them; no code, no pickles, no weights of other programs."""
    name = entry.get("rfilename") if isinstance(entry, dict) else None
    return isinstance(name, str) and name.lower().endswith(ENDINGS) and not name.startswith(".")


def _file(entry: dict[str, Any]) -> dict[str, Any]:
    size, large = entry.get("size"), entry.get("lfs")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise RequestRefused(f"The Hub does not say how large {entry['rfilename'][:100]!r} is.")
    sha256 = large.get("sha256") if isinstance(large, dict) else None
    known = isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)
    return {"path": entry["rfilename"], "size": size, "sha256": sha256 if known else None}
