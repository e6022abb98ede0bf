"""The dialect of Jinja in which chat templates are run: which names, calls and operators are there.

It is what the ``transformers`` library gives them (trimmed blocks, break and continue, ``{% generation %}``, ``tojson``,
``raise_exception``, ``strftime_now``, ``namespace``), less whatever reaches for files, chance, or objects of Python.
"""

from __future__ import annotations

import datetime
import operator
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import FunctionType
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, Undefined
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from dlplatform.engine.chat_budget import (
    PIECE,
    ChatTemplateError,
    bounded,
    counted,
    current,
    scalar,
    text_of,
    weigh,
)
from dlplatform.engine.chat_filters import FILTERS, TESTS, contains
from dlplatform.engine.chat_methods import Method
from dlplatform.engine.chat_syntax import GenerationBlocks

MOST_RANGE: Final = 10_000
# Templates that put today's date into a text get this one: the same messages are to be written in the same way.
TODAY: Final = datetime.date(2024, 7, 26)
_SCOPES: Final = ("_loop_vars", "_block_vars")  # which Jinja hands to every call
_LOOP: Final = frozenset(
    {"index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem"}
)
_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": operator.eq, "ne": operator.ne, "gt": operator.gt, "gteq": operator.ge, "lt": operator.lt, "lteq": operator.le,
}  # fmt: skip


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Names, calls and operators of templates, all by lists of what is allowed."""

    intercepted_binops = frozenset({"//", "%", "+", "*", "-", "/", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[GenerationBlocks, loopcontrols]
        )
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self.globals = dict(_GLOBALS)
        for name, function in _OURS.items():
            setattr(self, f"our_{name}", function)

    def getattr(self, obj: Any, attribute: str) -> Any:
        current().spend(1)
        if (method := Method.of(obj, attribute)) is not None:
            return method
        return self._member(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        current().spend(1)
        found = self._member(obj, scalar(argument))
        if isinstance(found, Undefined) and isinstance(argument, str):
            return Method.of(obj, argument) or found
        return found

    def _member(self, obj: Any, name: Any) -> Any:
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        try:
            if isinstance(obj, dict) or (isinstance(obj, list | tuple | str) and isinstance(name, int)):
                return obj[name]  # type: ignore[index]
            if isinstance(obj, LoopContext) and name in _LOOP:
                return getattr(obj, name)
            if isinstance(obj, Namespace) and isinstance(name, str) and not name.startswith("_"):
                return getattr(obj, name)
        except (LookupError, AttributeError):
            pass
        return self.undefined(obj=obj, name=str(name)[:80])

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        current().spend(1)
        if isinstance(__obj, Macro):
            return __context.call(__obj, *args, **kwargs)
        for name in _SCOPES:
            kwargs.pop(name, None)
        if isinstance(__obj, Method):
            return __obj.called(*args, **kwargs)
        if isinstance(__obj, Undefined):
            __obj._fail_with_undefined_error()
        if isinstance(__obj, FunctionType) and __obj in _CALLED:
            return __obj(*args, **kwargs)
        raise ChatTemplateError("it calls what is no function of templates")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        current().spend(1)
        if isinstance(left, int | float) and isinstance(right, int | float):
            if operator == "**":
                _check_power(left, right)
            return bounded(self.binop_table[operator](left, right))
        if operator == "+" and type(left) is type(right) and isinstance(left, str | list | tuple):
            size = len(left) + len(right)
            _charge_copy(left, size)
            return left + right
        if operator == "*" and isinstance(left, str) and isinstance(right, int):
            current().make(len(left) * max(right, 0))
            return left * right
        for value in (left, right):
            if isinstance(value, Undefined):
                value._fail_with_undefined_error()
        raise ChatTemplateError(f"it applies {operator} to what it is not for")


def _charge_copy(value: Any, size: int) -> None:
    if isinstance(value, str):
        current().make(size)
    else:
        current().spend(1 + size)


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int):
        bounded(1 << min(base.bit_length() * max(exponent, 0), 1 << 12))


@lru_cache(maxsize=1)
def environment_of() -> ChatEnvironment:
    """The one environment of all templates."""
    return ChatEnvironment()


# --- what the syntax tree calls -----------------------------------------------------------------------


def _told(value: Any) -> str:
    return text_of(value)


def _spent(steps: int) -> str:
    current().spend(steps)
    return ""


def _mark(sign: str) -> str:
    nonce = current().nonce
    return sign + nonce if nonce else ""


def _joined(values: list[Any]) -> str:
    texts = [text_of(value) for value in values]
    current().make(sum(map(len, texts)))
    return "".join(texts)


class _Counted:
    """What a loop goes through, each turn charged."""

    def __init__(self, values: list[Any], cost: int) -> None:
        self._values, self._cost = values, cost

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        spend = current().spend
        for value in self._values:
            spend(self._cost)
            yield value


def _looped(values: Any, cost: int) -> _Counted:
    return _Counted(list(counted(values)), cost)


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    if not isinstance(value, str | list | tuple):
        raise ChatTemplateError("it takes a part of what has none")
    _charge_copy(value, len(value))
    return value[start:stop:step]


def _compared(sign: str, left: Any, right: Any) -> bool:
    if sign in ("in", "notin"):
        return contains(left, right) == (sign == "in")
    if not isinstance(left, _Counted | LoopContext):
        _weigh_for_comparison(left, right)
    return bool(_COMPARISONS[sign](left, right))


def _weigh_for_comparison(left: Any, right: Any) -> None:
    """Only what is equal in kind is looked into."""
    if isinstance(left, str) and isinstance(right, str):
        current().spend(1 + min(len(left), len(right)) // PIECE)
    elif isinstance(left, list | tuple | dict) and isinstance(right, list | tuple | dict):
        weigh(left)
        weigh(right)


def _range(*bounds: Any) -> list[int]:
    if not all(isinstance(bound, int) for bound in bounds) or not 1 <= len(bounds) <= 3:
        raise ChatTemplateError("it asks for a range of what are no numbers")
    found = range(*bounds)
    if len(found) > MOST_RANGE:
        raise ChatTemplateError(f"it asks for a range of more than {MOST_RANGE:,} numbers")
    current().spend(len(found))
    return list(found)


def _dict(_given: Any = None, /, **named: Any) -> dict[str, Any]:
    given = dict(_given) if isinstance(_given, dict) else {}
    current().spend(len(given) + len(named))
    return {**given, **named}


def _namespace(_given: Any = None, /, **named: Any) -> Namespace:
    return Namespace(_dict(_given, **named))


def _raise_exception(message: Any = "") -> NoReturn:
    raise TemplateError(text_of(message)[:300])


def _strftime_now(form: Any = "") -> str:
    """``TODAY`` in a form of strftime, of which only what is plain is known: the C library's widths fill memories."""
    known = {sign: TODAY.strftime(f"%{sign}") for sign in "dmYybBaAj"} | dict.fromkeys("HMS", "00") | {"%": "%"}
    text = re.sub("%(.)", lambda found: known.get(found[1], ""), text_of(form))
    current().make(len(text))
    return text


_OURS: Final[dict[str, Any]] = {
    "told": _told, "spent": _spent, "mark": _mark, "joined": _joined, "looped": _looped, "sliced": _sliced,
    "compared": _compared, "scalar": scalar,
}  # fmt: skip
_GLOBALS: Final[dict[str, Any]] = {
    "range": _range, "dict": _dict, "namespace": _namespace, "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
}  # fmt: skip
_CALLED: Final = frozenset({*_OURS.values(), *_GLOBALS.values()})
