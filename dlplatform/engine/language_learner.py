"""Learning to write: blocks of tokens, the loss of the next one, perplexity, and samples along the way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from dlplatform.engine.chat_template import ChatTemplateError
from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.documents import ROLE_TOKENS, Blocks, Piece, documents, encode_document, is_chat, pack
from dlplatform.engine.dropout import Share, sharing
from dlplatform.engine.errors import EngineError
from dlplatform.engine.job import JobSpec
from dlplatform.engine.language import LanguageNetwork, LanguageShape, Writing, write
from dlplatform.engine.learner import Learner, Values
from dlplatform.engine.room import require_room
from dlplatform.engine.table import Table
from dlplatform.engine.tokens import Tokenizer, fit_tokenizer, read_tokenizer
from dlplatform.engine.transformers_fresh import naming, writes_texts
from dlplatform.engine.transformers_language import START, STOP, as_language_tokenizer, language_network
from dlplatform.engine.transformers_models import try_out

LEAST_DOCUMENTS: Final = 4
EVALUATION_BLOCKS: Final = 32
SAMPLES: Final = 3
PROMPT_TOKENS: Final = 8
SHOWN_TOKENS: Final = 64
TOKENS_SEEN: Final = 3_000_000  # about, by the default number of epochs

Array = np.ndarray[Any, Any]
Document = tuple[int, list[Piece]]  # its row, and what it says


@dataclass(frozen=True)
class Corpus:
    """Packed documents to train and to validate on, and prompts whose continuation is shown. ``rows``: those of the data
    that the documents to train on are; ``chats``: whether any document is one."""

    tokenizer: Tokenizer
    train: Blocks
    validation: Blocks
    prompts: tuple[tuple[int, ...], ...]
    documents: tuple[int, int]
    config: TrainingConfig
    rows: tuple[int, ...] = ()
    chats: bool = False


def read_corpus(
    spec: JobSpec,
    table: Table,
    beat: Callable[[], None],
    tokenizer: str = "",
    base: tuple[Tokenizer, LanguageShape] | None = None,
) -> Corpus:
    """Split documents, fit a tokenizer on those to train on (or take the given one), encode and pack.

    Raises EngineError: too_few_rows, bad_data.
    """
    texts = table.columns[spec.targets[0].name].to_pylist()
    prompts = table.columns[spec.features[0].name].to_pylist() if spec.features else [None] * len(texts)
    found = documents(texts, prompts, range(len(texts)))
    if len(found) < LEAST_DOCUMENTS:
        raise EngineError("too_few_rows", f"Only {len(found)} rows hold a text; at least {LEAST_DOCUMENTS} are needed.")
    held, learnt = _split(found, spec.config)
    fitted = base[0] if base else _tokenizer(spec.config, [pieces for _, pieces in learnt], tokenizer)
    encoded = [[_encoded(fitted, row, pieces, beat) for row, pieces in part] for part in (learnt, held)]
    size = sum(len(tokens) for tokens, _ in encoded[0]) * max(len(texts), spec.rows) // len(texts)
    config = settle(spec.config, size, base[1] if base else None)
    assert isinstance(config.text_length, int)
    train, validation = (pack(part, config.text_length, beat) for part in encoded)
    if not validation.learnt[:, 1:].any() or not train.learnt[:, 1:].any():
        raise EngineError("bad_data", "There is nothing for the model to learn to say.", "Give texts or completions.")
    return Corpus(
        fitted, train, validation, _prompts(encoded[1]), (len(learnt), len(held)), config,
        rows=tuple(row for row, _ in learnt), chats=any(is_chat(pieces) for _, pieces in found),
    )  # fmt: skip


def _encoded(
    tokenizer: Tokenizer, row: int, pieces: list[Piece], beat: Callable[[], None]
) -> tuple[list[int], list[bool]]:
    try:
        if tokenizer.chat is not None:
            beat()  # a template may take its time over each row
        return encode_document(tokenizer, pieces)
    except ChatTemplateError as error:
        sentence = f"Row {row + 1}: the chat template cannot write this chat: {str(error).rstrip('.')}."
        fix = "Correct or leave out the row, or give another chat_template with the settings of fine-tuning."
        raise EngineError("bad_data", sentence, fix) from error


def _split(found: list[Document], config: TrainingConfig) -> tuple[list[Document], list[Document]]:
    """(held out, to train on), by whole documents."""
    share = config.validation_fraction if isinstance(config.validation_fraction, float) else 0.1
    held = max(1, min(len(found) - 1, round(len(found) * share)))
    order = np.random.default_rng([config.seed, 0x7E87]).permutation(len(found))
    chosen = set(order[:held].tolist())
    return [found[row] for row in sorted(chosen)], [each for row, each in enumerate(found) if row not in chosen]


def _tokenizer(config: TrainingConfig, learnt: list[list[Piece]], known: str) -> Tokenizer:
    if known:
        return _read_as(config, read_tokenizer(known))
    characters = sum(len(text) for pieces in learnt for _, text, _ in pieces)
    size = config.vocabulary if isinstance(config.vocabulary, int) else max(512, min(16_384, characters // 200))
    texts = (text for pieces in learnt for _, text, _ in pieces)
    marks = ROLE_TOKENS if config.text_model is None else (START, STOP)
    return _read_as(config, fit_tokenizer(texts, config.tokenizer, size, marks))


def _read_as(config: TrainingConfig, tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer if config.text_model is None else as_language_tokenizer(tokenizer)


def _prompts(held: list[tuple[list[int], list[bool]]]) -> tuple[tuple[int, ...], ...]:
    """What the model is given and not taught to say; of a plain text its first tokens."""
    found = []
    for tokens, said in held[:SAMPLES]:
        first = said.index(True) if True in said else 0
        found.append(tuple(tokens[: first or min(PROMPT_TOKENS, max(1, len(tokens) // 2))]))
    return tuple(found)


def _shown(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """The text of a prompt, with a dot where a message ends and the next one begins: marks themselves are no text."""
    marks = {code for code, token in tokenizer.inner.get_added_tokens_decoder().items() if token.special}
    groups = (list(group) for marked, group in itertools.groupby(prompt, key=marks.__contains__) if not marked)
    return " · ".join(text for group in groups if (text := tokenizer.decode(group)).strip())


def settle(config: TrainingConfig, tokens: int, base: LanguageShape | None) -> TrainingConfig:
    """Replace every "auto" by a value that suits so many tokens."""
    defaults: dict[str, Any] = {"text_width": 128, "text_layers": 4, "text_heads": 4, "dropout": 0.1}
    if config.text_model is not None:
        defaults = {}
    params = {**defaults, **{name: value for name, value in config.params.items() if value != "auto"}}
    length = base.length if base else config.text_length if isinstance(config.text_length, int) else 128
    epochs = config.epochs if isinstance(config.epochs, int) else max(1, min(40, TOKENS_SEEN // max(tokens, 1)))
    return replace(
        config,
        architecture="auto",
        params={name: value for name, value in params.items() if name in defaults},
        text_encoder="transformer",
        text_length=length,
        epochs=epochs,
        batch_size=16 if config.batch_size == "auto" else config.batch_size,
        learning_rate=(0.0003 if base else 0.001) if config.learning_rate == "auto" else config.learning_rate,
        weight_decay=0.1 if config.weight_decay == "auto" else config.weight_decay,
        validation_fraction=0.1 if config.validation_fraction == "auto" else config.validation_fraction,
        early_stopping=5 if config.early_stopping == "auto" else config.early_stopping,
        label_smoothing=0.0 if config.label_smoothing == "auto" else config.label_smoothing,
        max_grad_norm=config.max_grad_norm or 1.0,
        folds=1,
    )


class LanguageLearner(Learner):
    """Predicts the next token."""

    network: LanguageNetwork

    def __init__(self, corpus: Corpus, device: torch.device, network: LanguageNetwork | None = None) -> None:
        self.corpus = corpus
        self.config = corpus.config
        self.device = device
        self.begins_trained = network is not None
        self.network = network if network is not None else self._new_network()
        self.network.to(device).train()
        self.tokens = torch.from_numpy(corpus.train.tokens).long().to(device)
        self.learnt = torch.from_numpy(corpus.train.learnt).to(device)
        self.train_rows = [torch.arange(len(self.tokens))]

    def _new_network(self) -> LanguageNetwork:
        if (described := writes_texts(self.config, self.corpus.tokenizer)) is not None:
            return self._of_the_library(described)
        params = self.config.params
        assert isinstance(self.config.text_length, int)
        shape = LanguageShape(
            self.corpus.tokenizer.size,
            self.config.text_length,
            params["text_width"],
            params["text_layers"],
            params["text_heads"],
            params["dropout"],
        )
        require_room(lambda: LanguageNetwork(shape), self.config)
        network = LanguageNetwork(shape)
        network.initialise(self.config.seed)
        return network

    def _of_the_library(self, shape: LanguageShape) -> LanguageNetwork:
        with naming("text_model"):
            require_room(lambda: language_network(shape), self.config)
            network = language_network(shape)
            network.initialise(self.config.seed)
            try_out(network)
        return network

    def loss(self, model: nn.Module, rows: Tensor, share: Share) -> Tensor:
        mine = rows[0, share.first : share.last]
        with sharing(share):
            total = self._summed(model, self.tokens[mine], self.learnt[mine])
        return total / self.learnt[rows[0], 1:].sum().clamp(min=1)

    def _summed(self, model: nn.Module, tokens: Tensor, learnt: Tensor) -> Tensor:
        """Sum of the losses of the tokens that are learnt."""
        if self.config.precision == "bfloat16":
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                logits = model(tokens[:, :-1])
        else:
            logits = model(tokens[:, :-1])
        wanted = tokens[:, 1:].masked_fill(~learnt[:, 1:], -100)
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            wanted.flatten(),
            reduction="sum",
            label_smoothing=float(self.config.label_smoothing) if model.training else 0.0,
        )

    def validate(self, network: nn.Module) -> Values:
        loss = self.held_out_loss(network)
        return {"validation/loss": loss, "validation/perplexity": math.exp(min(loss, 50.0))}

    @torch.no_grad()
    def held_out_loss(self, network: nn.Module) -> float:
        """Mean loss of a held-out token."""
        network.eval()
        held, total = self.corpus.validation, torch.zeros((), dtype=torch.float64)
        for first in range(0, len(held.tokens), EVALUATION_BLOCKS):
            part = slice(first, first + EVALUATION_BLOCKS)
            tokens = torch.from_numpy(held.tokens[part]).long().to(self.device)
            learnt = torch.from_numpy(held.learnt[part]).to(self.device)
            total += self._summed(network, tokens, learnt).double().cpu()
        network.train()
        return float(total) / int(held.learnt[:, 1:].sum())

    def places(self, rows: Tensor) -> list[int]:
        held = self.corpus.train.holds[np.unique(rows.cpu().numpy())]
        found = np.unique(np.concatenate([np.arange(first, last) for first, last in held]))
        return [self.corpus.rows[document] for document in found]

    def samples(self, network: nn.Module, agree: Callable[[int], int] = int) -> list[str]:
        assert isinstance(network, LanguageNetwork)
        tokenizer, shown = self.corpus.tokenizer, []
        network.eval()
        for number, prompt in enumerate(self.corpus.prompts):
            how = Writing(SHOWN_TOKENS, seed=self.config.seed + number)
            written = list(write(network, list(prompt), tokenizer.ends, how, agree))
            shown.append(f"{_shown(tokenizer, prompt)}⟶{tokenizer.decode(written)}")
        network.train()
        return shown

    def reference(self) -> float:
        return self.unigram_loss()

    @property
    def judged(self) -> int:
        return self.corpus.documents[1]

    def unigram_loss(self) -> float:
        """The loss of guessing by how often each token occurs: what a model without memory reaches."""
        train, held = self.corpus.train, self.corpus.validation
        counts = np.bincount(train.tokens[train.learnt], minlength=self.corpus.tokenizer.size) + 1.0
        wanted = held.tokens[:, 1:][held.learnt[:, 1:]]
        return float(-np.log(counts / counts.sum())[wanted].mean())
