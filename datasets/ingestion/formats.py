"""What kind of file this is, told from its first bytes rather than from its name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from datasets.ingestion.images.tar_archive import is_tar
from datasets.ingestion.images.zip_archive import names_in
from datasets.ingestion.result import Rejected

Format = Literal["csv", "ndjson", "parquet", "zip", "tar"]
ARCHIVES = ("zip", "tar")

HEAD_BYTES = 4096
ACCEPTED = "Upload CSV, NDJSON or Parquet, or a zip or tar of images."
AS_ARCHIVE = "Images are uploaded together, as a zip or tar of class folders or with a table of labels."

# magic bytes → (code, what it is, what to do)
REFUSED: tuple[tuple[bytes, str, str, str], ...] = (
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "excel_file",
        "an Excel 97 workbook",
        "Open it and save the sheet as CSV UTF-8.",
    ),
    (b"PARE", "encrypted_parquet", "an encrypted Parquet file", "Write it again without encryption."),
    (
        b"ARROW1",
        "arrow_file",
        "an Arrow IPC (Feather) file",
        "Write it as Parquet: pyarrow.parquet.write_table.",
    ),
    (b"FEA1", "arrow_file", "a Feather file", "Write it as Parquet: pyarrow.parquet.write_table."),
    (b"ORC", "orc_file", "an ORC file", "Write it as Parquet."),
    (b"Obj\x01", "avro_file", "an Avro file", "Write it as Parquet or NDJSON."),
    (b"\x89HDF", "hdf5_file", "an HDF5 file", "Export the table as Parquet: DataFrame.to_parquet."),
    (b"\x93NUMPY", "numpy_file", "a NumPy array", "Write it as CSV or Parquet with column names."),
    (b"SQLite format 3\x00", "sqlite_file", "an SQLite database", "Export one table as CSV."),
    (b"BZh", "compressed_file", "a bzip2 archive", "Unpack it, or compress with gzip."),
    (b"\xfd7zXZ\x00", "compressed_file", "an xz archive", "Unpack it, or compress with gzip."),
    (b"7z\xbc\xaf\x27\x1c", "archive_file", "a 7-Zip archive", "Unpack it and upload one table."),
    (b"Rar!", "archive_file", "a RAR archive", "Unpack it and upload one table."),
    (b"%PDF", "pdf_file", "a PDF document", "Export the table as CSV."),
    (b"\x89PNG", "image_file", "a PNG image", AS_ARCHIVE),
    (b"\xff\xd8\xff", "image_file", "a JPEG image", AS_ARCHIVE),
    (b"GIF8", "image_file", "a GIF image", AS_ARCHIVE),
    (b"\x7fELF", "program_file", "a program", ACCEPTED),
)


def detect_format(head: bytes, filename: str, content_type: str, source: Path) -> Format:
    """The format of a decoded file beginning with `head`; raises Rejected for what is neither table nor archive."""
    _refuse_known(head)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(source)
    if is_tar(head):
        return "tar"
    if head.startswith(b"PAR1"):
        return "parquet"
    name = filename.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".pq")) or "parquet" in content_type.lower():
        raise Rejected(
            "not_parquet",
            "The file is named as Parquet but does not begin with the Parquet mark PAR1: it is damaged "
            "or something "
            "else. Write it again and upload the whole file.",
        )
    text = _ascii_view(head)
    _refuse_markup(text)
    return "ndjson" if _looks_like_json(text, name, content_type) else "csv"


def _refuse_known(head: bytes) -> None:
    for magic, code, kind, fix in REFUSED:
        if head.startswith(magic):
            raise Rejected(code, f"This is {kind}, not a table this platform reads. {fix}")
    if len(head) > 2 and head[0] == 0x80 and head[1] in (2, 3, 4, 5):
        raise Rejected(
            "pickle_file",
            "This is a Python pickle, which can run code when opened and is never read here. "
            "Write the table as Parquet: DataFrame.to_parquet.",
        )
    if head.startswith(b"MZ") and b"This program" in head:
        raise Rejected("program_file", f"This is a program, not a table. {ACCEPTED}")


def _zip(source: Path) -> Format:
    """Documents and checkpoints are zips too; what is one of them is told by the names in it."""
    names = names_in(source)
    if any(name.startswith("xl/") for name in names):
        raise Rejected("excel_file", "This is an Excel workbook. Open it and save the sheet as CSV UTF-8.")
    if any(name == "content.xml" for name in names):
        raise Rejected("excel_file", "This is an OpenDocument file. Open it and save the sheet as CSV UTF-8.")
    if any(name.endswith("data.pkl") for name in names):
        raise Rejected("pickle_file", "This is a PyTorch checkpoint, not a table. Upload it as a model.")
    return "zip"


def _ascii_view(head: bytes) -> str:
    """The head as text good enough to recognise syntax, whatever the encoding."""
    return head.replace(b"\x00", b"").decode("latin-1").lstrip("\u00ef\u00bb\u00bf\u00ff\u00fe \t\r\n")


def _refuse_markup(text: str) -> None:
    start = text[:200].lower()
    if start.startswith(("<!doctype html", "<html")):
        raise Rejected(
            "html_file",
            "This is a web page, perhaps a login or error page saved as data. Download the data again.",
        )
    if start.startswith("<?xml"):
        raise Rejected("xml_file", "This is an XML file. Export the table as CSV.")


def _looks_like_json(text: str, name: str, content_type: str) -> bool:
    if name.endswith((".json", ".jsonl", ".ndjson")) or "json" in content_type.lower():
        return True
    if name.endswith((".csv", ".tsv", ".txt")):
        return text.startswith(('{"', '[{"'))
    return text.startswith(('{"', "{}", '[{"', "[\n{", "[\r\n{"))
