"""Adapters of our own networks as the peft library reads them; those of the first format; the base, the adapter off."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dlplatform.engine import package
from dlplatform.engine.adapters import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    adapters,
    attach,
    frozen,
    is_adapter,
    load_tensors,
    merged,
    peft_config,
    save_tensors,
)
from dlplatform.engine.durable import to_json
from dlplatform.engine.errors import PackageError
from dlplatform.engine.finetune_config import FinetuneConfig
from dlplatform.engine.finetuning import plan_of
from dlplatform.engine.language import LanguageNetwork, LanguageShape
from dlplatform.engine.layers import EnsembleLinear, GroupedLinear, MemberLinear
from dlplatform.engine.network import Batch, NetworkShape, build_network
from dlplatform.engine.preprocessing import InputSizes
from dlplatform.engine.run import run_job
from tests.unit.engine.conftest import mixed_columns, write_job
from tests.unit.engine.test_modalities import QUICK, image_job, last_events, texts

ROWS = 5
KINDS = ("lora", "dora", "ia3")
LOOKS = InputSizes(0, (), (), 0, images=1, image_channels=3, image_size=16)
READS = InputSizes(0, (), (), 0, sequences=1, sequence_length=6, sequence_vocabulary=30)
SIDES: dict[str, Any] = {"image_width": 8, "image_depth": 1, "text_width": 16, "text_layers": 2, "text_heads": 2}


def drawn(network: nn.Module, seed: int = 0) -> Any:
    """The network with every tensor drawn at random, biases among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(-0.4, 0.4, generator=generator)
    return network.eval()


def seeing(encoder: str = "resnet") -> Any:
    network = drawn(build_network(NetworkShape("linear", 1, 1, 3, LOOKS, kind="class", image_encoder=encoder, **SIDES)))
    network.encoder.images.deviation.fill_(64.0)
    return network


def reading() -> Any:
    """A perceptron over a transformer that reads a text."""
    return drawn(build_network(NetworkShape("mlp", 1, 1, 3, READS, layers=1, width=8, kind="class", **SIDES)))


def writing() -> Any:
    return drawn(LanguageNetwork(LanguageShape(vocabulary=40, length=12, width=16, layers=2, heads=2)))


def asked(network: nn.Module) -> Any:
    """What the network is asked, always the same."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 30, (ROWS, 6), generator=generator)
    if isinstance(network, LanguageNetwork):
        return tokens
    pixels = torch.rand(1, ROWS, 1, 3, 16, 16, generator=generator) * 255
    none = torch.zeros(1, ROWS, 0)
    looks = network.shape.inputs.images  # type: ignore[union-attr]
    return Batch(
        none, none.int(), none.int().unsqueeze(-1),
        None if looks else tokens.view(1, ROWS, 1, 6), pixels if looks else None,
    )  # fmt: skip


def answers(network: nn.Module, to: Any) -> Tensor:
    with torch.no_grad():
        given: Tensor = network(to)
    return given


def learnt(network: Any, config: FinetuneConfig, seed: int = 1) -> Any:
    """The network with adapters that changed, and with what trains whole beside them."""
    plan = plan_of(network, config, (), 0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if plan.ever_trains(name, parameter):
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator))
    return network


def kept(directory: Path, network: Any, config: FinetuneConfig, base: Mapping[str, Tensor]) -> dict[str, Any]:
    """The two files of an adapter as a run writes them; returns the configuration."""
    tensors = save_tensors(network, base)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / WEIGHTS)
    (directory / CONFIG).write_bytes(to_json(peft_config(network, config, "", tensors)))
    described: dict[str, Any] = json.loads((directory / CONFIG).read_text())
    return described


@pytest.mark.parametrize("adapter", KINDS)
@pytest.mark.parametrize(
    ("made", "chosen"),
    [
        (seeing, {}),
        (writing, {}),
        (reading, {"blocks": ("encoder.*",)}),  # the perceptron above has layers of our own alone
        (reading, {"blocks": ("encoder.*", "head")}),  # its last layer whole beside the adapters
    ],
)
def test_peft_answers_as_we_do(tmp_path: Path, made: Callable[[], Any], chosen: Any, adapter: str) -> None:
    base, config = made(), FinetuneConfig("lora", adapter, rank=12, alpha=20.0, **chosen)
    network = learnt(copy.deepcopy(base), config)
    described = kept(tmp_path, network, config, base.state_dict())
    small = {name for name, each in adapters(network) if adapter != "ia3" and each.lora_A.shape[1] < 12}
    assert {name.removeprefix("^") for name in described.get("rank_pattern", {})} == small
    assert bool(small) == (made is seeing and adapter != "ia3")

    question = asked(base)
    ours, plain = answers(network, question), answers(base, question)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a tensor or a pattern that fits nothing is only warned of
        theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()

    assert (ours - plain).abs().max() > 1e-2
    torch.testing.assert_close(answers(theirs, question), ours, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answers(theirs.merge_and_unload(), question), ours, rtol=1e-4, atol=1e-4)
    plainly = drawn(made())
    plainly.load_state_dict(merged(network))
    torch.testing.assert_close(answers(plainly, question), ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter", KINDS)
def test_the_tensors_have_the_names_and_shapes_of_peft(adapter: str) -> None:
    config = FinetuneConfig("lora", adapter, rank=4)
    for made in (writing(), seeing()):
        network = learnt(copy.deepcopy(made), config)
        tensors = save_tensors(network, made.state_dict())
        settings = peft_config(network, config, "", tensors)
        kind = peft.IA3Config if adapter == "ia3" else peft.LoraConfig
        told = {name: value for name, value in settings.items() if name not in ("peft_type", "base_model_name_or_path")}
        injected = peft.get_peft_model(made, kind(**told))
        given = peft.get_peft_model_state_dict(injected)
        assert {name: tensor.shape for name, tensor in tensors.items()} == {
            name: tensor.shape for name, tensor in given.items()
        }


def test_peft_refuses_layers_of_our_own_instead_of_answering_wrong(tmp_path: Path) -> None:
    """Grouped layers, and depthwise convolutions but for IA³, whose factors they share with all others."""
    for made, adapter, settings in (
        (reading, "lora", {"blocks": ("encoder.*", "hidden")}),
        (reading, "ia3", {"head": "adapted"}),
        (lambda: seeing("convnext"), "lora", {}),
        (lambda: seeing("convnext"), "dora", {}),
    ):
        base, config = made(), FinetuneConfig("lora", adapter, rank=8, **settings)
        kept(tmp_path, learnt(copy.deepcopy(base), config), config, base.state_dict())
        with pytest.raises((ValueError, TypeError, RuntimeError, NotImplementedError)):
            peft.PeftModel.from_pretrained(base, tmp_path)
    base, config = seeing("convnext"), FinetuneConfig("lora", "ia3")
    network = learnt(copy.deepcopy(base), config)
    kept(tmp_path, network, config, base.state_dict())
    question = asked(base)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(answers(theirs, question), answers(network, question), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter", KINDS)
def test_layers_of_our_own_are_adapted_as_peft_adapts_the_plain_layer_they_stand_for(adapter: str) -> None:
    """A group of one member is a plain layer whose matrix is turned around: so are its adapter's."""
    generator = torch.Generator().manual_seed(0)
    for ours in (GroupedLinear(1, 6, 5), EnsembleLinear(1, 1, 6, 5, first=False), MemberLinear(1, 1, 6, 5)):
        network: Any = nn.ModuleDict({"hidden": drawn(ours)})
        plain: Any = nn.ModuleDict({"hidden": nn.Linear(6, 5)})
        plain.hidden.weight.data, plain.hidden.bias.data = ours.weight.data[0].T.clone(), ours.bias.data.flatten()
        attach(network, FinetuneConfig("lora", adapter, rank=2, alpha=6.0), {"hidden"}, 0)
        ((_, added),) = adapters(network)
        for parameter in added.parameters():
            parameter.data.uniform_(0.2, 1.0, generator=generator)
        kind = peft.IA3Config if adapter == "ia3" else peft.LoraConfig
        low: Any = {} if adapter == "ia3" else {"r": 2, "lora_alpha": 6.0, "use_dora": adapter == "dora"}
        ends: Any = {"feedforward_modules": []} if adapter == "ia3" else {}
        peft.inject_adapter_in_model(kind(target_modules=["hidden"], **low, **ends), plain)
        names = {"lora_A": "lora_B.weight", "lora_B": "lora_A.weight"}
        turned = {
            f"hidden.{names.get(part, part)}": tensor.detach()[0].T
            if part != "lora_magnitude_vector"
            else tensor.detach().flatten()
            for part, tensor in added.named_parameters()
        }
        assert not peft.set_peft_model_state_dict(plain, turned).unexpected_keys
        rows = torch.rand(4, 6, generator=generator)
        found = answers(network["hidden"], rows.unsqueeze(0)).view(4, 5)
        torch.testing.assert_close(found, answers(plain["hidden"], rows), rtol=1e-5, atol=1e-5)


def test_ia3_scales_the_whole_output_of_every_member() -> None:
    members: Any = nn.ModuleDict({"hidden": drawn(EnsembleLinear(2, 3, 6, 5, first=True))})
    rows = torch.rand(2, 3, 4, 6)
    plain = answers(members["hidden"], rows)
    attach(members, FinetuneConfig("lora", "ia3"), {"hidden"}, 0)
    assert sum(is_adapter(name) for name in members.state_dict()) == 1, "the factors are stored once"
    ((_, adapter),) = adapters(members)
    factors = torch.rand(2, 1, 5)
    adapter.ia3_l.data.copy_(factors)
    expected = plain * factors.unsqueeze(1)
    torch.testing.assert_close(answers(members["hidden"], rows), expected)

    twin = copy.deepcopy(members)
    adapter.ia3_l.data.fill_(1.0)
    torch.testing.assert_close(answers(twin["hidden"], rows), expected)  # a copy follows its own factors
    torch.testing.assert_close(answers(members["hidden"], rows), plain)


@pytest.mark.parametrize("adapter", ["dora", "ia3"])
def test_an_adapter_of_the_first_format_stays_as_it_was(adapter: str) -> None:
    """Its factors scale the weights alone, and those of convolutions have fewer axes."""
    first = FinetuneConfig("lora", adapter, rank=4, format="first", head="adapted")
    base = seeing("convnext")
    network = learnt(copy.deepcopy(base), first)
    tensors = save_tensors(network, base.state_dict())
    part = "ia3_l" if adapter == "ia3" else "lora_magnitude_vector"
    shapes = {tuple(tensor.shape) for name, tensor in tensors.items() if name.endswith(f"stem.{part}")}
    assert shapes == {(8, 1) if adapter == "ia3" else (8,)}
    assert all(torch.equal(merged(network)[name], tensor) for name, tensor in biases(base).items())

    for config in (first, FinetuneConfig("lora", adapter, rank=4, head="adapted")):
        again = learnt(copy.deepcopy(base), config, seed=2)
        load_tensors(again, tensors)
        same = torch.equal(answers(again, asked(base)), answers(network, asked(base)))
        assert same == (config.format == "first" or adapter == "dora")
    with pytest.raises(PackageError, match="does not fit"):
        load_tensors(network, {name: tensor[:1] for name, tensor in tensors.items()})


def biases(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if name.endswith(".bias")}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained package of images, of texts and of a table."""
    root = tmp_path_factory.mktemp("bases")
    quick = {**QUICK, "epochs": 1}
    table = {"epochs": 1, "threads": 1, "folds": 2, "params": {"members": 4, "width": 16}}

    def job(columns: Any, *, name: str, **more: Any) -> Path:
        return write_job(root / name, columns, **more)

    jobs = {
        "images": image_job(job, 40, "images", config=quick),
        "text": job(texts(40), name="text", config={**quick, "text_encoder": "transformer"}),
        "table": job(mixed_columns(80), name="table", config=table),
    }
    for made in jobs.values():
        assert run_job(made) == 0, last_events(made)
    return {name: made / "output" for name, made in jobs.items()}


@pytest.mark.parametrize("adapter", KINDS)
@pytest.mark.parametrize("kind", ["images", "text", "table"])
def test_a_merged_adapter_taken_off_again_leaves_the_base_to_the_bit(
    job: Callable[..., Path], bases: dict[str, Path], kind: str, adapter: str
) -> None:
    config = {"epochs": 2, "threads": 1, "batch_size": 16}
    tuning = {"mode": "lora", "adapter": adapter, "rank": 2, "head": "adapted", "format": "peft"}
    if kind == "images":
        made = image_job(job, 40, config=config, finetune=tuning)
    else:
        made = job(texts(40) if kind == "text" else mixed_columns(60, seed=1), config=config, finetune=tuning)
    shutil.copytree(bases[kind], made / "base")
    before = sha256(bases[kind] / package.WEIGHTS)
    assert run_job(made) == 0, last_events(made)
    output = made / "output"
    shutil.copytree(made / "base", output / "base")
    loaded = package.load(output)
    assert loaded.description["finetune"]["format"] == "peft"

    whole = made / "whole"
    described = {name: value for name, value in loaded.description.items() if name != "finetune"}
    package.save(whole, described, package.merged_tensors(loaded), "", {}, tokenizer_in(output))
    assert sha256(whole / package.WEIGHTS) != before
    again = package.load(whole).network.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in merged(loaded.network).items())

    alone = package.load(output / "base").network.state_dict()  # how one goes back: the base, a version of its own
    assert hashlib.sha256(package.weights_content(alone)).hexdigest() == before
    assert sha256(output / "base" / package.WEIGHTS) == sha256(bases[kind] / package.WEIGHTS) == before
    own = {name for name in frozen(loaded.network) if f"{PREFIX}{name}" in load_file(output / WEIGHTS)}
    assert own <= {"trust"}, "how far the members are trusted is measured anew, and kept in the adapter's file"
    off = {name: alone[name] if name in own else tensor for name, tensor in frozen(loaded.network).items()}
    assert hashlib.sha256(package.weights_content(off)).hexdigest() == before  # what stands beside the adapters


def tokenizer_in(directory: Path) -> dict[str, bytes]:
    path = directory / package.TOKENIZER
    return {path.name: path.read_bytes()} if path.exists() else {}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
