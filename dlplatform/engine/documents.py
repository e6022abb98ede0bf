"""Texts for language models: plain ones, prompts with completions, and chats, packed into blocks of one length.

Only what the model is to say is learnt from: all of a plain text, the completion, the assistant's messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from dlplatform.engine.errors import EngineError
from dlplatform.engine.tokens import Tokenizer

ROLES: Final = ("system", "user", "assistant")
ROLE_TOKENS: Final = tuple(f"<{role}>" for role in ROLES)
MOST_MESSAGES: Final = 1000

Array = np.ndarray[Any, Any]
# A piece of text and whether the model is to learn to say it; a role's token begins a message.
Piece = tuple[str, str, bool]


@dataclass(frozen=True)
class Blocks:
    """(n, L + 1) tokens, and for each whether it is learnt to be predicted. ``holds``: (n, 2), the first document of which a
    block holds something, and the one after the last."""

    tokens: Array
    learnt: Array
    holds: Array


def pieces_of(text: str | None, prompt: str | None) -> list[Piece]:
    """The pieces (role token, text, learnt) of one row: a chat, a prompt with its completion, or a text.

    Raises ValueError with what is wrong with a chat.
    """
    if text is None:
        return []
    if text.lstrip().startswith("[{"):
        return chat_pieces(text)
    return [("", prompt, False), ("", text, True)] if prompt else [("", text, True)]


def chat_pieces(text: str) -> list[Piece]:
    """The pieces of a JSON list of {role, content}. Raises ValueError."""
    try:
        messages = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the messages are not valid JSON ({error})") from error
    if not isinstance(messages, list) or len(messages) > MOST_MESSAGES:
        raise ValueError(f"the messages must be a list of at most {MOST_MESSAGES}")
    pieces = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(f"a message needs a role ({', '.join(ROLES)}) and a content")
        pieces.append((f"<{role}>", content, role == "assistant"))
    return pieces


def encode_document(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
    """(tokens, learnt) of one document; an end follows what the model says, and every message of a chat.

    Chats are written by the tokenizer's template where it has one. Raises ChatTemplateError.
    """
    if tokenizer.chat is not None and is_chat(pieces):
        return tokenizer.encode_chat(messages_of(pieces))
    tokens: list[int] = []
    learnt: list[bool] = []
    encoded = tokenizer.encode([text for _, text, _ in pieces])
    for (role, _, said), codes in zip(pieces, encoded, strict=True):
        head = tokenizer.opening(role) if role else []
        tail = tokenizer.closing() if role else [tokenizer.end] if said else []
        tokens += [*head, *codes, *tail]
        learnt += [False] * len(head) + [said] * (len(codes) + len(tail))
    return tokens, learnt


def is_chat(pieces: Sequence[Piece]) -> bool:
    """Whether the pieces are messages."""
    return bool(pieces and pieces[0][0])


def messages_of(pieces: Sequence[Piece]) -> list[dict[str, str]]:
    """The pieces of a chat as messages again."""
    return [{"role": role.strip("<>"), "content": text} for role, text, _ in pieces]


def documents(
    texts: Sequence[str | None], prompts: Sequence[str | None], rows: Sequence[int]
) -> list[tuple[int, list[Piece]]]:
    """(row, pieces) of the rows that say something. Raises EngineError ``bad_data`` naming a row."""
    found = []
    for row in rows:
        try:
            pieces = pieces_of(texts[row], prompts[row])
        except ValueError as error:
            fix = 'Write chats as a JSON list such as [{"role": "user", "content": "…"}].'
            raise EngineError("bad_data", f"Row {row + 1}: {error}.", fix) from error
        if any(text for _, text, _ in pieces):
            found.append((row, pieces))
    return found


def pack(encoded: Sequence[tuple[list[int], list[bool]]], length: int, beat: Callable[[], None]) -> Blocks:
    """Documents one after the other in blocks of ``length + 1`` tokens, each beginning with the last one before it.

    The last block is padded with 0, of which nothing is learnt.
    """
    stream: list[int] = []
    learnt: list[bool] = []
    ends = []
    for tokens, said in encoded:
        stream += tokens
        learnt += said
        ends.append(len(stream))
        beat()
    blocks = max(1, -(-max(len(stream) - 1, 1) // length))
    missing = blocks * length + 1 - len(stream)
    flat = np.array(stream + [0] * missing, np.int32)
    mask = np.array(learnt + [False] * missing, np.bool_)
    starts = np.arange(blocks)[:, None] * length + np.arange(length + 1)[None]
    first, last = starts[:, 0], np.minimum(starts[:, -1], max(len(stream) - 1, 0))
    holds = np.stack([np.searchsorted(ends, first, "right"), np.searchsorted(ends, last, "right") + 1], axis=1)
    return Blocks(flat[starts], mask[starts], holds)
