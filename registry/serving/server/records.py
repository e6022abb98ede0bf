"""What an answer becomes in the prediction log."""

import hashlib
from datetime import UTC, datetime
from uuid import UUID

from registry.serving.batching import Rows
from registry.serving.log_entries import Entry, Sent

from .deployments import Served, ServedVariant


def record_of(
    served: Served, variant: ServedVariant, request_id: UUID, rows: Rows, predictions: Rows | None, milliseconds: float,
    error: str, key: str | None = None, propensity: float | None = None,
) -> Entry:  # fmt: skip
    return Entry(
        request_id, served.id, variant.id, variant.role, served.revision, propensity, key or "",
        without_images(rows, variant.images), predictions, milliseconds, error, datetime.now(UTC), served.organization,
        () if error else images_in(rows, variant.images),
    )  # fmt: skip


def images_in(rows: Rows, images: tuple[str, ...]) -> tuple[Sent, ...]:
    """What the writer of the log stores; of answers alone, whose images are images."""
    return tuple(
        Sent(position, name, row[name])
        for position, row in enumerate(rows if images else ())
        for name in images
        if isinstance(row.get(name), str)
    )


def without_images(rows: Rows, images: tuple[str, ...]) -> Rows:
    """The rows as the log keeps them: an image as the SHA-256 of its text, until its bytes are stored."""
    if not images:
        return rows
    return [row | {name: _hashed(row[name]) for name in images if isinstance(row.get(name), str)} for row in rows]


def _hashed(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
