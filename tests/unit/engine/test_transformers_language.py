"""GPT-like models of the transformers library as bases of language models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dlplatform.engine import package
from dlplatform.engine.adapters import frozen, merged
from dlplatform.engine.chat_template import ChatTemplate
from dlplatform.engine.documents import chat_pieces, encode_document
from dlplatform.engine.errors import PredictionInputError
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.transformers_language import language_network, read_language_tokenizer
from dlplatform.engine.transformers_models import read_base
from tests.unit.engine.conftest import read_spool
from tests.unit.engine.test_modalities import last_events
from tests.unit.engine.transformers_bases import tiny_bert, tiny_gpt

CONFIG = {"epochs": 2, "threads": 1, "batch_size": 4, "text_length": 16}
CHAT = [{"role": "user", "content": "the item?"}, {"role": "assistant", "content": "good"}]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt(tmp_path_factory.mktemp("bases") / "gpt")


def tune(
    job: Callable[..., Path], base: Path, name: str = "tuned", texts: list[str] | None = None, **finetune: Any
) -> Path:
    said = texts or [f"the item {row} is very good" for row in range(24)]
    made = job(
        {"text": ("text", said)}, name=name, task="language-model", target="text", config=CONFIG, finetune=finetune
    )
    shutil.copytree(base, made / "base")
    return made


def trained(made: Path) -> Path:
    assert run_job(made) == 0, last_events(made)
    return made / "output"


@pytest.mark.parametrize("mode", ["full", "head"])
def test_a_decoder_learns_to_write_on(job: Callable[..., Path], gpt: Path, mode: str) -> None:
    output = trained(tune(job, gpt, mode=mode))
    before, after = load_file(gpt / "model.safetensors"), load_file(output / "model.safetensors")
    assert "model.lm_head.weight" not in after  # it is the table of tokens
    names = {name: f"model.{name if name.startswith('transformer.') else 'transformer.' + name}" for name in before}
    changed = {name for name, ours in names.items() if ours in after and not torch.equal(before[name], after[ours])}
    assert any("h.1." in name for name in changed)
    assert any("wte" in name for name in changed) == (mode == "full")
    predictor = Predictor(output)
    row = {"prompt": "the item", "max_tokens": 5, "seed": 1}
    assert predictor.predict([row])[0]["text"] == Predictor(output).predict([row])[0]["text"]
    assert "samples" in json.loads((output / "evaluation.json").read_text())


def network_with(shape: Any, weights: dict[str, torch.Tensor]) -> Any:
    network = language_network(shape)
    network.load_state_dict(weights)
    return network.eval()


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3"])
def test_adapters_of_a_decoder(job: Callable[..., Path], gpt: Path, adapter: str) -> None:
    output = trained(tune(job, gpt, mode="lora", adapter=adapter, rank=2))
    shutil.copytree(gpt, output / "base")
    loaded = package.load(output)
    whole = network_with(loaded.network.shape, merged(loaded.network))
    tokens = torch.tensor([[3, 7, 9, 2]])
    assert torch.allclose(loaded.network(tokens), whole(tokens), atol=1e-5)
    plain = network_with(loaded.network.shape, frozen(loaded.network))
    assert not torch.allclose(loaded.network(tokens), plain(tokens), atol=1e-6)
    assert Predictor(output).predict([{"prompt": "the", "max_tokens": 3}])[0]["text"] is not None


def test_peft_itself_reads_the_adapter(job: Callable[..., Path], gpt: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output = trained(tune(job, gpt, mode="lora", rank=2))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt), str(output)).eval()
    shutil.copytree(gpt, output / "base")
    tokens = torch.tensor([[3, 7, 9, 2]])
    assert torch.allclose(theirs(input_ids=tokens).logits, package.load(output).network(tokens), atol=1e-5)


@pytest.mark.parametrize(
    ("marked", "told"), [(True, "<|im_start|>user\nthe item?<|im_end|>\n"), (False, "User: the item?")]
)
def test_chats_are_written_as_the_tokenizer_knows_them(tmp_path: Path, marked: bool, told: str) -> None:
    base = read_base(tiny_gpt(tmp_path / "gpt", marked))
    tokenizer = read_language_tokenizer(base.tokenizer, base.transformer.config)
    tokens, learnt = encode_document(tokenizer, chat_pieces(json.dumps(CHAT)))
    assert str(tokenizer.inner.decode(tokens, skip_special_tokens=False)).startswith(told)
    said = [token for token, mine in zip(tokens, learnt, strict=True) if mine]
    assert tokenizer.decode(said).strip() == "good"


def test_a_chat_is_learnt_and_answered(job: Callable[..., Path], tmp_path: Path) -> None:
    gpt = tiny_gpt(tmp_path / "gpt", marked=True)
    output = trained(tune(job, gpt, texts=[json.dumps(CHAT)] * 8, mode="full"))
    assert "text" in Predictor(output).predict([{"messages": CHAT[:1], "max_tokens": 3}])[0]


def test_an_encoder_does_not_write(job: Callable[..., Path], tmp_path: Path) -> None:
    made = tune(job, tiny_bert(tmp_path / "bert"), mode="full")
    assert run_job(made) == 1
    assert "does not write" in read_spool(made, "failed")[-1]["sentence"]


def test_a_decoder_reads_texts_too(job: Callable[..., Path], gpt: Path) -> None:
    words = ["good", "bad"] * 16
    table = {"note": ("text", [f"it is {word}" for word in words]), "y": ("category", words)}
    made = job(table, config={"epochs": 1, "threads": 1}, finetune={"mode": "lora", "rank": 2})
    shutil.copytree(gpt, made / "base")
    output = trained(made)
    shutil.copytree(gpt, output / "base")
    assert Predictor(output).predict([{"note": "good"}, {"note": ""}])


TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('No system here.') }}{% endif %}"
    "{{ '<|im_start|>' ~ message.role ~ ' says ' ~ message.content|trim ~ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant says ' }}{% endif %}"
)


def chatting(folder: Path, template: str = TEMPLATE, file: bool = False) -> Path:
    """A base that brings a chat template."""
    base = tiny_gpt(folder, marked=True)
    said = {"eos_token": "<|endoftext|>", "bos_token": {"content": "<|endoftext|>"}}
    (base / "tokenizer_config.json").write_text(json.dumps(said if file else said | {"chat_template": template}))
    if file:
        (base / "chat_template.jinja").write_text(template)
    return base


@pytest.fixture(scope="module")
def chatter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting(tmp_path_factory.mktemp("bases") / "chatter", file=True)


def told(output: Path) -> Any:
    return json.loads((output / "model.json").read_text()).get("chat")


def asked(output: Path, messages: list[dict[str, str]]) -> str:
    """What the model is given to go on with."""
    writer = Predictor(output).writer
    assert writer is not None
    text = writer._chat(0, messages)
    return str(writer.tokenizer.inner.decode(text, skip_special_tokens=False))


def test_a_base_keeps_its_chat_template_through_versions(job: Callable[..., Path], chatter: Path) -> None:
    texts = [json.dumps(CHAT)] * 8
    first = trained(tune(job, chatter, texts=texts, mode="full", chat_template="base"))
    assert told(first)["template"] == TEMPLATE and told(first)["tokens"]["bos_token"] == "<|endoftext|>"
    assert asked(first, CHAT[:1]) == "<|im_start|>user says the item?<|im_end|><|im_start|>assistant says "
    writer = Predictor(first).writer
    assert writer is not None
    assert writer.tokenizer.ends == {writer.tokenizer.end, writer.tokenizer.code("<|im_end|>")}
    learner_saw = writer.tokenizer.encode_chat(CHAT)
    said = [token for token, mine in zip(*learner_saw, strict=True) if mine]
    assert writer.tokenizer.inner.decode(said, skip_special_tokens=False).strip() == "good<|im_end|>"
    with pytest.raises(PredictionInputError, match="chat template refuses them: No system here") as refused:
        Predictor(first).predict([{"messages": [{"role": "system", "content": "x"}]}])
    assert refused.value.column == "messages"
    second = trained(tune(job, first, name="second", texts=texts, mode="lora", rank=2, chat_template="base"))
    shutil.copytree(first, second / "base")
    assert told(second) == told(first) and asked(second, CHAT[:1]) == asked(first, CHAT[:1])
    own = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    third = trained(tune(job, first, name="third", texts=texts, mode="full", chat_template=own))
    assert asked(third, CHAT[:1]) == "the item?<|endoftext|>"
    fourth = trained(tune(job, first, name="fourth", texts=texts, mode="full", chat_template="usual"))
    assert told(fourth) == {"template": None}
    assert asked(fourth, CHAT[:1]).startswith("<|im_start|>user\nthe item?<|im_end|>")


def test_what_was_recorded_before_templates_is_trained_as_it_was(job: Callable[..., Path], chatter: Path) -> None:
    texts = [json.dumps(CHAT)] * 8
    plain = chatter.parent / "plain"
    shutil.copytree(chatter, plain, ignore=shutil.ignore_patterns("chat_template.jinja", "tokenizer_config.json"))
    outputs = [
        trained(tune(job, base, name=name, texts=texts, mode="full", **more))
        for name, base, more in (
            ("recorded", chatter, {}), ("usual", chatter, {"chat_template": "usual"}), ("new", plain, {"chat_template": "base"}),
        )
    ]  # fmt: skip
    weights = [(output / "model.safetensors").read_bytes() for output in outputs]
    assert weights[0] == weights[1] == weights[2]
    assert asked(outputs[0], CHAT[:1]).startswith("<|im_start|>user\nthe item?")


def test_texts_need_no_template(job: Callable[..., Path], chatter: Path) -> None:
    output = trained(tune(job, chatter, mode="full", chat_template="base"))
    assert told(output)["template"] == TEMPLATE
    assert "text" in Predictor(output).predict([{"prompt": "the item", "max_tokens": 2}])[0]


@pytest.mark.parametrize(
    ("template", "code", "sentence"),
    [
        (TEMPLATE, "bad_data", "Row 9: the chat template cannot write this chat: No system here."),
        ("{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}", "bad_data", "Row 1: "),
        ("{% include 'x' %}", "bad_config", "chat template cannot be used: it uses the statement include"),
        ("{{ 'a' * 10**9 }}", "bad_data", "too many steps"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(
    job: Callable[..., Path], tmp_path: Path, template: str, code: str, sentence: str
) -> None:
    texts = [*[json.dumps(CHAT)] * 8, json.dumps([{"role": "system", "content": "x"}, *CHAT])]
    made = tune(job, chatting(tmp_path / "base", template), texts=texts, mode="full", chat_template="base")
    assert run_job(made) == 1
    failed = read_spool(made, "failed")[-1]
    assert failed["code"] == code and sentence in failed["sentence"] and failed["next_step"]


def test_a_chat_without_an_end_gets_one(chatter: Path) -> None:
    base = read_base(chatter)
    chat = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    tokenizer = read_language_tokenizer(base.tokenizer, base.transformer.config, chat)
    tokens, learnt = tokenizer.encode_chat(CHAT)
    assert tokens[-1] == tokenizer.end and learnt[-1] and tokenizer.ends == {tokenizer.end}
