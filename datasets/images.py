"""A version's images in the object store: putting them there, and finding them again.

Images and thumbnails are objects like all others, each content once. A version names one further object, the index
(`ingestion.images.index`), which lists them (docs/adr/0012).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings

from dlplatform.objects.store import CorruptObject, ObjectStore

from .ingestion.images.index import ImageRecord, find_record, read_records, sorted_index
from .ingestion.images.packs import pack_name, read_index, read_packs, thumbnail_pack_name
from .ingestion.result import ImageFiles
from .models import DatasetVersion

BATCH_BYTES = 64 << 20
BATCH_COUNT = 2_000
DIGEST_CHARACTERS = frozenset("0123456789abcdef")


class NotWhatWasSaid(ValueError):
    """The files that the ingestion's child left do not match its records."""


def store_images(
    store: ObjectStore, folder: Path, files: ImageFiles, beat: Callable[[int], None]
) -> tuple[dict[str, Any], int]:
    """What `DatasetVersion.images` holds, and the bytes of it all. Raises NotWhatWasSaid: the child is not trusted."""
    try:
        records = read_index(folder)
        packs = [pack_name(number) for number in range(files.packs)]
        _store(store, read_packs(folder, packs, [r.size for r in records]), [r.sha256 for r in records], beat)
        small = [thumbnail_pack_name(number) for number in range(files.thumbnail_packs)]
        sizes = [r.thumbnail_size for r in records]
        _store(store, read_packs(folder, small, sizes), [r.thumbnail for r in records], beat)
    except ValueError as error:
        raise NotWhatWasSaid(str(error)) from None
    index = store.put_bytes(sorted_index(records))
    total, of_thumbnails = sum(r.size for r in records), sum(sizes)
    described = {"index": index.sha256, "index_bytes": index.size, "count": len(records), "bytes": total,
                 "thumbnail_bytes": of_thumbnails}  # fmt: skip
    return described, total + of_thumbnails + index.size


def _store(store: ObjectStore, contents: Iterator[bytes], digests: Sequence[str], beat: Callable[[int], None]) -> None:
    """Some thousand at a time. Raises ValueError when a content has not the digest that its record says."""
    expected = iter(digests)
    for some in _batches(contents):
        for identity in store.put_many(some, beat):
            if identity.sha256 != next(expected):
                raise ValueError("an image is not the one that its record names")


def _batches(contents: Iterator[bytes]) -> Iterator[list[bytes]]:
    some: list[bytes] = []
    size = 0
    for content in contents:
        some.append(content)
        size += len(content)
        if size >= BATCH_BYTES or len(some) >= BATCH_COUNT:
            yield some
            some, size = [], 0
    if some:
        yield some


def records_of(store: ObjectStore, images: dict[str, Any]) -> Iterator[ImageRecord]:
    """All images of a version. Raises MissingObject and CorruptObject."""
    try:
        with store.open(images["index"]) as stream:
            yield from read_records(stream)
    except ValueError as error:
        raise CorruptObject(images["index"], str(error)) from None


def objects_listed(store: ObjectStore, images: dict[str, Any]) -> set[str]:
    """The ids of all objects that the images of a version need."""
    found = {images["index"]}
    for record in records_of(store, images):
        found |= {record.sha256, record.thumbnail}
    return found


def image_of(store: ObjectStore, version: DatasetVersion, sha256: str) -> ImageRecord | None:
    """The image of this digest if the version has it. Raises MissingObject when the version's index is gone."""
    if not version.images or not is_digest(sha256):
        return None
    path = _local_index(store, version.images["index"])
    with path.open("rb") as stream:
        return find_record(stream, path.stat().st_size, sha256)


def is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= DIGEST_CHARACTERS


def _local_index(store: ObjectStore, sha256: str) -> Path:
    """The index as a file of this machine: a page of thumbnails asks it a hundred times."""
    if (path := store.local_path(sha256)) is not None:
        return path
    cached = settings.CACHE_PATH / "images" / store.prefix / f"{sha256}.index"
    if not cached.exists():
        store.fetch(sha256, cached)
    return cached
