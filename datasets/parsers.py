"""Bodies of rows that the datasets API reads."""

from typing import IO, Any

import orjson
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

from dlplatform.parsers import StrictJSONParser


class RowsParser(StrictJSONParser):
    """Numbers of any size go on: what is too large is refused with its row and column."""

    real, whole = float, int


class NdjsonParser(BaseParser):
    """One JSON value a line, blank lines passed over: as if `{"rows": […]}` had been sent."""

    media_type = "application/x-ndjson"

    def parse(self, stream: IO[bytes], media_type: str | None = None, parser_context: Any = None) -> dict[str, Any]:
        lines = enumerate(stream.read().splitlines(), start=1)
        return {"rows": [_value(number, line) for number, line in lines if line.strip()]}


def _value(number: int, line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ParseError(
            f"Line {number}, character {error.colno}: this is no complete JSON value ({error.msg}). "
            'Write one object per line, such as {"age": 41, "city": "Oslo"}.'
        ) from None
