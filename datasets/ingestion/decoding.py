"""From stored bytes to UTF-8 text on disk: decompression, encodings, forbidden characters."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import charset_normalizer

from datasets.ingestion.limits import Limits
from datasets.ingestion.result import Findings, Rejected

CHUNK_BYTES = 4 << 20
SAMPLE_BYTES = 1 << 16
# Below this a ratio says nothing: a 1 kB file of blanks compresses 100-fold.
RATIO_GRACE_BYTES = 16 << 20
CONTROL = bytes(code for code in range(32) if code not in (9, 10, 13))
BOMS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(slots=True)
class PreparedText:
    """UTF-8 text without a byte order mark; the table begins `start` bytes into `path`."""

    path: Path
    encoding: str
    start: int = 0
    size: int = 0
    lines: int = 0
    blank_lines: bool = False
    quotes: dict[str, int] = field(default_factory=lambda: {'"': 0, "'": 0})


def is_gzip(source: Path) -> bool:
    with source.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


@contextmanager
def open_decompressed(source: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked when it is gzip; raises Rejected when the archive is damaged."""
    try:
        if is_gzip(source):
            with gzip.open(source, "rb") as packed:
                yield packed  # type: ignore[misc]
        else:
            with source.open("rb") as plain:
                yield plain
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Rejected(
            "damaged_gzip",
            "The gzip archive is cut off or damaged. Compress the file again and upload it whole.",
        ) from error


def prepare_text(source: Path, work: Path, limits: Limits, findings: Findings) -> PreparedText:
    """Scan the whole file once; write a UTF-8 copy into `work` when the bytes are not already that.

    Raises Rejected for control characters, undecodable bytes and exceeded limits.
    """
    with open_decompressed(source) as stream:
        sample = stream.read(SAMPLE_BYTES)
    encoding, bom = detect_encoding(sample)
    if encoding == "utf-8" and not is_gzip(source):
        try:
            return _scan_utf8(source, bom, limits)
        except _NotUtf8 as error:
            encoding = _legacy_encoding(error)
    if encoding == "utf-8":
        try:
            return _transcode(source, work, encoding, bom, limits)
        except _NotUtf8 as error:
            encoding = _legacy_encoding(error)
    prepared = _transcode(source, work, encoding, bom, limits)
    if not bom and not encoding.startswith("utf-8"):
        findings.warn(
            "encoding_guessed",
            f"The text is not UTF-8; it was read as {encoding}. Check accented letters, or save the file as UTF-8.",
        )
    return prepared


def detect_encoding(sample: bytes) -> tuple[str, int]:
    """(encoding, length of the byte order mark); UTF-8 unless a mark or a pattern of NULs says otherwise."""
    for mark, encoding in BOMS:
        if sample.startswith(mark):
            return encoding, len(mark)
    return _unmarked_utf16(sample) or "utf-8", 0


def _unmarked_utf16(sample: bytes) -> str | None:
    pairs = len(sample) // 2
    if pairs < 4:
        return None
    even, odd = sample[0 : pairs * 2 : 2].count(0) / pairs, sample[1 : pairs * 2 : 2].count(0) / pairs
    if odd > 0.6 and even < 0.1:
        return "utf-16-le"
    if even > 0.6 and odd < 0.1:
        return "utf-16-be"
    return None


class _NotUtf8(Exception):
    def __init__(self, line: int, byte: int, context: bytes, multibyte_before: bool) -> None:
        super().__init__()
        self.line, self.byte, self.context, self.multibyte_before = line, byte, context, multibyte_before


EAST_ASIAN = ("big5", "gb", "hz", "euc_", "shift_jis", "cp932", "cp949", "cp950", "iso2022", "johab")
OTHER_ALPHABETS = ("cp125", "iso8859", "koi8", "cp866", "mac_cyrillic", "mac_greek", "tis_620", "cp874")


def _legacy_encoding(error: _NotUtf8) -> str:
    """The single-byte or East Asian encoding to try; a mostly valid UTF-8 file is rejected instead."""
    if error.multibyte_before:
        raise Rejected(
            "invalid_encoding",
            f"Line {error.line} holds the byte 0x{error.byte:02x}, which is not valid UTF-8 while the "
            "text before it "
            "is: two encodings are mixed. Save the whole file as UTF-8.",
            row=error.line,
        )
    best = charset_normalizer.from_bytes(error.context).best()
    guess = best.encoding if best is not None else "cp1252"
    if guess.startswith(EAST_ASIAN):
        return guess
    # A few bytes fit many single-byte encodings, most of them of machines that are gone: the likely one wins.
    return guess if guess.startswith(OTHER_ALPHABETS) and not _western(error.context) else "cp1252"


def _western(context: bytes) -> bool:
    """Few high bytes, as in Western European text: rarer there than in Cyrillic or Greek."""
    letters = sum(1 for byte in context if byte >= 0x80 or chr(byte).isalpha())
    return sum(1 for byte in context if byte >= 0x80) < 0.25 * max(letters, 1)


def _scan_utf8(source: Path, bom: int, limits: Limits) -> PreparedText:
    scan = _Scan(PreparedText(path=source, encoding="utf-8", start=bom), limits)
    validator = _Utf8Validator()
    with source.open("rb") as stream:
        stream.seek(bom)
        while chunk := stream.read(CHUNK_BYTES):
            validator.feed(chunk, scan.prepared.lines)
            scan.feed(chunk)
    validator.finish(scan.prepared.lines)
    return scan.prepared


def _transcode(source: Path, work: Path, encoding: str, bom: int, limits: Limits) -> PreparedText:
    target = work / "text.utf8"
    scan = _Scan(PreparedText(path=target, encoding=encoding), limits)
    decoder = codecs.getincrementaldecoder(encoding)("replace" if encoding in ("cp1252",) else "strict")
    validator = _Utf8Validator() if encoding == "utf-8" else None
    stored = source.stat().st_size
    with open_decompressed(source) as stream, target.open("wb") as out:
        stream.read(bom)
        while chunk := stream.read(CHUNK_BYTES):
            if validator:
                validator.feed(chunk, scan.prepared.lines)
            text = chunk if validator else _decode(decoder, chunk, encoding, scan.prepared.lines, final=False)
            scan.feed(text)
            out.write(text)
            _check_ratio(scan.prepared.size, stored, limits)
        if validator:
            validator.finish(scan.prepared.lines)
        else:
            tail = _decode(decoder, b"", encoding, scan.prepared.lines, final=True)
            scan.feed(tail)
            out.write(tail)
    return scan.prepared


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, encoding: str, lines: int, *, final: bool) -> bytes:
    try:
        return decoder.decode(chunk, final).encode("utf-8")
    except UnicodeError as error:
        raise Rejected(
            "invalid_encoding",
            f"The text does not decode as {encoding} somewhere after line {lines + 1}: the file is "
            "damaged or cut "
            "off. Save it as UTF-8 and upload it again.",
            row=lines + 1,
        ) from error


def _check_ratio(decoded: int, stored: int, limits: Limits) -> None:
    if decoded > RATIO_GRACE_BYTES and decoded > limits.expansion_ratio * max(stored, 1):
        raise Rejected(
            "expansion_ratio",
            f"The archive unpacks to more than {limits.expansion_ratio:g} times its size, which is "
            "refused as a "
            "decompression bomb. Upload the unpacked file.",
        )


class _Utf8Validator:
    """Checks UTF-8 across chunks and says on which line it fails."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._multibyte = False
        self._pending = b""

    def feed(self, chunk: bytes, lines: int) -> None:
        if not self._pending and chunk.isascii():
            return
        data = self._pending + chunk
        try:
            self._decoder.reset()
            self._decoder.decode(data, False)
        except UnicodeDecodeError as error:
            raise self._failure(data, error.start, lines) from error
        self._multibyte = True
        self._pending = self._decoder.getstate()[0]

    def finish(self, lines: int) -> None:
        if self._pending:
            raise self._failure(self._pending, 0, lines)

    def _failure(self, data: bytes, start: int, lines: int) -> _NotUtf8:
        context = data[max(0, start - 30_000) : start + 30_000]
        before = self._multibyte or not data[:start].isascii()
        return _NotUtf8(lines + data.count(b"\n", 0, start) + 1, data[start], context, before)


class _Scan:
    """Counts and checks UTF-8 chunks: control characters, lines, quotes, blank lines, size."""

    def __init__(self, prepared: PreparedText, limits: Limits) -> None:
        self.prepared = prepared
        self._limits = limits
        self._last = b"\n"

    def feed(self, chunk: bytes) -> None:
        if not chunk:
            return
        if len(chunk.translate(None, CONTROL)) != len(chunk):
            raise self._control_rejection(chunk)
        prepared = self.prepared
        prepared.size += len(chunk)
        if prepared.size > self._limits.bytes:
            raise Rejected(
                "file_too_large",
                f"The file holds more than {self._limits.bytes:,} bytes of text. Split it and append the pieces.",
            )
        joined = self._last + chunk[:2]
        returns = b"\r" in chunk or b"\r" in joined
        blanks = (b"\n\n", b"\n\r\n", b"\r\r") if returns else (b"\n\n",)
        prepared.blank_lines = prepared.blank_lines or any(blank in joined or blank in chunk for blank in blanks)
        prepared.lines += chunk.count(b"\n") or chunk.count(b"\r")
        for quote in prepared.quotes:
            prepared.quotes[quote] += chunk.count(quote.encode())
        self._last = chunk[-1:]

    def _control_rejection(self, chunk: bytes) -> Rejected:
        position = next(index for index, byte in enumerate(chunk) if byte in CONTROL)
        line = self.prepared.lines + chunk.count(b"\n", 0, position) + 1
        character = position - chunk.rfind(b"\n", 0, position)
        what = "a NUL byte" if chunk[position] == 0 else f"the control character 0x{chunk[position]:02x}"
        return Rejected(
            "nul_byte" if chunk[position] == 0 else "control_character",
            f"Line {line} holds {what} at character {character}: the file is binary, damaged or in "
            "another encoding. "
            "Remove it or export the file again as UTF-8.",
            row=line,
        )
