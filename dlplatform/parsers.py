"""How bodies of API requests are read."""

import codecs
import json
import math
from typing import Any

from django.conf import settings
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser

MOST_DIGITS = 300


class StrictJSONParser(JSONParser):
    """JSON that the rest of the platform can rely on: of sane depth, every number within what a float can hold."""

    @staticmethod
    def real(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else _no_room(text)

    @staticmethod
    def whole(text: str) -> int:
        """One of so many digits that no float could hold it is not even read: that alone takes long."""
        return int(text) if len(text) <= MOST_DIGITS else _no_room(text)

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        encoding = (parser_context or {}).get("encoding", settings.DEFAULT_CHARSET)
        try:
            text = codecs.getreader(encoding)(stream).read()
            return json.loads(text, parse_constant=_no_number, parse_float=self.real, parse_int=self.whole)
        except RecursionError:
            raise ParseError("This JSON is nested too deeply.") from None
        except (ValueError, LookupError) as error:
            raise ParseError(f"This is no JSON that can be read: {str(error)[:200]}.") from None


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON; leave a missing value out, or send null")


def _no_room(text: str) -> Any:
    raise ValueError(f"the number {text[:30]}{'…' if len(text) > 30 else ''} is too large")
