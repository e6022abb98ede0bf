"""Models imported from a directory of this machine: for its operators, by `manage.py import_model`."""

import os
import shutil
import tempfile
from pathlib import Path

from django.conf import settings

from dlplatform.accounts.models import Organization, User
from dlplatform.engine.errors import PackageError

from . import pickles, services, trees
from .contents import recognise
from .hub_imports import ENDINGS
from .models import ModelVersion


def import_directory(
    *, actor: User, organization: Organization, name: str, directory: Path, branch: str = "main"
) -> ModelVersion:
    """Commit what a directory holds (a package, a Hugging Face directory, weights) as a version of the model ``name``.

    Links are followed, as the Hub's own cache consists of them. Raises PackageError, ValidationError, PickleRefused.
    """
    if not directory.is_dir():
        raise PackageError(f"{directory} is no directory.")
    settings.JOB_PATH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="import-", dir=settings.JOB_PATH) as name_of_folder:
        folder = Path(name_of_folder)
        _copy(directory, folder)
        contents = recognise(folder)
        model = services.model_named(actor=actor, organization=organization, name=name)
        earlier = services.earlier_files(organization=organization, name=name, branch=branch)
        tree = services.store_directory(organization.pk, folder, like=earlier)
    return services.commit_version(
        actor=actor, model=model, tree=tree, task=contents.task, signature=contents.signature,
        metrics=contents.metrics, message=f"Imported from the directory {directory.name}", branch=branch,
        lineage={"source": "directory", "format": contents.kind, **contents.lineage},
    )  # fmt: skip


def _copy(source: Path, target: Path) -> None:
    """The files that a version may have; hidden ones and those of other kinds stay where they are."""
    paths = [path for path in sorted(source.rglob("*")) if path.is_file() and path.name.lower().endswith(ENDINGS)]
    plain = {path.relative_to(source).as_posix(): path for path in paths}
    kept = {name: path for name, path in plain.items() if not any(part.startswith(".") for part in name.split("/"))}
    trees.changed({}, {path: {} for path in kept}, ())
    for name, path in kept.items():
        with path.open("rb") as file:
            pickles.check_content(file.read(pickles.SAMPLE), repr(path.name[:100]))
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), place)
        except OSError:
            shutil.copyfile(path, place)
