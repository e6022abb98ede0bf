"""What reading an object may raise."""


class CorruptObject(Exception):
    """The bytes that the storage returned do not have the hash that names them."""

    def __init__(self, sha256: str, reason: str = "") -> None:
        super().__init__(f"object {sha256} fails its hash{reason and f' ({reason})'}: restore it from a backup")


class MissingObject(Exception):
    """No object of that name is in the store."""


class DamagedEncoding(ValueError):
    """The stored bytes cannot have been written by ``encode``."""
