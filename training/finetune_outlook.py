"""What a fine-tuning of a version would train, from the shapes of its tensors alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlplatform.engine.blocks import block_of, blocks_of, chosen, usual_heads
from dlplatform.engine.finetune_config import FinetuneConfig
from registry.models import ModelVersion
from registry.tensors import tensor_shapes
from registry.transformers_bases import LANGUAGE, is_transformers, takes, tasks_of, width

# Tensors that belong to no layer an adapter could change: tables of embeddings.
NOT_ADAPTED = ("tokens", "positions", "embedding", "wte", "wpe")
# Where the engine puts a pretrained transformer, and what it leaves out of a Hugging Face file.
ENCODERS, WRITER = {"text": "encoder.sequences.model", "image": "encoder.images.body.model"}, "model"
FOREIGN_HEADS = ("cls", "lm_head", "classifier", "score", "qa_outputs", "pooler", "vocab_", "predictions", "generator")
FOREIGN_BUFFERS = (
    "position_ids", "masked_bias", "inv_freq", "relative_position_index", "running_mean", "running_var",
    "num_batches_tracked",
)  # fmt: skip
BYTES = 4  # of a float32
ADAM = 2  # more numbers that the optimizer keeps for each one that trains


@dataclass(frozen=True)
class Block:
    """A part of a network and how much of it would train."""

    name: str
    parameters: int
    trains: bool
    added: int = 0


@dataclass(frozen=True)
class Outlook:
    """What a fine-tuning would train, before it is queued."""

    blocks: list[Block]
    parameters: int
    trainable: int
    memory_bytes: int

    @property
    def share(self) -> float:
        return self.trainable / max(self.parameters, 1)


def whole_version(version: ModelVersion) -> ModelVersion:
    """The version that holds the weights: an adapter's base, or itself."""
    return whole_version(version.base) if version.base is not None else version


def trainable_blocks(version: ModelVersion, task: str = "") -> dict[str, int]:
    """{block: parameters} of the weights that a fine-tuning of the version starts from."""
    return blocks_of(_weights(version, task))


def _weights(version: ModelVersion, task: str = "") -> dict[str, list[int]]:
    whole = whole_version(version)
    shapes = tensor_shapes(whole)
    if is_transformers(whole):
        return _written(shapes) if will_write(whole, task) else _inside_ours(shapes, ENCODERS[takes(whole)])
    return {name: shape for name, shape in shapes.items() if not _is_fitted(name)}


def will_write(version: ModelVersion, task: str) -> bool:
    """Whether a Hugging Face directory is taught to write: by default, if it does so already."""
    return task in ("", LANGUAGE) and LANGUAGE in tasks_of(version)


def _written(shapes: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """The tensors of a language model by the names that they get inside ours."""
    return {f"{WRITER}.{name}": list(shape) for name, shape in shapes.items() if not _is_foreign_buffer(name)}


def _inside_ours(shapes: Mapping[str, Sequence[int]], encoder: str) -> dict[str, list[int]]:
    """The tensors of a Hugging Face file by the names that they get inside a network of ours, which has its own heads."""
    firsts = {name.partition(".")[0] for name in shapes}
    inner = {first for first in firsts if not first.startswith(FOREIGN_HEADS)}
    prefix = f"{inner.pop()}." if len(inner) == 1 else ""
    kept = {name.removeprefix(prefix): list(shape) for name, shape in shapes.items() if name.startswith(prefix)}
    return {
        f"{encoder}.{name}": shape
        for name, shape in kept.items()
        if not name.startswith(FOREIGN_HEADS) and not _is_foreign_buffer(name)
    }


def _is_foreign_buffer(name: str) -> bool:
    return name.rpartition(".")[2] in FOREIGN_BUFFERS


def _is_fitted(name: str) -> bool:
    """Statistics of the data in the network's buffers: they are fitted, not trained."""
    return name.rpartition(".")[2] in {
        "center", "inverse_scale", "known", "left", "inverse_width", "trust", "target_center", "target_scale", "mean",
        "deviation", "pixel_mean", "pixel_deviation", "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip


def outlook(version: ModelVersion, settings: FinetuneConfig, task: str = "") -> Outlook:
    """Blocks, numbers and the least memory of weights, gradients, optimizer and averaged weights together."""
    shapes, whole = _weights(version, task), whole_version(version)
    gets_outputs = is_transformers(whole) and not will_write(whole, task)
    counts = blocks_of(shapes)
    named = set(chosen(counts, settings.blocks))
    added: dict[str, int] = {}
    if settings.mode == "full":
        trains = set(counts)
    elif settings.mode == "head":
        heads = set() if gets_outputs else set(usual_heads(counts))
        trains = set(counts) if settings.unfreeze_every else named or heads
    else:
        trains = set() if gets_outputs else set(settings.beside_adapters(list(counts)))
        added = _adapter_sizes(shapes, settings, (named or set(counts)) - trains, is_transformers(whole))
    blocks = [Block(name, size, name in trains, added.get(name, 0)) for name, size in counts.items()]
    if gets_outputs:
        blocks.append(_new_outputs(width(whole) or _width_of_table(shapes)))
        counts["linear"] = blocks[-1].parameters
    trainable = sum(block.parameters for block in blocks if block.trains) + sum(added.values())
    held = sum(counts.values()) + sum(added.values())
    memory = BYTES * (2 * held + (1 + ADAM) * trainable)
    return Outlook(blocks, sum(counts.values()), trainable, memory)


def _new_outputs(numbers: int) -> Block:
    """What comes after a transformer that has only been pretrained: a weight for each of its numbers, for each output."""
    return Block("linear", numbers + 1, trains=True)


def _width_of_table(shapes: Mapping[str, Sequence[int]]) -> int:
    return next((int(shape[1]) for name, shape in shapes.items() if len(shape) == 2 and _is_table(name)), 0)


def _is_table(name: str) -> bool:
    """Whether a weight is a table of embeddings."""
    owner = (name.split(".")[-2:-1] or [""])[0]
    return owner in NOT_ADAPTED or "embed" in owner


def _adapter_sizes(
    shapes: Mapping[str, Sequence[int]], settings: FinetuneConfig, blocks: set[str], foreign: bool
) -> dict[str, int]:
    """{block: numbers that its adapters hold}. ``foreign``: of a network of transformers, where peft attaches them."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        block = block_of(name)
        if block in blocks and name.endswith(".weight") and _is_adapted(name, shape, foreign):
            sizes[block] = sizes.get(block, 0) + _adapter_size(shape, settings)
    return sizes


def _is_adapted(name: str, shape: Sequence[int], foreign: bool) -> bool:
    """Matrices and convolutions; in a network of transformers none that looks at each channel alone, which has a single
    one in although no images come in there."""
    if len(shape) == 4:
        return not foreign or shape[1] > 1 or shape[0] == 1 or "stem" in name or "embed" in name
    return len(shape) > 1 and not _is_table(name)


def _adapter_size(shape: Sequence[int], settings: FinetuneConfig) -> int:
    """A weight as (groups, rows, columns); its outputs are the columns of grouped layers, else the rows."""
    grouped = len(shape) == 3
    groups, rows, columns = tuple(shape) if grouped else (1, shape[0], math.prod(shape[1:]))
    outputs = groups * (columns if grouped else rows)
    if settings.adapter == "ia3":
        return outputs
    low_rank = groups * min(settings.rank, rows, columns) * (rows + columns)
    return low_rank + (outputs if settings.adapter == "dora" else 0)
