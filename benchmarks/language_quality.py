"""A small language model from scratch on a real text, beside a plain hand-written loop of the same size and time.

The text is the reference manual that Python brings along (`pydoc_data.topics`). Every seed holds out a tenth of its
pages, which neither side sees. Ours is the engine with its defaults. The loop is what one writes in an afternoon: torch's
own transformer layers of the same number, width and heads on the same tokens, AdamW with a constant rate, random windows,
until the engine's seconds have passed (those of training and evaluating; reading and the tokenizer are free for both).
It is judged twice: by the weights that it ends with, and by those that did best on a tenth of its pages that it sets
aside as the engine does, evaluated every so many steps within the same seconds. The limit is the better of the two.

    python -m benchmarks.language_quality [--short] [--seeds 3] [--threads 2]
"""

import argparse
import copy
import importlib
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from dlplatform.engine.language import LanguageShape
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.tokens import Tokenizer

from .measuring import report

HELD_OUT = 0.1
RATE, WINDOWS = 1e-3, 16
BETWEEN_EVALUATIONS = 50  # steps of the loop


def pages(seed: int, share: float) -> tuple[list[str], list[str]]:
    """(pages to learn from, held out)."""
    known = sorted(importlib.import_module("pydoc_data.topics").topics.items())
    texts = [text for _, text in known if len(text) > 200]
    order = np.random.default_rng(seed).permutation(len(texts))[: round(len(texts) * share)]
    held = max(2, round(len(order) * HELD_OUT))
    return [texts[place] for place in order[held:]], [texts[place] for place in order[:held]]


def trained(texts: list[str], config: dict[str, Any], folder: Path) -> tuple[Any, float]:
    """(the finished model, seconds from its first step to its last)."""
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.table({"text": texts}), folder / "data" / "part-00000.parquet")
    spec = {
        "format": 1, "run": "benchmark", "attempt": 1, "task": "language-model", "target": "text", "features": [],
        "columns": [{"name": "text", "type": "text"}], "data": ["data/part-00000.parquet"], "config": config,
        "lineage": {},
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec))
    if run_job(folder):
        raise SystemExit((folder / "events.jsonl").read_text()[-2000:])
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    moments = {event["type"]: datetime.fromisoformat(event["time"]) for event in events}
    return Predictor(folder / "output").writer, (moments["finished"] - moments["started"]).total_seconds()


class Plain(nn.Module):
    """(B, L) tokens → (B, L, vocabulary) logits."""

    def __init__(self, shape: LanguageShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.length, shape.width)
        layer = nn.TransformerEncoderLayer(
            shape.width, shape.heads, 4 * shape.width, shape.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, shape.layers, nn.LayerNorm(shape.width), enable_nested_tensor=False)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        state = self.tokens(tokens) + self.places(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        logits: Tensor = self.head(self.body(state, mask=mask, is_causal=True))
        return logits


@dataclass
class Written:
    """What a plain loop ended with."""

    steps: int
    last: nn.Module
    best: nn.Module


def by_hand(texts: list[str], tokenizer: Tokenizer, shape: LanguageShape, seconds: float, seed: int) -> Written:
    """A plain loop of so many seconds."""
    torch.manual_seed(seed)
    aside = max(1, round(len(texts) * HELD_OUT))
    own, stream = stream_of(texts[:aside], tokenizer), stream_of(texts[aside:], tokenizer)
    model = Plain(shape)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    span, steps = torch.arange(shape.length + 1), 0
    best, least = copy.deepcopy(model), math.inf
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        windows = stream[torch.randint(len(stream) - shape.length - 1, (WINDOWS, 1)) + span]
        loss = nn.functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if steps % BETWEEN_EVALUATIONS == 0:
            found = loss_of(model, own, shape.length)
            if found < least:
                best, least = copy.deepcopy(model), found
    return Written(steps, model, best)


def stream_of(texts: list[str], tokenizer: Tokenizer) -> Tensor:
    return torch.tensor([token for codes in tokenizer.encode(texts) for token in [*codes, tokenizer.end]])


def windows_of(stream: Tensor, length: int) -> Iterator[Tensor]:
    """The whole stream in windows of ``length + 1`` tokens, each beginning with the last one before it."""
    for start in range(0, len(stream) - 1, length):
        yield stream[start : start + length + 1]


@torch.inference_mode()
def loss_of(model: nn.Module, stream: Tensor, length: int) -> float:
    """Mean negative log-likelihood of a token, in nats."""
    learning, total = model.training, 0.0
    model.eval()
    for window in windows_of(stream, length):
        logits = model(window[None, :-1])[0]
        total += float(nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    model.train(learning)
    return total / (len(stream) - 1)


def measure(seeds: int, threads: int, share: float, config: dict[str, Any]) -> None:
    ours, last, best, seconds, steps = [], [], [], [], []
    for seed in range(seeds):
        learnt, held = pages(seed, share)
        with tempfile.TemporaryDirectory() as folder:
            writer, taken = trained(learnt, {"seed": seed, "threads": threads, **config}, Path(folder) / "job")
        shape, tested = writer.network.shape, stream_of(held, writer.tokenizer)
        ours.append(loss_of(writer.network, tested, shape.length))
        torch.set_num_threads(threads)
        peer = by_hand(learnt, writer.tokenizer, shape, taken, seed)
        last.append(loss_of(peer.last, tested, shape.length))
        best.append(loss_of(peer.best, tested, shape.length))
        seconds.append(taken)
        steps.append(peer.steps)
        print(
            f"seed {seed}: {ours[-1]:.4f} beside {last[-1]:.4f} (its best {best[-1]:.4f}) after {taken:.0f} s, "
            f"{peer.steps} steps by hand",
            flush=True,
        )
    report(
        "language_quality", "Python's reference manual", seeds=seeds, loss=_mean(ours), hand_written=_mean(last),
        hand_written_best=_mean(best), each=[[round(one, 4) for one in each] for each in zip(ours, last, best, strict=True)],
        seconds=[round(one, 1) for one in seconds], hand_written_steps=steps, limit="below the hand-written loop, also at its best",
        passes=_mean(ours) < min(_mean(last), _mean(best)),
    )  # fmt: skip


def _mean(losses: list[float]) -> float:
    return round(float(np.mean(losses)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a quarter of the text, one seed, 3 epochs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.short:
        measure(1, arguments.threads, 0.25, {"epochs": 3})
    else:
        measure(arguments.seeds, arguments.threads, 1.0, {})


if __name__ == "__main__":
    main()
