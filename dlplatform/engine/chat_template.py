"""Chat templates: programs in Jinja that come with models and say how their messages are written. Torch-free.

Whoever made the model wrote the template, so it is hostile until it has ended. It is parsed by Jinja, and what it may do is
rewritten in its syntax tree: only what `chat_program` knows is there, and whatever could go on for ever or fill the memory is
charged to a budget before it happens (`chat_budget`). Nothing of it knows the time of day or chance, so that the same messages
are always written in the same way.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import jinja2
import orjson

from dlplatform.engine.chat_budget import Budget, ChatTemplateError, spending
from dlplatform.engine.chat_program import environment_of
from dlplatform.engine.chat_syntax import GENERATION_ENDS, GENERATION_STARTS, tamed
from dlplatform.engine.errors import PackageError

FILE: Final = "chat_template.jinja"
CONFIG: Final = "tokenizer_config.json"
CONFIG_BYTES: Final = 16 << 20
MAXIMUM_BYTES: Final = 64 << 10
BASE, USUAL = "base", "usual"  # whose template: the base's own, or none: the marks that every tokenizer has
LONGEST_REASON: Final = 300
MOST_TOKENS, LONGEST_TOKEN = 20, 200
# What a tokenizer's configuration may name for its template.
NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Message = Mapping[str, str]
Span = tuple[int, int]


@dataclass(frozen=True)
class ChatTemplate:
    """How a model's messages are written. ``tokens``: the special tokens that a template may name, by their names in it.

    Raises ChatTemplateError when it is made, for one that is too large or cannot be read.
    """

    text: str
    tokens: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.text.encode("utf-8", "replace")) > MAXIMUM_BYTES:
            raise ChatTemplateError(f"it is larger than {MAXIMUM_BYTES >> 10} KB")
        _compiled(self.text)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `chat_of` reads it back."""
        return {"template": self.text, "tokens": dict(self.tokens)}

    def written(self, messages: Sequence[Message], *, answering: bool = False) -> str:
        """The text of messages; ``answering``: up to where the assistant's next answer begins. Raises ChatTemplateError."""
        return self._rendered(messages, answering, "")

    def answered(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of messages, and where in it the assistant's answers are, each with what ends it.

        Raises ChatTemplateError where an answer cannot be told from the rest: what comes before it is not written as when it
        is asked for.
        """
        marked = "{%" in self.text and re.search(r"\{%[-+]?\s*generation\b", self.text) is not None
        return self._by_marks(messages) if marked else self._by_prefixes(messages)

    def _by_marks(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        nonce = secrets.token_hex(16)  # no message can know it
        text, spans, start = "", [], 0
        for piece in re.split(
            f"([{GENERATION_STARTS}{GENERATION_ENDS}]){nonce}", self._rendered(messages, False, nonce)
        ):
            if piece == GENERATION_STARTS:
                start = len(text)
            elif piece == GENERATION_ENDS:
                spans.append((start, len(text)))
            else:
                text += piece
        return text, spans

    def _by_prefixes(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        text = self.written(messages)
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        return text, [self._span(text, messages, place) for place in places]

    def _span(self, text: str, messages: Sequence[Message], place: int) -> Span:
        before = self.written(messages[:place], answering=True)
        if text.startswith(before):
            after = self.written(messages[: place + 1]) if place + 1 < len(messages) else text
            if text.startswith(after) and len(after) >= len(before):
                return len(before), len(after)
            if (end := _end(text, before, after, messages[place]["content"].strip())) is not None:
                return len(before), end
        raise ChatTemplateError(
            f"it writes message {place + 1} otherwise than what it asks an answer for, so the answer cannot be told from "
            "the rest; take another chat_template"
        )

    def _rendered(self, messages: Sequence[Message], answering: bool, nonce: str) -> str:
        plain = [{"role": str(each["role"]), "content": str(each["content"])} for each in messages]
        budget = Budget(sum(len(each["content"]) for each in plain), nonce)
        known = {**self.tokens, "messages": plain, "add_generation_prompt": answering, "tools": None, "documents": None}
        try:
            with spending(budget):
                pieces = []
                for piece in _compiled(self.text).generate(known):
                    budget.put_out(len(piece))
                    pieces.append(piece)
        # A foreign program ends in whatever way it likes, and all of them are its own fault.
        except Exception as error:
            raise ChatTemplateError(_reason(error)) from error
        return "".join(pieces)


def _end(text: str, before: str, after: str, content: str) -> int | None:
    """Where an answer ends in a text that writes its last answer otherwise (with an empty thought, say) than earlier ones."""
    at = after.rfind(content)
    if at < len(before) or not after.startswith(before):
        return None
    closing = after[at + len(content) :]
    for lead in ("", after[len(before) : at]):
        if text.startswith(lead + content + closing, len(before)):
            return len(before) + len(lead + content + closing)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, ChatTemplateError):
        return str(error)
    told = " ".join(str(error).split())[:LONGEST_REASON].rstrip(".")
    if isinstance(error, RecursionError):
        return "it calls itself without an end"
    return told if isinstance(error, jinja2.TemplateError) and told else f"{type(error).__name__}: {told}"


@lru_cache(maxsize=32)
def _compiled(text: str) -> jinja2.Template:
    try:
        environment = environment_of()
        code = environment.compile(tamed(environment.parse(text), environment))
        return jinja2.Template.from_code(environment, code, environment.globals)
    # Python itself refuses some of what Jinja makes of a template that is nested too deeply, in several ways.
    except Exception as error:
        raise ChatTemplateError(_reason(error)) from error


def chat_of(raw: Any) -> ChatTemplate | None:
    """The template that a package describes, None where it has none. Raises PackageError."""
    if raw is None or (isinstance(raw, dict) and raw.get("template") is None):
        return None
    text, tokens = (raw.get("template"), raw.get("tokens", {})) if isinstance(raw, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(tokens, dict) or len(tokens) > MOST_TOKENS:
        raise PackageError("The package describes no chat template that can be read.")
    try:
        return ChatTemplate(text, _tokens(tokens))
    except ChatTemplateError as error:
        raise PackageError(f"The chat template of the package cannot be used: {error}.") from error


def template_in(config: Any, file: str | None) -> tuple[str | None, dict[str, str]]:
    """(text, special tokens) of the template that a Hugging Face directory brings, as the ``transformers`` library finds it:
    ``chat_template.jinja``, else what ``tokenizer_config.json`` says, of several the one called default."""
    said = config if isinstance(config, dict) else {}
    found = file if file is not None else said.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    elif isinstance(found, dict):
        found = found.get("default")
    return (found if isinstance(found, str) and found.strip() else None), _tokens(said)


def _tokens(said: Mapping[Any, Any]) -> dict[str, str]:
    """The special tokens among what is said: texts, or objects that hold one."""
    found = {}
    for name in NAMED:
        value = said.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str) and 0 < len(value) <= LONGEST_TOKEN:
            found[name] = value
    return found


def template_of(config: bytes | None, file: bytes | None) -> tuple[str | None, dict[str, str]]:
    """As `template_in`, of what the two files hold, if they are there."""
    return template_in(_read(config), file.decode("utf-8", "replace") if file is not None else None)


def problem_with(config: bytes | None, file: bytes | None) -> str | None:
    """Why the template of a Hugging Face directory cannot be used; None if it can, or where there is none. ``config`` and
    ``file``: what its ``tokenizer_config.json`` and ``chat_template.jinja`` hold, if they are there."""
    text, named = template_of(config, file)
    try:
        _ = ChatTemplate(text, named) if text is not None else None
    except ChatTemplateError as error:
        return str(error).rstrip(".")
    return None


def _read(config: bytes | None) -> Any:
    """Nothing but a template is looked for in it, so that one that cannot be read has none."""
    try:
        return orjson.loads(config) if config is not None else None
    except orjson.JSONDecodeError:
        return None
