"""Code of users' own: bundles of files, kept by their content, and what is checked before any of it is queued."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction

from dlplatform.accounts import audit
from dlplatform.accounts.access import require_code
from dlplatform.accounts.models import Organization, User
from dlplatform.engine.errors import PackageError
from dlplatform.engine.job import CODE
from dlplatform.objects.store import ObjectStore
from registry import pickles, trees, unpacking
from registry.models import ModelVersion

from .models import CodeBundle

ARCHITECTURE, SCRIPT = "model.py", "main.py"
MOST_BYTES = 7 * 1024 * 1024
MOST_UNPACKED = 32 * 1024 * 1024
MOST_FILES = 1_000
ONE_FILE = "Send one .py file, or a zip of the files with model.py or main.py at its top."


def object_store(organization: Organization) -> ObjectStore:
    """Where the files of bundles are kept: beside the models that they make."""
    return ObjectStore("models", organization.pk)


def add_code(*, actor: User, organization: Organization, filename: str, content: bytes) -> CodeBundle:
    """Keep a .py file or a zip of files; the bundle that is there already when there is one with the same files.

    Nothing of it is run or imported. Raises PermissionDenied, ValidationError on `file`, PickleRefused.
    """
    require_code(actor, organization)
    if not content or len(content) > MOST_BYTES:
        raise _refused(f"The file has {len(content):,} bytes; 1 to {MOST_BYTES:,} are possible. {ONE_FILE}", "size")
    with tempfile.TemporaryDirectory(prefix="code-") as made:
        folder = Path(made) / "files"
        folder.mkdir()
        _unpack(filename, content, Path(made), folder)
        return _kept(actor, organization, folder, filename)


def _unpack(filename: str, content: bytes, place: Path, folder: Path) -> None:
    if not content.startswith(pickles.ZIP):
        _write_single(filename, content, folder)
        return
    archive = place / "archive.zip"
    archive.write_bytes(content)
    try:
        unpacking.unpack(archive, folder, limit=MOST_UNPACKED, beat=lambda: None)
    except PackageError as error:
        raise _refused(str(error), "bad_archive") from error


def _write_single(filename: str, content: bytes, folder: Path) -> None:
    """A file alone is a script unless it is named as an architecture."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise _refused(f"This is neither a zip nor text in UTF-8. {ONE_FILE}", "not_text") from None
    if not filename.lower().endswith(".py") or "\0" in text:
        raise _refused(f"This is no Python file. {ONE_FILE}", "not_python")
    name = ARCHITECTURE if Path(filename).name == ARCHITECTURE else SCRIPT
    (folder / name).write_bytes(content)


def _kept(actor: User, organization: Organization, folder: Path, filename: str) -> CodeBundle:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if len(files) > MOST_FILES:
        raise _refused(f"The zip holds {len(files):,} files; {MOST_FILES:,} are possible.", "too_many")
    if not any(name.endswith(".py") for name in files):
        raise _refused(f"There is no Python file. {ONE_FILE}", "not_python")
    stored = object_store(organization).put_files([(path, None) for path in files.values()])
    tree = {name: {"sha256": one.sha256, "size": one.size} for name, one in zip(files, stored, strict=True)}
    return _recorded(actor, organization, tree, filename)


@transaction.atomic
def _recorded(actor: User, organization: Organization, tree: trees.Tree, filename: str) -> CodeBundle:
    digest = digest_of(tree)
    bundle, made = CodeBundle.objects.get_or_create(
        organization=organization, digest=digest,
        defaults={"tree": tree, "created_by": actor, "filename": Path(filename).name[:200]},
    )  # fmt: skip
    if made:
        audit.record(actor, "code.add", bundle, organization, digest=digest, files=sorted(tree)[:50])
    return bundle


def digest_of(tree: dict[str, dict[str, Any]]) -> str:
    """The SHA-256 that stands for all files and their names."""
    canonical = json.dumps({name: entry["sha256"] for name, entry in tree.items()}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def bundle_of(actor: User, version: ModelVersion) -> CodeBundle:
    """The code that built a version, kept again if it was forgotten meanwhile. Raises PermissionDenied."""
    organization = version.model.organization
    require_code(actor, organization)
    prefix = f"{CODE}/"
    tree = {path.removeprefix(prefix): entry for path, entry in version.tree.items() if path.startswith(prefix)}
    kept = {name: {"sha256": entry["sha256"], "size": entry["size"]} for name, entry in tree.items()}
    return _recorded(actor, organization, kept, ARCHITECTURE)


# --- before a run is queued -------------------------------------------------------------------------------


def entry_of(bundle: CodeBundle, wanted: str) -> str:
    """The file that a run starts with: the wanted one, else main.py or model.py, whichever there is.

    Raises ValidationError on `entry`.
    """
    if wanted:
        if wanted not in bundle.tree or not wanted.endswith(".py"):
            known = ", ".join(name for name in sorted(bundle.tree) if name.endswith(".py"))
            raise _invalid("entry", f"The code has no “{wanted[:80]}”; its files: {known[:500]}.", "does_not_exist")
        return wanted
    found = [name for name in (SCRIPT, ARCHITECTURE) if name in bundle.tree]
    if len(found) != 1:
        told = "both main.py and model.py" if found else "neither main.py nor model.py"
        raise _invalid("entry", f"The code has {told}; say with `entry` which file to start with.", "required")
    return found[0]


def _refused(message: str, code: str) -> ValidationError:
    return _invalid("file", message, code)


def _invalid(field: str, message: str, code: str) -> ValidationError:
    return ValidationError({field: ValidationError(message, code=code)})
