"""What OpenAI's clients ask, as the platform's language models take it: pure functions."""

from dataclasses import dataclass
from typing import Any

from rest_framework.exceptions import ErrorDetail, ValidationError

from dlplatform.api import can_be_encoded, writable

MOST_TOKENS = 2048
MOST_STOPS, LONGEST_STOP = 4, 200
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What would change the answer and cannot be done; given with another value than these it is refused.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "top_p": (1,), "logprobs": (False, 0), "top_logprobs": (0,), "echo": (False,),
    "suffix": ("",), "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "tools": ([],),
    "functions": ([],), "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """``instance`` as the models take it; ``key`` chooses the variant."""

    model: str
    chat: bool
    instance: dict[str, Any]
    key: str | None
    stream: bool
    include_usage: bool
    stop: tuple[str, ...]


def question_of(told: Any, *, chat: bool) -> Question:
    """Raises ValidationError that names the parameter."""
    if not isinstance(told, dict):
        raise ValidationError("Send a JSON object.")
    for name, value in told.items():
        if not can_be_encoded(value):
            raise _wrong(writable(name), "It holds half a surrogate pair, which is no character. Remove it.")
    model = told.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= 200:
        raise _wrong("model", "Name a deployment; /v1/models lists them.")
    for name, good in HARMLESS.items():
        if told.get(name) is not None and told[name] not in good:
            raise _wrong(name, "This cannot be done here; leave it out.", "unsupported_parameter")
    options = told.get("stream_options")
    return Question(
        model=model, chat=chat, instance=_instance(told, chat), key=_key(told.get("user")),
        stream=_flag("stream", told.get("stream")),
        include_usage=isinstance(options, dict) and options.get("include_usage") is True, stop=_stops(told.get("stop")),
    )  # fmt: skip


def _instance(told: dict[str, Any], chat: bool) -> dict[str, Any]:
    instance: dict[str, Any] = {"messages": _messages(told.get("messages"))} if chat else {"prompt": _prompt(told)}
    most = told.get("max_completion_tokens", told.get("max_tokens"))
    instance["max_tokens"] = (512 if chat else 16) if most is None else _number("max_tokens", most, 1, 1e9, whole=True)
    instance["max_tokens"] = min(instance["max_tokens"], MOST_TOKENS)
    temperature = told.get("temperature")
    instance["temperature"] = 1.0 if temperature is None else _number("temperature", temperature, 0, 2)
    if told.get("seed") is not None:
        instance["seed"] = int(_number("seed", told["seed"], -(2**63), 2**63 - 1, whole=True)) % 2**31
    if told.get("top_k") is not None:
        instance["top_k"] = _number("top_k", told["top_k"], 0, 1_000_000, whole=True)
    return instance


def _messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "Give a list of messages with role and content.")
    return [_message(message, position) for position, message in enumerate(messages)]


def _message(message: Any, position: int) -> dict[str, str]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise _wrong("messages", f"Message {position} needs one of the roles {', '.join(ROLES)}.")
    content = message.get("content")
    if isinstance(content, list):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]
    if not isinstance(content, str):
        raise _wrong("messages", f"Message {position} needs a content of text.")
    return {"role": ROLES[role], "content": content}


def _prompt(told: dict[str, Any]) -> str:
    prompt = told.get("prompt", "")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise _wrong("prompt", "Give one text.")
    return prompt


def _number(name: str, value: Any, least: float, most: float, *, whole: bool = False) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not least <= value <= most:
        raise _wrong(name, f"Give a {'whole ' if whole else ''}number from {least:g} to {most:g}.")
    return value


def _flag(name: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, "Give true or false.")
    return value is True


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    good = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not good or not all(isinstance(one, str) and 0 < len(one) <= LONGEST_STOP for one in stops):
        raise _wrong("stop", f"Give up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters.")
    return tuple(stops)


def _key(user: Any) -> str | None:
    """OpenAI's `user` is whom the answer is for: one of them always gets the same variant."""
    if user is None or user == "":
        return None
    if not isinstance(user, str) or len(user) > 200 or not user.isprintable():
        raise _wrong("user", "Give a text of up to 200 characters.")
    return user


def _wrong(name: str, sentence: str, code: str = "invalid") -> ValidationError:
    return ValidationError({name: [ErrorDetail(sentence, code=code)]})


class Stopping:
    """Holds back what may be the beginning of a stop sequence."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """What can be told now. Once ``stopped``, nothing follows."""
        self._held += piece
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        told, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return told

    def rest(self) -> str:
        """What was held back, when the text has ended."""
        return self._held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text with which a stop sequence begins."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
