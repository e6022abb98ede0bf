"""How large a network a package may describe: checked before anything of that size is allocated."""

from __future__ import annotations

from typing import Final

from dlplatform.engine.description import MODEL
from dlplatform.engine.errors import PackageError
from dlplatform.engine.fields import IMAGE_ENCODERS, TRANSFORMERS
from dlplatform.engine.network import NetworkShape
from dlplatform.engine.preprocessing import SPECIAL
from dlplatform.engine.transformers_config import IMAGE, checked, longest_text
from dlplatform.engine.vision import FOLDED, blocks_in, stage_widths

MAXIMUM_DIMENSION: Final = 1 << 24


def check_limits(shape: NetworkShape) -> None:
    """Raises PackageError, which names the number that is out of range."""
    limits = {
        "groups": (shape.groups, 1, 16),
        "members": (shape.members, 1, 4096),
        "outputs": (shape.outputs, 1, 1 << 16),
        "layers": (shape.layers, 0, 64),
        "width": (shape.width, 0, 1 << 16),
        "bins": (shape.bins, 0, 4096),
        "image_width": (shape.image_width, 0, 4096),
        "image_depth": (shape.image_depth, 0, 64),
        "text_width": (shape.text_width, 0, 1 << 14),
        "text_layers": (shape.text_layers, 0, 128),
        "text_heads": (shape.text_heads, 0, 1 << 10),
        "sequence_length": (shape.inputs.sequence_length, 0, 1 << 16),
        "image_size": (shape.inputs.image_size, 0, 4096),
        "image_channels": (shape.inputs.image_channels, 0, 3),
        "embedding_size": (shape.embedding_size, 0, 4096),
        "numbers": (shape.inputs.numbers, 0, 1 << 20),
        "texts": (shape.inputs.texts, 0, 1 << 12),
        "vocabulary": (sum(shape.inputs.vocabularies, 0), 0, MAXIMUM_DIMENSION),
        "vocabularies": (min(shape.inputs.vocabularies, default=SPECIAL), SPECIAL, MAXIMUM_DIMENSION),
    }
    for name, (value, low, high) in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise PackageError(f"{MODEL} gives {str(value)[:40]} for {name}; {low} to {high} are possible.")
    _check_encoders(shape)
    _check_cut(shape)
    if isinstance(shape.dropout, bool) or not isinstance(shape.dropout, int | float) or not 0 <= shape.dropout < 1:
        raise PackageError(f"{MODEL} gives an impossible dropout.")


def _check_encoders(shape: NetworkShape) -> None:
    """Encoders of images and texts, where there are such inputs."""
    inputs = shape.inputs
    deep = bool(inputs.images or inputs.sequences)
    known = shape.image_encoder in ((*IMAGE_ENCODERS, FOLDED, TRANSFORMERS) if inputs.images else ("",))
    known = known and (shape.image_encoder == TRANSFORMERS) == (shape.image_transformer is not None)
    texts = not inputs.sequences or (shape.text_heads > 0 and shape.text_width % shape.text_heads == 0)
    if shape.transformer is not None:
        texts = bool(inputs.sequences) and inputs.sequence_length <= longest_text(checked(shape.transformer).config)
    wide = shape.image_width > 0
    if shape.image_transformer is not None:
        wide = checked(shape.image_transformer, IMAGE).width > 0
    sized = not inputs.images or (inputs.image_size >= 8 and inputs.image_channels in (1, 3) and wide)
    if not (known and texts and sized) or (deep and shape.groups != 1):
        raise PackageError(f"{MODEL} describes encoders of images or texts that do not exist.")


def _check_cut(shape: NetworkShape) -> None:
    """What pruning left: as many numbers as there are layers, stages and blocks, none larger than before."""
    ours, size = shape.image_encoder in IMAGE_ENCODERS, shape.inputs.image_size
    stages = stage_widths(size, shape.image_width) if shape.image_encoder == "resnet" else []
    blocks = blocks_in(shape.image_encoder, size, shape.image_depth) if ours else 0
    cut = {
        "widths": (shape.widths, shape.layers, shape.width),
        "image_stages": (shape.image_stages, len(stages), max(stages, default=0)),
        "image_inner": (shape.image_inner, blocks, MAXIMUM_DIMENSION),
    }
    for name, (values, count, most) in cut.items():
        plain = all(type(value) is int and 1 <= value <= most for value in values)
        if values and (len(values) != count or not plain):
            raise PackageError(f"{MODEL} describes {name} that do not fit its network.")
