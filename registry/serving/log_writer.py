"""``python -m registry.serving.log_writer``: the process that writes the prediction log of one inference server.

Its first line in is the address of the database, each further one a batch of records (`log_entries.packed`). A line out
answers each: ``{}`` once all are in the database, or ``{"away": "…"}``. It yields to those who answer: its priority is low, and
unless a batch is urgent it writes some records and rests, and so does the process of PostgreSQL's that works for it, which nobody else
could make give way. It ends when nobody can send any more, after what was sent has been written: the death of the inference
server ends no writing.

Images are stored by `logged_images`, and what PostgreSQL refuses is written by `prediction_log.store`: for these alone Django is
loaded, without which the process is a third as large.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any

import orjson
import psycopg

from registry.serving.log_entries import COLUMNS, Opened, line_of, unpacked

NICE = 10  # it still gets a tenth of a core that others fill
AT_ONCE, CHARACTERS = 64, 64 << 10  # of records, for which PostgreSQL takes about a millisecond
REST = 0.002  # seconds, before the next ones
TABLE = "serving_predictionrecord"
STATEMENT = f"COPY {TABLE} ({', '.join(COLUMNS)}) FROM STDIN"


class Writer:
    """Writes batches over one connection, which is made anew when it breaks."""

    def __init__(self, address: dict[str, Any]) -> None:
        self._address = address
        self._connection: psycopg.Connection | None = None
        self._with_django = False

    def write(self, told: dict[str, Any]) -> dict[str, str]:
        """The answer to a batch. A connection may have broken long ago: then a fresh one tries again."""
        records = told["records"]
        if told["images"] and (away := self._kept(records, told["images"])):
            return {"away": away}
        for last in (self._connection is None, True):
            try:
                self._copy(records, rests=not told.get("urgent"))
            except (psycopg.IntegrityError, psycopg.DataError):
                return self._stored(records)
            except psycopg.Error as error:
                self._disconnect()
                if last:
                    return {"away": str(error)}
            else:
                return {}
        raise AssertionError("the last try answers")

    def _copy(self, records: list[Any], *, rests: bool) -> None:
        """A transaction for each part: whoever writes the batch again, because this process is frozen, waits for the one part. What is
        sent again because a later part failed is found by its key."""
        if self._connection is None:
            self._connection = psycopg.connect(**self._address, autocommit=True)
        lines = map(line_of, records)
        for part in parts(lines) if rests else ("".join(lines),):
            with self._connection.cursor() as cursor, cursor.copy(STATEMENT) as copy:
                copy.write(part.encode())

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _kept(self, records: list[list[Any]], images: dict[str, Any]) -> str:
        """Store the images of records and name them in their rows; why that cannot be done now, if it cannot."""
        self._set_up()
        from django.db import DatabaseError, close_old_connections

        from registry.serving import logged_images

        close_old_connections()  # one that broke; a new one for each batch would cost more than the batch
        opened = {int(at): Opened(records[int(at)], sent) for at, sent in images.items()}
        try:
            logged_images.keep(opened.values())
        except DatabaseError as error:
            return str(error) or type(error).__name__
        for at, record in opened.items():
            records[at] = record.told
        return ""

    def _stored(self, records: list[list[Any]]) -> dict[str, str]:
        """One by one, where there is one among them that PostgreSQL refuses."""
        self._set_up()
        from django.db import DatabaseError, close_old_connections

        from registry.serving import prediction_log

        close_old_connections()
        try:
            prediction_log.store([unpacked(one) for one in records])
        except DatabaseError as error:
            return {"away": str(error)}
        return {}

    def _set_up(self) -> None:
        if not self._with_django:
            import django
            from django.conf import settings

            settings.DATABASES["default"]["NAME"] = self._address["dbname"]
            django.setup()
            self._with_django = True


def parts(lines: Iterable[str]) -> Iterator[str]:
    """Lines together, as many as PostgreSQL takes about a millisecond for, one at the least; a rest before each but the first."""
    part, size = [], 0
    for line in lines:
        if part and (len(part) >= AT_ONCE or size + len(line) > CHARACTERS):
            yield "".join(part)
            time.sleep(REST)
            part, size = [], 0
        part.append(line)
        size += len(line)
    yield "".join(part)


def main() -> None:
    """Write until nobody can send any more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # who stops everything stops who sends, and that ends us
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever is printed must not mix with the answers
    batches = sys.stdin.buffer
    writer = Writer(orjson.loads(batches.readline()))
    for line in batches:
        if not line.endswith(b"\n"):  # the sender died amid it
            break
        _say(answers, writer.write(orjson.loads(line)))


def _say(answers: IO[bytes], told: dict[str, str]) -> None:
    try:
        answers.write(orjson.dumps(told) + b"\n")
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
