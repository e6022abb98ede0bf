"""Filters and tests that chat templates may use. Jinja's others make texts of any length, or depend on chance."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import jinja2
from jinja2 import Undefined, pass_context, pass_environment
from jinja2.filters import FILTERS as THEIRS
from jinja2.tests import TESTS as THEIR_TESTS

from dlplatform.engine.chat_budget import PIECE, ChatTemplateError, counted, current, printable, scalar, text_of, weigh
from dlplatform.engine.chat_methods import METHODS, joined, replaced

WIDEST: Final = 16  # spaces by which something is moved in
SORTED: Final = 16  # times that sorting looks at a value


def _lazily(name: str) -> Callable[..., Any]:
    """One of Jinja's that goes through values one by one, and calls filters, tests and members of this environment."""
    theirs = THEIRS[name]

    @pass_context
    def method(context: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        return theirs(context, counted(values), *args, **kwargs)

    return method


def _ordered(name: str) -> Callable[..., Any]:
    theirs = THEIRS[name]

    @pass_environment
    def method(environment: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        values = values if isinstance(values, dict) else list(counted(values))
        for _ in range(SORTED):
            weigh(values)
        return list(theirs(environment, values, *args, **kwargs))

    return method


def _dictsort(values: Any, *args: Any, **kwargs: Any) -> Any:
    for _ in range(SORTED):
        weigh(values)
    return THEIRS["dictsort"](values, *args, **kwargs)


def _method(name: str) -> Callable[..., str]:
    def method(value: Any) -> str:
        made: str = METHODS["text"][name](text_of(value))
        return made

    return method


def _trimmed(value: Any, signs: Any = None) -> str:
    trimmed: str = METHODS["text"]["strip"](text_of(value), signs)
    return trimmed


def _replaced(value: Any, old: Any, new: Any, count: Any = None) -> str:
    return replaced(text_of(value), text_of(old), text_of(new), count)


@pass_environment
def _joined(environment: jinja2.Environment, values: Any, separator: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = [environment.getitem(value, attribute) for value in counted(values)]
    return joined(text_of(separator), values)


def _length(value: Any) -> int:
    if isinstance(value, Undefined):
        return 0
    if not isinstance(value, str | list | tuple | dict):
        raise ChatTemplateError("it asks for the length of what has none")
    return len(value)


def _listed(values: Any) -> list[Any]:
    return list(counted(values))


def _end_of(values: Any, place: int) -> Any:
    found = values if isinstance(values, str | list | tuple) else list(counted(values))
    return found[place] if found else jinja2.Undefined("there is no item in what is empty")


def _items(value: Any) -> list[Any]:
    if isinstance(value, Undefined):
        return []
    if not isinstance(value, dict):
        raise ChatTemplateError("it asks for the items of what is no object")
    current().spend(len(value))
    return list(value.items())


def _reversed(value: Any) -> Any:
    if isinstance(value, str):
        current().make(len(value))
        return value[::-1]
    return list(counted(value))[::-1]


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if indent is not None and (not isinstance(indent, int) or not 0 <= indent <= WIDEST):
        raise ChatTemplateError(f"it moves JSON in by other than up to {WIDEST} spaces")
    printable(value, indent or 0)
    pair = tuple(text_of(each)[:8] for each in separators) if isinstance(separators, list | tuple) else None
    return json.dumps(
        value, ensure_ascii=bool(ensure_ascii), indent=indent, separators=pair if pair and len(pair) == 2 else None,
        sort_keys=bool(sort_keys),
    )  # fmt: skip


def _indented(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    space = (
        width if isinstance(width, str) else " " * width if isinstance(width, int) and 0 <= width <= WIDEST else None
    )
    if space is None or len(space) > WIDEST:
        raise ChatTemplateError(f"it moves a text in by other than up to {WIDEST} spaces")
    lines = text_of(value).splitlines()
    current().make(sum(map(len, lines)) + len(lines) * (len(space) + 1))
    moved = [space + line if (line or blank) and (first or place) else line for place, line in enumerate(lines)]
    return "\n".join(moved)


def _number(name: str) -> Callable[..., Any]:
    theirs: Any = THEIRS[name]

    def method(value: Any, default: Any = 0, *_base: Any) -> Any:
        weigh(value)
        return theirs(value, default)

    return method


def _absolute(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise ChatTemplateError("it asks for the size of what is no number")
    return abs(value)


def _same(value: Any) -> Any:
    """``safe``: nothing is escaped here."""
    return value


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    **{name: _lazily(name) for name in ("map", "select", "reject", "selectattr", "rejectattr")},
    **{name: _ordered(name) for name in ("sort", "unique", "min", "max")},
    **{name: _method(name) for name in ("upper", "lower", "title", "capitalize")},
    **dict.fromkeys(("length", "count"), _length),
    **dict.fromkeys(("default", "d"), THEIRS["default"]),
    **{name: _number(name) for name in ("int", "float")},
    "trim": _trimmed, "replace": _replaced, "join": _joined, "list": _listed, "items": _items, "reverse": _reversed,
    "first": lambda values: _end_of(values, 0), "last": lambda values: _end_of(values, -1), "tojson": _tojson,
    "indent": _indented, "string": text_of, "safe": _same, "abs": _absolute, "dictsort": _dictsort,
}  # fmt: skip


def _plain(name: str) -> Any:
    return THEIR_TESTS[name]


def _weighed(name: str) -> Callable[..., bool]:
    theirs: Any = THEIR_TESTS[name]

    def test(*values: Any) -> bool:
        for value in values:
            weigh(value)
        return bool(theirs(*values))

    return test


def contains(one: Any, values: Any) -> bool:
    """Whether something is in a text, a list or an object. Raises ChatTemplateError."""
    if isinstance(values, str) and isinstance(one, str):
        current().search(len(values), len(one))
    elif isinstance(values, dict):
        scalar(one)
    elif isinstance(values, list | tuple):
        current().spend(len(values) * (1 + (len(one) // PIECE if isinstance(one, str) else 0)))
        if isinstance(one, list | tuple | dict):
            weigh(one)
            weigh(values)
    elif isinstance(values, Undefined):
        return False
    else:
        raise ChatTemplateError("it looks into what holds nothing")
    return one in values


TESTS: Final[dict[str, Callable[..., Any]]] = {
    **{
        name: _plain(name)
        for name in (
            "defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true", "false", "mapping",
            "sequence", "iterable", "sameas",
        )
    },
    **{
        name: _weighed(name)
        for name in (
            "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan", "<=", "le",
            "odd", "even", "divisibleby", "lower", "upper",
        )
    },
    "in": contains,
}  # fmt: skip
