"""The work of an upload: whole files out of parts, checked, recognised, stored and committed as a version."""

import errno
import hashlib
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from rest_framework.exceptions import APIException

from dlplatform.engine.errors import PackageError
from dlplatform.jobs import LeaseLost
from dlplatform.outgoing import RequestRefused

from . import hub_imports, pickles, services, unpacking, uploads
from .comparisons import failure
from .contents import WEIGHTS, Contents, recognise
from .models import Upload
from .workbench import Stopped, Workbench

CHUNK = 4 * 1024 * 1024
SEND_AGAIN = "Send the files again."
MESSAGES = {
    "package": "Uploaded package", "transformers": "Uploaded transformers model", "adapter": "Uploaded adapter",
    "weights": "Uploaded weights",
}  # fmt: skip


class Damaged(Exception):
    """The bytes that are here are not those that were announced."""


class Importing:
    """One claimed upload. What was sent is kept until the version is there, so that a worker that dies is followed."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.staged = uploads.staged(upload)
        self.bench = Workbench(upload, (), None)
        self._done = 0

    def work(self) -> None:
        try:
            self._import(self.staged.folder / "work")
        except Stopped:
            self._give_back()
            return
        except Damaged as damaged:
            self._fail("damaged", str(damaged), SEND_AGAIN)
        except RequestRefused as refused:
            self._fail("not_fetched", str(refused), "Check the name, the revision and the token, then import it again.")
        except PackageError as refused:
            self._fail("not_a_model", str(refused), "Mend the files and send them again.")
        except ValidationError as refused:
            self._fail("refused", " ".join(refused.messages), SEND_AGAIN)
        except APIException as refused:
            self._fail(str(refused.get_codes()), str(refused.detail), SEND_AGAIN)
        except PermissionDenied as refused:
            self._fail("permission_denied", str(refused), "Ask an admin for the role, then send the files again.")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._fail("disk_full", "The platform's disk is full.", "Tell an admin; then send the files again.")
        except LeaseLost:
            return
        self._clean_up()

    def _clean_up(self) -> None:
        self.staged.remove()
        if self.upload.source is not None:
            hub_imports.forget_token(self.upload)

    def _fail(self, code: str, sentence: str, next_step: str) -> None:
        self.upload.finish("failed", error=failure(code, sentence, next_step), phase="")

    def _give_back(self) -> None:
        self.bench.give_back()
        if self.bench.cancelled:
            self._clean_up()

    def _import(self, folder: Path) -> None:
        if self.upload.source is not None:
            hub_imports.Fetching(self.upload, self.bench).work()
        shutil.rmtree(folder, ignore_errors=True)  # of a worker that died
        folder.mkdir(parents=True)
        self._assemble(folder)
        self.bench.beat(0.2, "recognising")
        contents = recognise(folder)
        renamed = _name_single_weights(folder, contents)
        tree = self._store(folder)
        self._check_hashes(tree, renamed)
        self._commit(contents, tree, renamed)

    # --- files --------------------------------------------------------------------------------------

    def _assemble(self, folder: Path) -> None:
        """Every file under its path; a single zip unpacked."""
        offsets: dict[int, list[int]] = {}
        for file, number in self.upload.parts.values_list("file", "number"):
            offsets.setdefault(file, []).append(number * self.upload.part_size)
        whole = [self._whole(index, offsets.get(index, [])) for index in range(len(self.upload.files))]
        if len(whole) == 1 and self._is_archive(whole[0]):
            beat = partial(self.bench.beat, 0.1, "unpacking")
            self._check_parts(0, whole[0])
            unpacking.unpack(whole[0], folder, limit=settings.MODEL_UPLOAD_MAX_BYTES, beat=beat)
            self._check_beginnings(folder)
            return
        for file, path in zip(self.upload.files, whole, strict=True):
            target = folder / file["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
        self._check_beginnings(folder)
        for index, path in enumerate(whole):
            if not self.upload.files[index]["sha256"]:
                self._check_parts(index, path)

    def _whole(self, index: int, offsets: list[int]) -> Path:
        path = self.staged.fetch(index, offsets)
        self.bench.beat(0.05, "fetching")
        if path.stat().st_size != self.upload.files[index]["size"]:
            raise Damaged(f"{self._name(index)} is not whole any more.")
        return path

    def _name(self, index: int) -> str:
        return repr(self.upload.files[index]["path"][:100])

    def _is_archive(self, path: Path) -> bool:
        return self.upload.files[0]["path"].lower().endswith(".zip") and unpacking.is_zip(path)

    def _check_beginnings(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    pickles.check_content(file.read(pickles.SAMPLE), repr(path.name[:100]))

    def _check_parts(self, index: int, path: Path) -> None:
        """Against the hashes taken when the parts came: for a file whose own hash nobody announced, or that is a zip."""
        whole = hashlib.sha256()
        with path.open("rb") as source:
            for part in self.upload.parts.filter(file=index).order_by("number"):
                digest, left = hashlib.sha256(), part.size
                while left and (chunk := source.read(min(CHUNK, left))):
                    digest.update(chunk)
                    whole.update(chunk)
                    left -= len(chunk)
                    self.bench.beat(0.1, "checking")
                if digest.hexdigest() != part.sha256:
                    raise Damaged(f"Part {part.number} of {self._name(index)} is not what was sent.")
        announced = self.upload.files[index]["sha256"]
        if announced and whole.hexdigest() != announced:
            raise Damaged(f"{self._name(index)} has another SHA-256 than was announced.")

    def _store(self, folder: Path) -> dict[str, dict[str, Any]]:
        model, total = self.upload.model, max(sum(path.stat().st_size for path in folder.rglob("*")), 1)
        earlier = services.earlier_files(organization=model.organization, name=model.name, branch=self.upload.branch)

        def beat(done: int) -> None:
            self._done += done
            self.bench.beat(min(0.2 + 0.75 * self._done / (2 * total), 0.95), "storing")

        return services.store_directory(model.organization_id, folder, like=earlier, beat=beat)

    def _check_hashes(self, tree: dict[str, dict[str, Any]], renamed: str) -> None:
        """The store has hashed every file as it read it; objects that are not committed are collected."""
        for file in self.upload.files:
            stored = tree.get(WEIGHTS if file["path"] == renamed else file["path"])
            if stored and file["sha256"] and stored["sha256"] != file["sha256"]:
                raise Damaged(f"{file['path'][:100]!r} has another SHA-256 than was announced.")

    # --- the version --------------------------------------------------------------------------------

    def _commit(self, contents: Contents, tree: dict[str, dict[str, Any]], renamed: str) -> None:
        upload = self.upload
        assert upload.created_by is not None
        lineage = {"source": "upload", "upload": str(upload.pk), "format": contents.kind, **contents.lineage}
        if upload.source is not None:
            lineage |= {"source": "hub", **upload.source}
        if renamed:
            lineage["file"] = renamed
        with transaction.atomic():
            version = services.commit_version(
                actor=upload.created_by, model=upload.model, tree=tree, task=contents.task,
                signature=contents.signature, metrics=contents.metrics, lineage=lineage,
                message=upload.message or MESSAGES[contents.kind], branch=upload.branch,
            )  # fmt: skip
            upload.finish("succeeded", output_version=version, progress=1.0, phase="")


def _name_single_weights(folder: Path, contents: Contents) -> str:
    """Weights alone get the name that every version's weights have; the name they came with, or nothing."""
    files = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    if contents.kind != "weights" or len(files) != 1 or files[0] == folder / WEIGHTS:
        return ""
    name = files[0].relative_to(folder).as_posix()
    files[0].rename(folder / WEIGHTS)
    return name
