"""What a run with code of a user's own has left: looked through before any of it is believed or kept."""

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError

from dlplatform.engine.errors import PackageError
from dlplatform.engine.job import CODE
from registry import contents, pickles, trees

from . import findings
from .code import ARCHITECTURE
from .models import CodeBundle, Run

MOST_EVALUATION = 16 * 1024 * 1024
FIX = "Write safetensors and JSON files into run.output."


@dataclass(frozen=True)
class Output:
    """What a version is made of, besides its files. ``description``: that of a package of the platform's own format."""

    contents: contents.Contents
    evaluation: dict[str, Any] | None = None
    lineage: dict[str, Any] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)


def examined(run: Run, package: Path) -> Output:
    """Look through the output of a run whose processes have all ended. Raises PackageError with what to do."""
    assert run.code is not None
    _check_files(package)
    if run.entry == ARCHITECTURE:
        return _of_architecture(run.code, package)
    found = contents.recognise(package)
    return Output(found, _evaluation(package), lineage_of(run.code, run.entry))


def _of_architecture(code: CodeBundle, package: Path) -> Output:
    from dlplatform.engine.package import verify

    description = verify(package)
    inside = {name.relative_to(package / CODE).as_posix(): name for name in _files(package / CODE)}
    if set(inside) != set(code.tree) or any(inside[name].stat().st_size != code.tree[name]["size"] for name in inside):
        raise PackageError("The package holds other code than the run was launched with.")
    lineage = lineage_of(code, ARCHITECTURE)
    return Output(contents.described(description), _evaluation(package), lineage, description)


def lineage_of(code: CodeBundle, entry: str) -> dict[str, Any]:
    """Which code made a version; serving runs no other in its name (`registry.own_code`)."""
    files = {name: tree["sha256"] for name, tree in code.tree.items()}
    return {"id": str(code.pk), "digest": code.digest, "entry": entry, "files": files}


def code_tree(code: CodeBundle) -> trees.Tree:
    """The files of the code as a version keeps them: those that were uploaded, whatever the run made of them."""
    return {f"{CODE}/{name}": entry for name, entry in code.tree.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def _check_files(package: Path) -> None:
    """Plain files alone, with names that a tree can have, and none that is a pickle."""
    if package.is_symlink() or not package.is_dir():
        raise PackageError(f"There is no output. {FIX}")
    files = _files(package)
    for path in files:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
            raise PackageError(f"{path.name[:100]!r} is no plain file of its own. {FIX}")
    try:
        trees.changed({}, {path.relative_to(package).as_posix(): {} for path in files}, ())
        for path in files:
            pickles.check_name(path.name)
            pickles.check_content(_beginning(path), repr(path.name[:100]))
    except ValidationError as error:
        raise PackageError(" ".join(error.messages)) from error
    except pickles.PickleRefused as error:
        raise PackageError(str(error.detail)) from error


def _beginning(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(pickles.SAMPLE)


def _evaluation(package: Path) -> dict[str, Any] | None:
    """The evaluation, if the pages can show it."""
    path = package / "evaluation.json"
    if not path.is_file() or path.stat().st_size > MOST_EVALUATION:
        return None
    try:
        found = json.loads(path.read_text(), parse_constant=lambda _: None)
        for shown in (findings.tiles, findings.matrix, findings.importance, findings.worst, findings.charts):
            shown(found)
    # The boundary to a file that anybody may have written: whatever is wrong with it, it is not shown.
    except Exception:
        return None
    return found if isinstance(found, dict) else None
