"""Methods of values that chat templates may call: those of texts that make nothing longer than it should be, and of objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dlplatform.engine.chat_budget import PIECE, SEARCHED, ChatTemplateError, counted, current, scalar, text_of

_STRIPPING: Final = ("strip", "lstrip", "rstrip", "removeprefix", "removesuffix")
_CASES: Final = ("upper", "lower", "title", "capitalize", "casefold", "swapcase")
_ASKING: Final = ("isalpha", "isalnum", "isdigit", "isdecimal", "isnumeric", "isspace", "isupper", "islower", "istitle")


@dataclass(frozen=True)
class Method:
    """A method of a value, to be called by a template and for nothing else."""

    value: Any
    name: str

    @staticmethod
    def of(value: Any, name: str) -> Method | None:
        """The method of that name, if templates have it."""
        known = METHODS["text"] if isinstance(value, str) else METHODS["object"] if isinstance(value, dict) else {}
        return Method(value, name) if name in known else None

    def called(self, *args: Any, **kwargs: Any) -> Any:
        """What the method answers. Raises ChatTemplateError."""
        if kwargs:
            raise ChatTemplateError(f"it gives {self.name} arguments by name")
        return METHODS["text" if isinstance(self.value, str) else "object"][self.name](self.value, *args)


def _shortening(name: str) -> Callable[..., str]:
    def method(text: str, sign: Any = None) -> str:
        current().search(len(text), len(sign) if isinstance(sign, str) else 1)
        current().make(len(text))
        made: str = getattr(str, name)(text, *((_text(sign),) if sign is not None else ()))
        return made

    return method


def _changing(name: str) -> Callable[..., str]:
    def method(text: str) -> str:
        current().make(3 * len(text))  # as many characters as one may become
        made: str = getattr(str, name)(text)
        return made

    return method


def _asking(name: str) -> Callable[..., bool]:
    def method(text: str) -> bool:
        current().spend(1 + len(text) // PIECE)
        told: bool = getattr(str, name)(text)
        return told

    return method


def _edge(name: str) -> Callable[..., bool]:
    def method(text: str, sign: Any) -> bool:
        signs = tuple(map(_text, sign)) if isinstance(sign, tuple | list) else (_text(sign),)
        current().spend(len(signs) + sum(map(len, signs)) // PIECE)
        told: bool = getattr(str, name)(text, signs)
        return told

    return method


def _searching(name: str) -> Callable[..., Any]:
    def method(text: str, sign: Any, *more: Any) -> Any:
        current().search(len(text), len(_text(sign)))
        return getattr(str, name)(text, sign, *map(_whole, more))

    return method


def _backwards(name: str) -> Callable[..., Any]:
    """What Python looks for from the end takes the product of both lengths at worst."""

    def method(text: str, sign: Any, *more: Any) -> Any:
        current().spend(1 + len(text) * len(_text(sign)) // SEARCHED)
        current().make(len(text))
        return getattr(str, name)(text, sign, *map(_whole, more))

    return method


def _parting(name: str) -> Callable[..., Any]:
    def method(text: str, sign: Any = None, *more: Any) -> Any:
        current().search(len(text), len(sign) if isinstance(sign, str) else 1)
        current().spend(_pieces(text, None if name == "splitlines" else sign))
        current().make(len(text))
        signs = () if name == "splitlines" else (None if sign is None else _text(sign), *map(_whole, more))
        return getattr(str, name)(text, *signs)

    return method


def _pieces(text: str, sign: Any) -> int:
    """At most about so many there will be: by nothing in particular a text is parted into words or lines."""
    return 1 + (text.count(sign) if isinstance(sign, str) and sign else len(text) // 4)


def replaced(text: str, old: Any, new: Any, count: Any = -1) -> str:
    """As `str.replace`, its length charged before it is made."""
    old, new, count = _text(old), _text(new), -1 if count is None else _whole(count)
    current().search(len(text), len(old))
    times = text.count(old)
    times = times if count < 0 else min(times, count)
    current().make(len(text) + times * max(len(new) - len(old), 0))
    return text.replace(old, new, count)


def joined(separator: str, values: Any) -> str:
    """As `str.join`, of anything that can be printed."""
    texts = [text_of(value) for value in counted(values)]
    current().make(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ChatTemplateError("it gives a method of texts what is no text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ChatTemplateError("it gives a method of texts what is no whole number")
    return value


def _got(members: dict[Any, Any], name: Any, default: Any = None) -> Any:
    return members.get(scalar(name), default)


def _listed(name: str) -> Callable[..., list[Any]]:
    def method(members: dict[Any, Any]) -> list[Any]:
        current().spend(1 + len(members))
        return list(getattr(dict, name)(members))

    return method


METHODS: Final[dict[str, dict[str, Callable[..., Any]]]] = {
    "text": {
        **{name: _shortening(name) for name in _STRIPPING},
        **{name: _changing(name) for name in _CASES},
        **{name: _asking(name) for name in _ASKING},
        **{name: _edge(name) for name in ("startswith", "endswith")},
        **{name: _searching(name) for name in ("find", "index", "count")},
        **{name: _backwards(name) for name in ("rfind", "rindex", "rsplit", "rpartition")},
        **{name: _parting(name) for name in ("split", "splitlines", "partition")},
        "replace": replaced,
        "join": joined,
    },
    "object": {"get": _got, **{name: _listed(name) for name in ("items", "keys", "values")}},
}
