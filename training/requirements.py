"""What code of a user's own needs besides itself: ``requirements.txt``, met by what is installed or by wheels that it brings."""

from __future__ import annotations

from importlib import metadata
from typing import Final

from django.core.exceptions import ValidationError
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from dlplatform.engine.wheels import ENDING, FOLDER
from dlplatform.objects.store import ObjectStore

from .models import CodeBundle

REQUIREMENTS: Final = "requirements.txt"
MOST_BYTES: Final = 64 * 1024
Wheels = dict[str, Version]


def check_requirements(bundle: CodeBundle, store: ObjectStore) -> None:
    """Compare them with what is there: a sandbox fetches nothing. Raises ValidationError on `code`.

    What is there is told by this process: workers have its Python and its packages (docs/own-code.md).
    """
    brought, problems = _wheels(bundle)
    if REQUIREMENTS in bundle.tree:
        if bundle.tree[REQUIREMENTS]["size"] > MOST_BYTES:
            raise _invalid(f"{REQUIREMENTS} is larger than {MOST_BYTES >> 10} KB.", "bad_requirements")
        text = store.read(bundle.tree[REQUIREMENTS]["sha256"]).decode("utf-8", "replace")
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        problems += [problem for line in lines if (problem := _problem_with(line, brought))]
    if problems:
        raise _invalid(f"The code needs what is not here. {' '.join(problems[:10])}", "missing_requirements")


def _wheels(bundle: CodeBundle) -> tuple[Wheels, list[str]]:
    """The packages that wheels of the bundle hold, and what is wrong with any of them."""
    brought: Wheels = {}
    problems, possible = [], set(sys_tags())
    for path in bundle.tree:
        folder, _, name = path.rpartition("/")
        if folder != FOLDER or not name.endswith(ENDING):
            continue
        try:
            package, version, _, tags = parse_wheel_filename(name)
        except InvalidWheelFilename:
            problems.append(f"“{path[:120]}” is not named as a wheel is; keep the name that pip gave it.")
            continue
        if not tags & possible:
            problems.append(
                f"“{path[:120]}” is for other machines or another Python; take one that fits, or py3-none-any."
            )
        brought[canonicalize_name(package)] = version
    return brought, problems


def _problem_with(line: str, brought: Wheels) -> str:
    """What is wrong with one requirement, with the fix; "" when it is met or does not apply here."""
    if not line:
        return ""
    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return f"“{line[:80]}” is no plain requirement; write a name with versions, such as scikit-learn>=1.5."
    if wanted.url:
        return f"“{wanted.name}” names an address, and nothing is fetched; write its name with versions."
    if wanted.marker and not wanted.marker.evaluate():
        return ""
    found = _found(wanted.name, brought)
    if found is None:
        fix = f"bring its wheel in {FOLDER}/, have an operator install it, or do without it"
        return f"“{wanted.name}” is not installed here; {fix}."
    if wanted.specifier and not wanted.specifier.contains(found, prereleases=True):
        return f"“{wanted.name}{wanted.specifier}” is wanted and {found} is there; allow {found}, or bring a wheel."
    return ""


def _found(name: str, brought: Wheels) -> str | None:
    """The version that an import would get: a wheel comes before what is installed."""
    if version := brought.get(canonicalize_name(name)):
        return str(version)
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _invalid(message: str, code: str) -> ValidationError:
    return ValidationError({"code": ValidationError(message, code=code)})
