"""Language models: what is learnt from, how documents are packed, what is written, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlplatform.engine.documents import encode_document, pack, pieces_of
from dlplatform.engine.errors import PackageError, PredictionInputError
from dlplatform.engine.language import LanguageNetwork, LanguageShape, Writing, write
from dlplatform.engine.language_learner import LanguageLearner
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.table import Table
from dlplatform.engine.tokens import fit_tokenizer
from tests.unit.engine.conftest import read_spool
from tests.unit.engine.test_modalities import last_events

CONFIG = {"epochs": 2, "threads": 1, "text_length": 16, "params": {"text_width": 16, "text_layers": 1, "text_heads": 2}}
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_only_what_is_to_be_said_is_learnt() -> None:
    tokenizer = fit_tokenizer(["a b c hi hello"] * 9, "byte", 300, ("<system>", "<user>", "<assistant>"))
    tokens, learnt = encode_document(tokenizer, pieces_of("bc", "a"))
    assert learnt == [False, True, True, True] and tokens[-1] == tokenizer.end
    tokens, learnt = encode_document(tokenizer, pieces_of(json.dumps(CHAT), None))
    said = [token for token, taught in zip(tokens, learnt, strict=True) if taught]
    assert tokenizer.decode(said) == "hello" and said[-1] == tokenizer.end
    assert tokens[0] == tokenizer.code("<user>")
    assert pieces_of(None, "a") == []


def test_blocks_hold_every_token_once_and_nothing_is_learnt_of_padding() -> None:
    blocks = pack([([5, 6, 7, 8], [True] * 4), ([9, 10], [False, True])], 3, lambda: None)
    assert blocks.tokens.tolist() == [[5, 6, 7, 8], [8, 9, 10, 0]]
    assert blocks.learnt[:, 1:].tolist() == [[True, True, True], [False, True, False]]
    assert blocks.holds.tolist() == [[0, 1], [0, 2]]
    assert pack([([5], [True]), ([6, 7, 8], [True] * 3), ([9], [True])], 2, lambda: None).holds.tolist() == [
        [0, 2],
        [1, 3],
    ]


def test_a_loss_without_a_number_names_the_documents(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str | None] = [None, *[f"this is what number {row} says at some length" for row in range(30)]]
    plain, seen = LanguageLearner.loss, []

    def failing(self: LanguageLearner, model: Any, rows: Any, share: Any) -> Any:
        seen.append((self, rows))
        loss = plain(self, model, rows, share)
        return loss * float("nan") if len(seen) == 3 else loss

    monkeypatch.setattr(LanguageLearner, "loss", failing)
    made = job({"text": ("text", texts)}, task="language-model", target="text", config={**CONFIG, "batch_size": 1})
    assert run_job(made) == 1
    failed = read_spool(made, "failed")[0]
    learner, rows = seen[2]
    held = "".join(str(learner.corpus.tokenizer.decode(learner.corpus.train.tokens[int(rows[0, 0])].tolist())))
    named = failed["sentence"].partition("Its batch held the row")[2].partition("of the data")[0]
    places = [int(digits) for digits in re.findall(r"\d+", named)]
    assert places and failed["code"] == "nan_loss"
    whole = [place for place in places if texts[place - 1] and str(texts[place - 1]) in held]
    parts = [place for place in places if place not in whole]
    assert len(parts) <= 2, "a document in the middle of a block is there as a whole"
    assert all(any(word in held for word in str(texts[place - 1]).split()) for place in parts)


@pytest.mark.parametrize("text", ["[{", '[{"role": "king", "content": ""}]', '[{"role": "user"}]', "[{}]"])
def test_what_is_no_chat_names_its_row(job: Callable[..., Path], text: str) -> None:
    made = job({"messages": ("text", ["[]x"] * 4 + [text])}, task="language-model", target="messages", config=CONFIG)
    assert run_job(made) == 1
    failed = read_spool(made, "failed")[0]
    assert failed["code"] == "bad_data" and "Row 5" in failed["sentence"]


def test_nothing_is_written_that_a_database_cannot_hold() -> None:
    tokenizer = fit_tokenizer(["a b"] * 9, "byte", 300)
    assert tokenizer.decode(tokenizer.encode(["a\0b"])[0]) == "ab"


def test_too_few_texts_are_named(job: Callable[..., Path]) -> None:
    made = job({"text": ("text", ["one", None, ""])}, task="language-model", target="text", config=CONFIG)
    assert run_job(made) == 1
    assert read_spool(made, "failed")[0]["code"] == "too_few_rows"


def test_messages_of_a_sample_stand_apart(job: Callable[..., Path]) -> None:
    chat = [{"role": "system", "content": "Be nice."}, *CHAT]
    made = job({"messages": ("text", [json.dumps(chat)] * 20)}, task="language-model", target="messages", config=CONFIG)
    assert run_job(made) == 0, last_events(made)
    prompts = [event["text"].partition("⟶")[0] for event in read_spool(made, "sample")]
    assert prompts and set(prompts) == {f"Be nice. · {CHAT[0]['content']}"}


def test_a_chat_is_learnt_sampled_and_answered(job: Callable[..., Path]) -> None:
    made = job({"messages": ("text", [json.dumps(CHAT)] * 20)}, task="language-model", target="messages", config=CONFIG)
    assert run_job(made) == 0, last_events(made)
    samples = read_spool(made, "sample")
    assert samples and all("⟶" in event["text"] for event in samples)
    predictor = Predictor(made / "output")
    asked: dict[str, Any] = {"messages": CHAT[:1], "max_tokens": 4, "temperature": 0}
    assert predictor.predict([asked]) == predictor.predict([asked])
    assert predictor.predict([{"prompt": json.dumps(CHAT[:1]), "max_tokens": 1}])
    for wrong, column in (
        ({"colour": 1}, "colour"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": True}, "max_tokens"),
        ({"prompt": 3}, "prompt"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages"),
        (3, None),
    ):
        with pytest.raises(PredictionInputError) as caught:
            predictor.predict([wrong])  # type: ignore[list-item]
        assert caught.value.column == column
    with pytest.raises(Exception, match="does not answer tables"):
        predictor.predict_table(Table({}, 0))


def test_the_likeliest_token_needs_no_chance() -> None:
    network = LanguageNetwork(LanguageShape(12, 8, 8, 1, 2))
    network.initialise(0)
    first, second = (list(write(network.eval(), [3, 4], {1}, Writing(6, 0.0, 0, seed))) for seed in (1, 2))
    assert first == second
    for cold in (1e-9, 1e-30, 5e-324):
        assert list(write(network, [3, 4], {1}, Writing(6, cold, 0, 1))) == first, "hardly any chance is none"
    drawn = list(write(network, [3], {1}, Writing(20, 5.0, 3, 1)))
    assert 0 not in drawn and len(drawn) <= 20


@pytest.mark.parametrize(
    "raw", [{}, {"vocabulary": 0}, {"heads": 3}, {"layers": True}, {"dropout": 2}, {"architecture": "spiral"}, {"x": 1}]
)
def test_a_shape_out_of_range_is_refused(raw: dict[str, Any]) -> None:
    good = {"vocabulary": 12, "length": 8, "width": 8, "layers": 1, "heads": 2}
    with pytest.raises(PackageError):
        LanguageShape.from_dict({**good, **raw} if raw else {})


def test_what_comes_later_does_not_matter() -> None:
    network = LanguageNetwork(LanguageShape(12, 8, 8, 2, 2))
    network.initialise(0)
    tokens = torch.tensor([[3, 4, 5, 6]])
    changed = torch.tensor([[3, 4, 5, 9]])
    network.eval()
    with torch.no_grad():
        assert torch.allclose(network(tokens)[:, :3], network(changed)[:, :3], atol=1e-6)
