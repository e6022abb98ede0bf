"""What a commit is: the canonical JSON of a version, and the id that follows from it."""

import hashlib
import json
import uuid
from typing import Any


def canonical(content: dict[str, Any]) -> bytes:
    """The one byte form of a commit: sorted keys, no spaces, UTF-8, no NaN. Raises ValueError on NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(content)).hexdigest()


def identifier_of(digest: str) -> uuid.UUID:
    """The commit's UUID for URLs: the first 128 bits of its digest, marked as a version-8 UUID (RFC 9562)."""
    value = int(digest[:32], 16)
    value = value & ~(0xF << 76) | (0x8 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return uuid.UUID(int=value)
