"""Adapters inside networks of the ``transformers`` library: injected, stored and worked in by ``peft``.

The library is imported when the first adapter is attached. The weights of the base are never written.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from dlplatform.engine.blocks import block_of
from dlplatform.engine.finetune_config import FinetuneConfig

NAME: Final = "default"
_OF_ADAPTER: Final = re.compile(rf"\.(lora_A|lora_B|lora_magnitude_vector|ia3_l)\.{NAME}(\.weight)?$")
_BASE: Final = ".base_layer."


def attach(model: Any, config: FinetuneConfig, blocks: set[str], seed: int) -> None:
    """Put an adapter on every matrix of the given blocks and freeze the rest of the model."""
    chosen = [name for name in _adaptable(model) if block_of(f"{name}.weight") in blocks]
    if not chosen:
        return
    import peft  # large, and of no use to runs without adapters

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(_settings(peft, config, chosen), model, NAME)


def _adaptable(model: Any) -> Iterator[str]:
    """Linear layers, GPT-2's among them, and convolutions over all channels; not the output that shares its weight with
    the table of tokens."""
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        whole = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if module is not output and (whole or type(module).__name__ == "Conv1D"):
            yield name


def _settings(peft: Any, config: FinetuneConfig, modules: list[str]) -> Any:
    if config.adapter == "ia3":
        return peft.IA3Config(target_modules=modules, feedforward_modules=[])
    return peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=modules, lora_dropout=0.0, bias="none",
        use_dora=config.adapter == "dora",
    )  # fmt: skip


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name belongs to an adapter of peft."""
    return _OF_ADAPTER.search(name) is not None


def plain_name(name: str) -> str:
    """The name that a tensor has without adapters."""
    return name.replace(_BASE, ".")


def adapted(model: nn.Module) -> Iterator[str]:
    """Names of the modules that carry an adapter."""
    yield from (name for name, _ in _layers(model))


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "get_base_layer"):
            yield name, module


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors, not copied, by the names that peft gives them in a file (but for its prefix)."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if is_adapter(name)}
    return {_file_name(name): tensor for name, tensor in tensors.items()}


def _file_name(name: str) -> str:
    short = name.replace(f".{NAME}", "")
    return short.removesuffix(".weight") if "lora_magnitude_vector" in short else short


@torch.no_grad()
def worked_in(model: nn.Module) -> dict[str, Tensor]:
    """{plain name: tensor} of the layers with adapters, as peft merges them; the model stays as it is."""
    tensors = {}
    for name, layer in _layers(model):
        whole = copy.deepcopy(layer)
        whole.merge()
        for part, tensor in whole.get_base_layer().state_dict().items():
            tensors[f"{name}.{part}"] = tensor
    return tensors
