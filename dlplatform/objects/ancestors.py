"""Bases for deltas: which object of an earlier version of a file may stand in for a part of the new one."""

from contextlib import suppress

from .errors import CorruptObject, MissingObject
from .models import StoredObject
from .reading import Contents
from .safetensors_layout import PREFIX, Region, regions
from .zstd import Bytes

MOST_DEPTH = 8


class Ancestor:
    """An earlier version of a safetensors file. A file that was stored in one piece offers no bases."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._ids = self._ids_by_key()

    def base_for(self, region: Region) -> StoredObject | None:
        """The same tensor (or slice of it) there, or an older one when its chain of bases is as long as allowed."""
        sha256, size = self._ids.get(region.key, ("", 0))
        row = self._contents.rows.get(sha256)
        if row is None or size != region.size:
            return None
        while row.depth >= MOST_DEPTH:
            row = self._contents.rows[row.base]
        return row

    def read(self, base: StoredObject) -> Bytes | None:
        """The verified bytes, or None when they cannot be had: a delta made with wrong bytes would be lost for good."""
        with suppress(MissingObject, CorruptObject):
            return self._contents.leaf(base.sha256, verify=True)
        return None

    def _ids_by_key(self) -> dict[tuple[str, str, int], tuple[str, int]]:
        """The parts by the key of the region that they fill."""
        contents = self._contents
        if len(contents.parts) < 2:
            return {}
        with suppress(MissingObject, CorruptObject):
            header = bytes(contents.leaf(contents.parts[0][0], verify=True))
            found = regions(header[PREFIX:], contents.row.size) or []
            if [region.size for region in found] == [size for _, size in contents.parts]:
                return {region.key: part for region, part in zip(found, contents.parts, strict=True)}
        return {}
