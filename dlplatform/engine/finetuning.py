"""From a pretrained network to one that fits other data: which weights train, how fast, and with new classes.

Freezing in stages and learning rates by depth: Howard & Ruder, 2018 ("Universal Language Model Fine-tuning").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from dlplatform.engine.adapters import adapted, attach, is_adapter, plain_name
from dlplatform.engine.blocks import ANSWERING, block_of, chosen, usual_heads
from dlplatform.engine.errors import EngineError
from dlplatform.engine.finetune_config import FinetuneConfig
from dlplatform.engine.transformers_models import holders

NEW_CLASS_NOISE: Final = 0.01
# Of the learning rate, for the weights of a pretrained transformer and for adapters beside them.
PRETRAINED_RATE: Final = 0.02
ADAPTER_RATE: Final = 0.4
# And for the head of a base that trains whole beside adapters, which learn ten times as fast as whole weights do.
HEAD_RATE: Final = 0.1


@dataclass(frozen=True)
class Plan:
    """Which parameters train in which epoch, and at which multiple of the learning rate.

    ``begins``: the epoch in which a block starts to train; blocks that are not in it stay frozen. None trains
    everything.
    """

    begins: Mapping[str, int] | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def staged(self) -> bool:
        """Whether blocks begin to train one after the other."""
        return self.begins is not None and any(self.begins.values())

    @property
    def last_stage(self) -> int:
        """The epoch from which on all train that ever do."""
        return max((self.begins or {}).values(), default=0)

    def rate(self, name: str) -> float:
        """The multiple of the learning rate for a parameter."""
        return self.rates.get(block_of(plain_name(name)), 1.0)

    def ever_trains(self, name: str, parameter: Tensor) -> bool:
        """Whether a parameter trains in some epoch."""
        if self.begins is None:
            return parameter.requires_grad
        return is_adapter(name) or block_of(plain_name(name)) in self.begins

    def apply(self, network: nn.Module, epoch: int) -> None:
        """Freeze and unfreeze for an epoch."""
        if self.begins is None:
            return
        for name, parameter in network.named_parameters():
            begins = 0 if is_adapter(name) else self.begins.get(block_of(plain_name(name)))
            parameter.requires_grad_(begins is not None and begins <= epoch)


def plan_of(network: nn.Module, config: FinetuneConfig, fresh: Sequence[str], seed: int) -> Plan:
    """Attach adapters if the mode says so, and say what trains. ``fresh``: blocks that are new and must train.

    Raises EngineError ``bad_config`` when the settings name no block of the network.
    """
    blocks = list(dict.fromkeys(block_of(name) for name, _ in network.named_parameters()))
    heads = usual_heads(blocks)
    named = chosen(blocks, config.blocks)
    if config.blocks and not named:
        sentence = f"The base has no block named {config.blocks[0][:80]!r}."
        raise EngineError("bad_config", sentence, f"Its blocks are: {', '.join(blocks[:20])}.")
    rates = _rates(blocks, config.layer_decay)
    rates = _gentle(network, blocks, rates, ADAPTER_RATE if config.mode == "lora" else PRETRAINED_RATE)
    if config.mode == "full":
        return Plan(None, rates)
    if config.mode == "head":
        train = [*(named or heads), *fresh]
        return Plan(_stages(blocks, train, config.unfreeze_every), rates)
    beside = [block for block in config.beside_adapters(blocks) if block not in fresh]
    targets = set(named or blocks) - {*fresh, *beside}
    attach(network, config, targets, seed)
    if not any(True for _ in adapted(network)):
        raise EngineError("bad_config", "The chosen blocks hold no matrix that an adapter could change.")
    rates |= {block: rates.get(block, 1.0) * HEAD_RATE for block in beside}
    return Plan(dict.fromkeys([*fresh, *beside], 0), rates)


def _rates(blocks: Sequence[str], decay: float) -> dict[str, float]:
    """The last blocks learn at the full rate, each one before them at ``decay`` of the next."""
    heads = set(usual_heads(blocks))
    body = [block for block in blocks if block not in heads]
    return {block: decay ** (len(body) - place) for place, block in enumerate(body)} if decay != 1.0 else {}


def _gentle(network: nn.Module, blocks: Sequence[str], rates: Mapping[str, float], share: float) -> dict[str, float]:
    """Inside a pretrained transformer steps are smaller than in what is beside it, which starts from nothing."""
    inside = [f"{name}.model".lstrip(".") for name, part in holders(network) if not part.fresh]
    if inside and all(block.startswith(tuple(f"{name}." for name in inside)) for block in blocks):
        return dict(rates)  # a language model, of which nothing is new
    gentle = {block: share for block in blocks if any(block.startswith(f"{name}.") for name in inside)}
    return {block: rates.get(block, 1.0) * gentle.get(block, 1.0) for block in {**rates, **gentle}}


def _stages(blocks: Sequence[str], train: Sequence[str], every: int) -> dict[str, int]:
    begins = dict.fromkeys(train, 0)
    if every:
        waiting = [block for block in reversed(blocks) if block not in begins]
        begins |= {block: (place + 1) * every for place, block in enumerate(waiting)}
    return begins


def grown(state: Mapping[str, Tensor], old: Sequence[str], new: Sequence[str], seed: int) -> dict[str, Tensor]:
    """The tensors of a base with outputs for ``new`` instead of ``old`` classes.

    A class of both keeps its outputs; a new one starts as the mean of the old ones with a little noise.
    """
    if list(old) == list(new):
        return dict(state)
    generator = torch.Generator().manual_seed(seed)
    places = {name: place for place, name in enumerate(old)}
    result = dict(state)
    for name in OUTPUTS:
        if name in state:
            result[name] = _grown(state[name], [places.get(label) for label in new], generator)
    return result


OUTPUTS: Final = tuple(f"{block}.{part}" for block in ANSWERING for part in ("weight", "bias"))


def _grown(tensor: Tensor, sources: Sequence[int | None], generator: torch.Generator) -> Tensor:
    mean, spread = tensor.mean(-1), float(tensor.std()) * NEW_CLASS_NOISE
    columns = [
        mean + torch.randn(mean.shape, generator=generator) * spread if source is None else tensor[..., source]
        for source in sources
    ]
    return torch.stack(columns, dim=-1)


def fresh_blocks(old: Sequence[str], new: Sequence[str], names: Sequence[str]) -> list[str]:
    """Blocks whose shape the new classes change."""
    if list(old) == list(new):
        return []
    return [block_of(name) for name in OUTPUTS if name in names and name.endswith("weight")]


def trainable(network: nn.Module, plan: Plan) -> int:
    """Parameters that train in some epoch."""
    return sum(parameter.numel() for name, parameter in network.named_parameters() if plan.ever_trains(name, parameter))
