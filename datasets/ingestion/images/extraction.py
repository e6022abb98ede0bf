"""The wanted files of an archive read, looked at and packed, a few at a time."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from datasets.ingestion.images.examination import Examined, examine
from datasets.ingestion.images.members import Archive, Member, MemberDamaged, Read
from datasets.ingestion.images.packs import ImageWriter
from datasets.ingestion.images.summary import ImageSummary
from datasets.ingestion.result import Findings, ImageFiles, counted, shown
from dlplatform.engine.images import MAXIMUM_BYTES, ImageError

THREADS = 2
IN_FLIGHT = 3
CHUNK = 1 << 20
TELL_SECONDS = 0.2

Progress = Callable[[float, str], None]


@dataclass(slots=True)
class Extracted:
    """What came of the wanted files: digests by place of those that are usable."""

    digests: dict[int, str] = field(default_factory=dict)
    first_names: dict[str, str] = field(default_factory=dict)
    repeated: list[tuple[str, str]] = field(default_factory=list)
    summary: ImageSummary = field(default_factory=lambda: ImageSummary())
    unusable: int = 0
    files: ImageFiles | None = None


def extract_images(
    archive: Archive, members: Sequence[Member], destination: Path, findings: Findings, on_progress: Progress
) -> Extracted:
    """Read the members, report every file that is not usable, write packs and index. Raises Rejected."""
    found, writer = Extracted(), ImageWriter(destination)
    by_place = {member.place: member for member in members}
    told = 0.0
    for done, (member, outcome) in enumerate(_examined(archive, by_place), start=1):
        if isinstance(outcome, ImageError):
            _report_unusable(member, outcome, found, findings)
        else:
            _keep(member, outcome[0], outcome[1], found, writer, findings)
        if done == len(members) or time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            on_progress(done / len(members), f"checking image {done:,} of {len(members):,}")
    found.files = writer.close()
    return found


Outcome = tuple[Examined, bytes] | ImageError


def _examined(archive: Archive, by_place: dict[int, Member]) -> Iterator[tuple[Member, Outcome]]:
    """In the archive's order; decoding lets go of Python's lock, so two are looked at while others are read."""
    waiting: deque[tuple[Member, Future[Outcome]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for place, read in archive.contents(set(by_place)):
            member = by_place[place]
            content = _content(read)
            waiting.append((member, pool.submit(_outcome, content)))
            if len(waiting) >= IN_FLIGHT:
                yield _settled(waiting.popleft())
        while waiting:
            yield _settled(waiting.popleft())


def _settled(pair: tuple[Member, Future[Outcome]]) -> tuple[Member, Outcome]:
    return pair[0], pair[1].result()


def _content(read: Read) -> bytes | ImageError:
    """One byte more than is possible is enough to know."""
    pieces, size = [], 0
    try:
        while size <= MAXIMUM_BYTES and (piece := read(CHUNK)):
            pieces.append(piece)
            size += len(piece)
    except MemberDamaged as error:
        return ImageError("damaged", f"It cannot be unpacked: {str(error)[:200]}")
    return b"".join(pieces)


def _outcome(content: bytes | ImageError) -> Outcome:
    if isinstance(content, ImageError):
        return content
    if not content:
        return ImageError("empty", "The file is empty.")
    try:
        return examine(content), content
    except ImageError as error:
        return error


def _report_unusable(member: Member, error: ImageError, found: Extracted, findings: Findings) -> None:
    found.unusable += 1
    findings.warn(error.code, f"{shown(member.path, 120)} was left out. {error}", file=member.path)


def _keep(
    member: Member, examined: Examined, content: bytes, found: Extracted, writer: ImageWriter, findings: Findings
) -> None:
    digest = examined.record.sha256
    found.digests[member.place] = digest
    if digest in found.first_names:
        found.repeated.append((found.first_names[digest], member.path))
        return
    found.first_names[digest] = member.path
    writer.add(examined.record, content, examined.thumbnail)
    found.summary.add(examined)
    if examined.frames > 1:
        findings.warn(
            "animated",
            f"{shown(member.path, 120)} holds several frames; the first one is used.",
            file=member.path,
        )


def report_counts(found: Extracted, findings: Findings) -> None:
    """Warnings that concern many files at once."""
    if found.repeated:
        first, other = found.repeated[0]
        findings.warn(
            "duplicate_images",
            f"{counted(len(found.repeated), 'file repeats', 'files repeat')} another one byte for byte, such as {shown(other, 80)}, which is "
            f"{shown(first, 80)}. An image in both training and validation data makes the result look better than it is.",
        )
    converted = found.summary.converted()
    if converted:
        kinds = ", ".join(f"{count:,} {mode}" for mode, count in Counter(converted).most_common())
        findings.warn(
            "converted_images",
            f"Training and prediction see every image as 8-bit RGB; those of other kinds are converted: {kinds}. "
            "Colours of CMYK images and differences within 16-bit ones change a little.",
        )
