"""Adapters beside frozen weights: LoRA, DoRA and IA³ as parametrizations of the weight that they change.

LoRA: Hu et al., 2021 (W + α/r·BA). DoRA: Liu et al., 2024 (the direction of W + α/r·BA times a size for each output).
IA³: Liu et al., 2022 (a factor for each output, its bias included). The frozen weight itself is never written, so taking
an adapter away gives the base back bit for bit. Stored in the format of the ``peft`` library, which reads those of linear
layers and of convolutions over all channels back (docs/adr/0014), and which itself adapts the networks of the
``transformers`` library (see `dlplatform.engine.peft_adapters`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dlplatform.engine import peft_adapters
from dlplatform.engine.blocks import block_of
from dlplatform.engine.errors import PackageError
from dlplatform.engine.finetune_config import FIRST, FinetuneConfig
from dlplatform.engine.layers import EnsembleLinear, GroupedLinear, MemberLinear
from dlplatform.engine.transformers_models import parts

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
PREFIX: Final = "base_model.model."
_GROUPED: Final = (GroupedLinear, EnsembleLinear, MemberLinear)
_ADAPTED: Final = (nn.Linear, nn.Conv2d, *_GROUPED)
_ORIGINAL: Final = re.compile(r"parametrizations\.(weight|bias)\.original")


class Adapter(nn.Module):
    """weight → changed weight of the same shape.

    The weight is seen as (groups, rows, columns): outputs are its rows, or in the grouped layers its columns.
    """

    def __init__(self, weight: Tensor, config: FinetuneConfig, columns_are_outputs: bool) -> None:
        super().__init__()
        self.kind = config.adapter
        self.format = config.format
        self.scale = config.alpha / config.rank
        self.form = _form(weight)
        self.kernel = tuple(weight.shape[1:]) if weight.dim() == 4 else ()
        self.inputs_dimension = 1 if columns_are_outputs else 2
        groups, rows, columns = self.form
        sizes = (groups, 1, columns) if columns_are_outputs else (groups, rows, 1)
        if self.kind != "ia3":
            rank = min(config.rank, rows, columns)
            self.lora_A = nn.Parameter(torch.empty(groups, rank, columns, device=weight.device))
            self.lora_B = nn.Parameter(torch.zeros(groups, rows, rank, device=weight.device))
        if self.kind == "dora":
            norms = weight.detach().reshape(self.form).norm(dim=self.inputs_dimension, keepdim=True)
            self.lora_magnitude_vector = nn.Parameter(norms.clone())
        if self.kind == "ia3":
            self.ia3_l = nn.Parameter(torch.ones(sizes, device=weight.device))

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Random on one side and zero on the other: nothing is changed at first."""
        if self.kind != "ia3":
            bound = math.sqrt(3.0 / self.lora_A.shape[-1])
            self.lora_A.uniform_(-bound, bound, generator=generator)

    def forward(self, weight: Tensor) -> Tensor:
        seen = weight.reshape(self.form)
        if self.kind == "ia3":
            return (seen * self.ia3_l).view(weight.shape)
        changed = torch.baddbmm(seen, self.lora_B, self.lora_A, alpha=self.scale)
        if self.kind == "dora":
            norms = changed.norm(dim=self.inputs_dimension, keepdim=True).clamp(min=1e-12)
            changed = changed * (self.lora_magnitude_vector / norms)
        return changed.view(weight.shape)


class ScaledBias(nn.Module):
    """bias → the bias times the factors of its layer's IA³ adapter, so that the whole output is scaled."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self._of = (adapter,)  # in a tuple: the factors are among the network's parameters once, beside the weight

    def forward(self, bias: Tensor) -> Tensor:
        between = [1] * (bias.dim() - 2)  # members of a group, which share its weight
        factors = self._of[0].ia3_l
        return bias * (factors.view(-1) if bias.dim() == 1 else factors.view(bias.shape[0], *between, -1))


def _form(weight: Tensor) -> tuple[int, int, int]:
    if weight.dim() == 3:
        return weight.shape[0], weight.shape[1], weight.shape[2]
    return 1, weight.shape[0], weight[0].numel()


def adaptable(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules of ours whose weight an adapter can change, by name."""
    foreign = tuple(f"{name}." for name, _ in parts(network))
    for name, module in network.named_modules():
        if isinstance(module, _ADAPTED) and not name.startswith(foreign):
            yield name, module


def attach(network: nn.Module, config: FinetuneConfig, blocks: set[str], seed: int) -> None:
    """Freeze the network and put an adapter on every matrix of the given blocks."""
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, module in list(adaptable(network)):
        if block_of(f"{name}.weight") in blocks:
            adapter = Adapter(module.weight, config, isinstance(module, _GROUPED))
            adapter.start(generator)
            _parametrize(module, "weight", adapter)
            if config.adapter == "ia3" and config.format == "peft" and module.bias is not None:
                _parametrize(module, "bias", ScaledBias(adapter))
    for name, model in parts(network):
        inside = {block.removeprefix(f"{name}.") for block in blocks if block.startswith(f"{name}.")}
        peft_adapters.attach(model, config, inside, seed)


def _parametrize(module: Any, part: str, change: nn.Module) -> None:
    parametrize.register_parametrization(module, part, change)
    module.parametrizations[part].original.requires_grad_(False)


def adapted(network: nn.Module) -> Iterator[str]:
    """Names of the modules that carry an adapter, as peft names them: inside a transformer by its own names."""
    yield from (name for name, _ in adapters(network))
    for _, model in parts(network):
        yield from peft_adapters.adapted(model)


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    ours = ".parametrizations.weight." in name and not name.endswith(".original")
    return ours or peft_adapters.is_adapter(name)


def adapters(network: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """The adapters of ours that are attached, by the name of the module that they change."""
    for name, module in _parametrized(network):
        for adapter in module.parametrizations["weight"]:
            if isinstance(adapter, Adapter):
                yield name, adapter


def plain_name(name: str) -> str:
    """The name that a tensor has without adapters."""
    return peft_adapters.plain_name(_ORIGINAL.sub(r"\1", name))


def merged(network: nn.Module) -> dict[str, Tensor]:
    """All tensors by their plain names, every adapter worked into its weight."""
    changed = {
        f"{name}.{part}": getattr(module, part).detach()
        for name, module in _parametrized(network)
        for part in module.parametrizations
    }
    for prefix, model in parts(network):
        changed |= {f"{prefix}.{name}": tensor for name, tensor in peft_adapters.worked_in(model).items()}
    return {name: changed.get(name, tensor) for name, tensor in frozen(network).items()}


def frozen(network: nn.Module) -> dict[str, Tensor]:
    """All tensors but those of adapters, by their plain names: the base, as it was."""
    return {plain_name(name): tensor for name, tensor in network.state_dict().items() if not is_adapter(name)}


@torch.no_grad()
def share_base(network: nn.Module, other: nn.Module) -> int:
    """Have a network use the frozen tensors of another one over the same base, where they are equal; the bytes that this
    saves. Neither is to be trained afterwards."""
    theirs, saved = frozen(other), 0
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        same = None if is_adapter(name) else theirs.get(plain_name(name))
        if same is not None and same.dtype == tensor.dtype and torch.equal(same, tensor):
            tensor.data = same
            saved += same.numel() * same.element_size()
    return saved


def _parametrized(network: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            yield name, module


def save_tensors(network: nn.Module, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an adapter's file holds: the adapters, and whatever else is no longer as in ``base``."""
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters(network):
        for part, tensor in adapter.named_parameters():
            tensors[f"{PREFIX}{name}.{_key(part)}"] = _stored(part, tensor.detach(), adapter)
    for _, model in parts(network):
        tensors |= {f"{PREFIX}{name}": tensor for name, tensor in peft_adapters.tensors_of(model).items()}
    for name, kept in frozen(network).items():
        if name not in base or base[name].shape != kept.shape or not torch.equal(base[name], kept.cpu()):
            tensors[f"{PREFIX}{name}"] = kept.detach()
    return tensors


def _key(part: str) -> str:
    return f"{part}.weight" if part in ("lora_A", "lora_B") else part


def _stored(part: str, tensor: Tensor, adapter: Adapter) -> Tensor:
    """As peft has it: plain layers without the axis of groups, convolutions with their kernel."""
    if adapter.form[0] != 1:
        return tensor
    if adapter.kernel and part == "lora_A":
        return tensor.view(-1, *adapter.kernel)
    if adapter.kernel and part == "lora_B":
        return tensor.view(*tensor.shape[1:], 1, 1)
    if adapter.kernel and adapter.format == "peft":
        return tensor.view(1, -1, 1, 1)
    return tensor.reshape(-1) if part == "lora_magnitude_vector" else tensor.squeeze(0)


@torch.no_grad()
def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Take over what `save_tensors` gave, in either format. Raises PackageError for tensors that do not fit."""
    needed: dict[str, Tensor] = {
        f"{name}.{_key(part)}": parameter
        for name, adapter in adapters(network)
        for part, parameter in adapter.named_parameters()
    }
    for _, model in parts(network):
        needed |= peft_adapters.tensors_of(model)
    given = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    if missing := sorted(needed.keys() - given.keys()):
        raise PackageError(f"The tensor {missing[0]!r} is missing from {WEIGHTS}.")
    places: dict[str, Tensor] = {**frozen(network), **needed}
    for name, tensor in given.items():
        if name not in places or places[name].numel() != tensor.numel():
            raise PackageError(f"The tensor {name[:200]!r} of {WEIGHTS} does not fit the base.")
        if not bool(torch.isfinite(tensor).all()):
            raise PackageError(f"The tensor {name[:200]!r} holds infinite or undefined values.")
        places[name].copy_(tensor.view(places[name].shape))


def peft_config(network: nn.Module, config: FinetuneConfig, base: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """``adapter_config.json`` as peft reads it, for an adapter's file that holds the given tensors."""
    kind = {"lora": "LORA", "dora": "LORA", "ia3": "IA3"}[config.adapter]
    described: dict[str, Any] = {
        "peft_type": kind,
        "base_model_name_or_path": base,
        "target_modules": list(adapted(network)),
        "modules_to_save": _kept_whole(network, tensors),
        "inference_mode": True,
    }
    if kind == "IA3":
        described["feedforward_modules"] = []
    if kind == "LORA":
        described |= {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": 0.0, "bias": "none",
                      "use_dora": config.adapter == "dora", **_low_ranks(network, config)}  # fmt: skip
    return described


def _low_ranks(network: nn.Module, config: FinetuneConfig) -> dict[str, dict[str, Any]]:
    """The layers that are too small for the rank: their own one, and the alpha with which their scale stays."""
    if config.format == FIRST:  # said nothing of it
        return {}
    ranks = {
        f"^{name}": adapter.lora_A.shape[1]
        for name, adapter in adapters(network)
        if adapter.lora_A.shape[1] != config.rank
    }
    return {
        "rank_pattern": dict(ranks),
        "alpha_pattern": {name: config.alpha * rank / config.rank for name, rank in ranks.items()},
    }


def _kept_whole(network: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """The modules of which a file holds own tensors, not those of an adapter beside them. None where a transformer was
    adapted: it alone is what peft builds there, and our head is not in it."""
    if any(True for _ in parts(network)):
        return []
    owners = (name.rpartition(".")[0] for name in frozen(network) if f"{PREFIX}{name}" in tensors)
    return sorted({owner for owner in owners if owner})
