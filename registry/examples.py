"""Pictures of the data that a model was fitted on, for whoever may see that data."""

from functools import partial
from typing import Any

from datasets.image_responses import image_path
from datasets.images import image_of
from datasets.models import DatasetVersion
from datasets.services import object_store
from dlplatform.accounts.models import User
from dlplatform.objects.store import CorruptObject, MissingObject

from .forms import LARGEST_IMAGE
from .models import ModelVersion


def example_images(user: User, version: ModelVersion) -> dict[str, dict[str, Any]]:
    """By input column {path, read} of the example image; nothing where the data is gone or hidden from the person."""
    wanted = {
        column["name"]: str(column.get("example") or "")
        for column in version.signature.get("inputs", [])
        if column["type"] == "image"
    }
    data = _visible_data(user, version) if wanted else None
    if data is None:
        return {}
    store = object_store(data.dataset.organization_id)
    try:
        return {
            name: {"path": image_path(data, sha256), "read": partial(store.read, sha256)}
            for name, sha256 in wanted.items()
            if (record := image_of(store, data, sha256)) is not None and record.size <= LARGEST_IMAGE
        }
    except (MissingObject, CorruptObject):
        return {}


def _visible_data(user: User, version: ModelVersion) -> DatasetVersion | None:
    if version.dataset_version_id is None:
        return None
    rows = DatasetVersion.objects.visible_to(user).select_related("dataset")
    return rows.filter(pk=version.dataset_version_id, state=DatasetVersion.State.READY).first()
