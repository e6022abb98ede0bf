"""What a chat template may spend before it is stopped: steps, and characters of texts that it makes on the way.

Every operation that takes longer with what it is given is charged by the size of that beforehand. Values are weighed as the
trees they are: a list that holds another one twice, forty levels deep, is small in memory and endless in print.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from jinja2 import Undefined

STEPS: Final = 1_000_000  # about a second; a thousand messages take a third of it
CHARACTERS: Final = 1_000_000
FACTOR: Final = 16  # more characters for each one that the messages hold: they are trimmed, split, joined and put out
MOST_CHARACTERS: Final = 32_000_000
OUTPUT, OUTPUT_FACTOR = 200_000, 4
LARGEST_BITS: Final = 256
PIECE: Final = 256  # characters that are copied in the time of a step
SEARCHED: Final = 2048  # characters compared in that time
DEEPEST: Final = 50
WIDEST: Final = 6  # characters that one of a text has in print, escaped


class ChatTemplateError(ValueError):
    """A chat template that cannot be used, or not for these messages; says why."""


class Budget:
    """Of one text that is written. ``given``: characters of the messages. ``nonce``: follows the marks of what is generated,
    if they are wanted."""

    def __init__(self, given: int, nonce: str) -> None:
        self.nonce = nonce
        self._steps = STEPS
        self._characters = min(CHARACTERS + FACTOR * given, MOST_CHARACTERS)
        self._output = OUTPUT + OUTPUT_FACTOR * given

    def spend(self, steps: int) -> None:
        """Raises ChatTemplateError."""
        self._steps -= steps
        if self._steps < 0:
            raise ChatTemplateError("it takes too many steps")

    def make(self, characters: int) -> None:
        """Before a text of so many characters is made. Raises ChatTemplateError."""
        self.spend(1 + characters // PIECE)
        self._characters -= characters
        if self._characters < 0:
            raise ChatTemplateError("it makes too much text on the way")

    def put_out(self, characters: int) -> None:
        """Raises ChatTemplateError."""
        self._output -= characters
        if self._output < 0:
            raise ChatTemplateError("what it writes is far longer than the messages")

    def search(self, text: int, wanted: int) -> None:
        """Before a text of one length is looked for in one of another."""
        self.spend(1 + text // PIECE + text * min(wanted, 100) // SEARCHED)


_budget: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Inside, templates are charged to the budget."""
    token = _budget.set(budget)
    try:
        yield
    finally:
        _budget.reset(token)


def current() -> Budget:
    """The budget of the text that is being written."""
    return _budget.get()


def weigh(value: Any, depth: int = 0) -> Any:
    """The value, its whole tree charged: before it is printed, compared or hashed. Raises ChatTemplateError for what is no
    text, number, truth, nothing, or a list, tuple or object of them."""
    budget = current()
    if isinstance(value, str):
        budget.spend(1 + len(value) // PIECE)
    elif value is None or isinstance(value, bool | int | float | Undefined):
        budget.spend(1)
    elif depth > DEEPEST:
        raise ChatTemplateError("it nests lists too deeply")
    elif isinstance(value, dict):
        budget.spend(1 + len(value))
        for key, each in value.items():
            weigh(key, depth + 1)
            weigh(each, depth + 1)
    elif isinstance(value, list | tuple):
        budget.spend(1)
        for each in value:
            weigh(each, depth + 1)
    else:
        raise ChatTemplateError("it prints or compares what is no value")
    return value


def text_of(value: Any) -> str:
    """The value in print, charged."""
    if isinstance(value, str):
        current().make(len(value))
        return value
    printable(value)
    return str(value)


def printable(value: Any, indent: int = 0) -> None:
    """Charge what a value has in print, each level moved in, before it is printed. Raises ChatTemplateError as `weigh` does."""
    weigh(value)
    current().make(_size(value, indent, 0))


def _size(value: Any, indent: int, depth: int) -> int:
    if isinstance(value, str):
        return WIDEST * len(value) + 2
    if isinstance(value, dict):
        parts = [_size(key, 0, 0) + _size(each, indent, depth + 1) for key, each in value.items()]
    elif isinstance(value, list | tuple):
        parts = [_size(each, indent, depth + 1) for each in value]
    else:
        return len(str(value))
    return sum(parts) + len(parts) * (4 + indent * (depth + 1)) + 2 + indent * depth


def scalar(value: Any) -> Any:
    """A value that can be a key. Raises ChatTemplateError."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ChatTemplateError("it takes a list as a key")


def counted(values: Any) -> Iterator[Any]:
    """The values of anything that can be gone through, each charged."""
    spend = current().spend
    spend(1)
    if isinstance(values, Undefined):
        values = ()
    for value in values:
        spend(1)
        yield value


def bounded(number: Any) -> Any:
    """A number that does not grow without end. Raises ChatTemplateError."""
    if isinstance(number, int) and number.bit_length() > LARGEST_BITS:
        raise ChatTemplateError("it makes numbers too large")
    return number
