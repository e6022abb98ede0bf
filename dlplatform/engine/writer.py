"""Texts from a language model, as they are being written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from dlplatform.engine.chat_template import ChatTemplateError
from dlplatform.engine.documents import Piece, chat_pieces, encode_document, messages_of
from dlplatform.engine.errors import PredictionInputError
from dlplatform.engine.language import LanguageNetwork, Writing, write
from dlplatform.engine.tokens import Tokenizer

MOST_TOKENS: Final = 2048
MOST_CHARACTERS: Final = 100_000
# {setting: (default, least, most)}
SETTINGS: Final[dict[str, tuple[float, float, float]]] = {
    "max_tokens": (128, 1, MOST_TOKENS),
    "temperature": (0.8, 0.0, 5.0),
    "top_k": (50, 0, 1_000_000),
    "seed": (0, 0, 2**31 - 1),
}
ACCEPTED: Final = frozenset({"prompt", "messages", *SETTINGS})


class Text(Iterator[str]):
    """A text while it is being written. ``prompt_tokens`` were read, ``tokens`` of at most ``most`` are written so far."""

    def __init__(self, writer: Writer, prompt: list[int], how: Writing) -> None:
        self.prompt_tokens, self.tokens, self.most = len(prompt), 0, how.most_tokens
        self._pieces = self._written(writer, prompt, how)

    def __next__(self) -> str:
        return next(self._pieces)

    def _written(self, writer: Writer, prompt: list[int], how: Writing) -> Iterator[str]:
        written: list[int] = []
        said = 0
        for token in write(writer.network, prompt, writer.tokenizer.ends, how):
            written.append(token)
            self.tokens = len(written)
            text = writer.tokenizer.decode(written)
            # A character may need several tokens; until it is whole it decodes to the replacement character.
            whole = text.rstrip("\ufffd")
            if len(whole) > said:
                yield whole[said:]
                said = len(whole)


class Writer:
    """A loaded language model with its tokenizer."""

    def __init__(self, network: LanguageNetwork, tokenizer: Tokenizer) -> None:
        self.network = network
        self.tokenizer = tokenizer

    def stream(self, row: int, instance: Mapping[str, Any]) -> Text:
        """The continuation of ``prompt`` or of ``messages`` in pieces that are whole characters.

        Raises PredictionInputError, at once and not when the first piece is taken.
        """
        return Text(self, self._prompt(row, instance), _writing(row, instance))

    def _prompt(self, row: int, instance: Any) -> list[int]:
        if not isinstance(instance, Mapping):
            raise PredictionInputError(row, None, "not_an_object", "A row must be an object with a prompt.")
        for name in instance:
            if name not in ACCEPTED:
                known = ", ".join(sorted(ACCEPTED))
                shown = str(name)[:80]
                raise PredictionInputError(row, shown, "unknown_column", f"{shown!r} is not known; there are {known}.")
        if instance.get("messages") is not None:
            return self._chat(row, instance["messages"])
        prompt = instance.get("prompt") or ""
        if not isinstance(prompt, str) or len(prompt) > MOST_CHARACTERS:
            message = f"The prompt is a text of at most {MOST_CHARACTERS:,} characters."
            raise PredictionInputError(row, "prompt", "wrong_type", message)
        if prompt.lstrip().startswith("[{"):
            return self._chat(row, prompt)
        return self.tokenizer.encode([prompt])[0]

    def _chat(self, row: int, messages: Any) -> list[int]:
        try:
            text = messages if isinstance(messages, str) else orjson.dumps(messages).decode()
            pieces = chat_pieces(text)
            if self.tokenizer.chat is not None:
                return self._by_template(pieces)
            tokens, _ = encode_document(self.tokenizer, pieces)
        except (ValueError, TypeError) as error:
            raise PredictionInputError(row, "messages", "bad_messages", f"In messages, {error}.") from None
        return [*tokens, *self.tokenizer.opening("<assistant>")]

    def _by_template(self, pieces: Sequence[Piece]) -> list[int]:
        try:
            return self.tokenizer.encode_question(messages_of(pieces))
        except ChatTemplateError as error:
            raise ValueError(f"the model's chat template refuses them: {str(error).rstrip('.')}") from None


def _writing(row: int, instance: Mapping[str, Any]) -> Writing:
    values = {}
    for name, (default, least, most) in SETTINGS.items():
        value = instance.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            message = f"{name} is a number from {least:g} to {most:g}."
            raise PredictionInputError(row, name, "out_of_range", message)
        values[name] = value
    return Writing(int(values["max_tokens"]), float(values["temperature"]), int(values["top_k"]), int(values["seed"]))
