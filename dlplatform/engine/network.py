"""The network of a run over rows: an encoder for every kind of column, their outputs combined, a head.

What combines them is TabM with a linear path beside it, a plain MLP or a linear model. All three take the same
batch and give (G, M, B, outputs): G cross-fitting groups of M members each. Images and texts that are read in
order have one encoder each, shared by all columns of the kind; beside them there is one group only.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dlplatform.engine.attention import TextEncoder
from dlplatform.engine.dropout import Dropout
from dlplatform.engine.layers import EnsembleLinear, GroupedLinear, MemberLinear, PiecewiseLinearEmbedding
from dlplatform.engine.preprocessing import InputSizes
from dlplatform.engine.statistics import CLIP, Statistics
from dlplatform.engine.transformers_config import IMAGE, checked
from dlplatform.engine.transformers_images import TransformersImages
from dlplatform.engine.transformers_models import TransformersEncoder
from dlplatform.engine.vision import Body, ImageEncoder, body_of

TEXT_EMBEDDING = 16
TEXT_DROPOUT = 0.1
_CUT = ("widths", "image_stages", "image_inner")  # fields of a shape that only pruning sets


class Batch(NamedTuple):
    """Rows for each group: numbers (G, B, D) float32, categories (G, B, C), tokens (G, B, X, L) int32; for one
    group sequences (1, B, S, L) int32 and images (1, B, I, channels, side, side).

    ``normalised``: the numbers as `InputEncoder.normalised` gives them, where that was done for all rows before; then
    ``numbers`` are looked at for missing ones alone."""

    numbers: Tensor
    categories: Tensor
    tokens: Tensor
    sequences: Tensor | None = None
    images: Tensor | None = None
    normalised: Tensor | None = None


@dataclass(frozen=True)
class NetworkShape:
    """Everything that fixes the tensors of a network. ``transformer`` and ``image_transformer``: a
    `transformers_config.Transformer` that reads the texts, or looks at the images, in its JSON form.

    Of a network that was pruned: ``widths``, the units of each layer; ``image_stages``, the channels of each stage of
    the image encoder; ``image_inner``, those inside each of its blocks. Empty: as ``width`` and ``image_width`` say."""

    architecture: str
    groups: int
    members: int
    outputs: int
    inputs: InputSizes
    layers: int = 0
    width: int = 0
    dropout: float = 0.0
    bins: int = 0
    embedding_size: int = 0
    kind: str = ""
    image_encoder: str = ""
    image_width: int = 0
    image_depth: int = 0
    text_width: int = 0
    text_layers: int = 0
    text_heads: int = 0
    transformer: dict[str, Any] | None = None
    image_transformer: dict[str, Any] | None = None
    widths: tuple[int, ...] = ()
    image_stages: tuple[int, ...] = ()
    image_inner: tuple[int, ...] = ()

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return self.widths or (self.width,) * self.layers

    @property
    def predicts(self) -> str:
        """class, number, numbers or labels; packages of the first format say it by the number of outputs."""
        return self.kind or ("class" if self.outputs > 1 else "number")

    def to_dict(self) -> dict[str, Any]:
        """JSON form; packages without a transformers architecture, or that were never pruned, do not mention it."""
        optional = ("transformer", "image_transformer", *_CUT)
        return {name: value for name, value in asdict(self).items() if value or name not in optional}

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> NetworkShape:
        """Read what `to_dict` wrote."""
        inputs = dict(raw["inputs"])
        for name in ("indicators", "vocabularies"):
            inputs[name] = tuple(inputs[name])
        cut = {name: tuple(raw[name]) for name in _CUT if name in raw}
        return NetworkShape(**{**raw, **cut, "inputs": InputSizes(**inputs)})


class InputEncoder(nn.Module):
    """Normalises numbers with the group's statistics, embeds categories and texts, looks at images."""

    center: Tensor
    inverse_scale: Tensor
    known: Tensor
    offsets: Tensor
    indicators: Tensor

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        groups, sizes = shape.groups, shape.inputs
        self.sizes = sizes
        self.groups = groups
        self.codes = sum(sizes.vocabularies)
        self.category_size = 8 if max(sizes.vocabularies, default=0) <= 100 else 16
        self.register_buffer("center", torch.empty(groups, 1, sizes.numbers))
        self.register_buffer("inverse_scale", torch.empty(groups, 1, sizes.numbers))
        self.register_buffer("known", torch.empty(groups * self.codes, dtype=torch.int64))
        if self.codes:
            self.categories = nn.Parameter(torch.empty(groups, self.codes, self.category_size))
        if sizes.texts:
            self.texts = nn.Parameter(torch.empty(groups, sizes.texts * sizes.buckets, TEXT_EMBEDDING))
        if sizes.images:
            self.images = ImageEncoder(sizes.image_channels, _image_body(shape))
        if sizes.sequences:
            self.sequences = _text_encoder(shape)
        starts = [sum(sizes.vocabularies[:column]) for column in range(len(sizes.vocabularies))]
        self.register_buffer("offsets", torch.tensor(starts, dtype=torch.int64), persistent=False)
        self.register_buffer("indicators", torch.tensor(sizes.indicators, dtype=torch.int64), persistent=False)

    @property
    def width(self) -> int:
        """Numbers in the plain representation of a row."""
        sizes = self.sizes
        embedded = len(sizes.vocabularies) * self.category_size + sizes.texts * TEXT_EMBEDDING
        deep = sizes.images * self.images.width if sizes.images else 0
        deep += sizes.sequences * self.sequences.width if sizes.sequences else 0
        return sizes.numbers + len(sizes.indicators) + embedded + deep

    def initialise(self, generator: torch.Generator) -> None:
        """Small random embeddings; zero for "unknown", the neutral value."""
        if self.codes:
            self.categories.normal_(0.0, 0.5, generator=generator)
            self.categories[:, self.offsets] = 0.0
        if self.sizes.texts:
            self.texts.normal_(0.0, 0.3, generator=generator)

    def load_statistics(self, statistics: Statistics) -> None:
        """Take over what was fitted on the training rows."""
        self.center.copy_(torch.from_numpy(statistics.center).unsqueeze(1))
        self.inverse_scale.copy_(torch.from_numpy(statistics.inverse_scale).unsqueeze(1))
        self.known.copy_(self._known_rows(torch.from_numpy(statistics.known)))
        if self.sizes.images:
            self.images.mean.copy_(torch.from_numpy(statistics.pixel_mean))
            self.images.deviation.copy_(torch.from_numpy(statistics.pixel_deviation))

    def _known_rows(self, known: Tensor) -> Tensor:
        """(G, V) codes within columns → (G·V,) rows of the flat embedding table."""
        starts = torch.repeat_interleave(self.offsets.cpu(), torch.tensor(self.sizes.vocabularies).long())
        groups = torch.arange(self.groups).unsqueeze(1) * self.codes
        return (known + starts + groups).flatten()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(numbers (G, B, D) normalised, rest (G, B, R): indicators and embeddings)."""
        numbers = self.normalised(batch.numbers) if batch.normalised is None else batch.normalised
        parts = []
        if self.sizes.indicators:
            parts.append(batch.numbers.index_select(-1, self.indicators).isnan().to(numbers.dtype))
        if self.codes:
            parts.append(self._embed_categories(batch.categories))
        if self.sizes.texts:
            parts.append(self._embed_texts(batch.tokens))
        if batch.sequences is not None:
            parts.append(_each(self.sequences, batch.sequences))
        if batch.images is not None:
            parts.append(_each(self.images, batch.images))
        return numbers, torch.cat(parts, -1) if parts else numbers[..., :0]

    def normalised(self, numbers: Tensor) -> Tensor:
        """(G or 1, B, D) → (G, B, D): centred, scaled, large ones drawn in; 0 for missing ones."""
        scaled = ((numbers - self.center) * self.inverse_scale).nan_to_num(nan=0.0)
        return scaled * (scaled * (1 / CLIP)).square().add_(1).rsqrt()

    def _group_starts(self, rows_per_group: int, like: Tensor) -> Tensor | int:
        if self.groups == 1:
            return 0
        starts = torch.arange(self.groups, device=like.device) * rows_per_group
        return starts.view(self.groups, *[1] * (like.dim() - 1))

    def _embed_categories(self, codes: Tensor) -> Tensor:
        rows = self.known[codes + self.offsets + self._group_starts(self.codes, codes)]
        return nn.functional.embedding(rows, self.categories.flatten(0, 1)).flatten(-2)

    def _embed_texts(self, tokens: Tensor) -> Tensor:
        """Sum of the token embeddings over the square root of their number."""
        sizes = self.sizes
        columns = torch.arange(sizes.texts, device=tokens.device).unsqueeze(1) * sizes.buckets
        rows = tokens + columns + self._group_starts(sizes.texts * sizes.buckets, tokens)
        present = (tokens > 0).to(self.texts.dtype)
        weights = present * torch.rsqrt(present.sum(-1, keepdim=True).clamp(min=1.0))
        if torch.compiler.is_exporting():  # other runtimes have no such bags
            words = nn.functional.embedding(rows, self.texts.flatten(0, 1))
            return (words * weights.unsqueeze(-1)).sum(-2).flatten(2)
        bags = nn.functional.embedding_bag(
            rows.flatten(0, -2),
            self.texts.flatten(0, 1),
            mode="sum",
            per_sample_weights=weights.flatten(0, -2),
        )
        return bags.view(*tokens.shape[:2], -1)


def _text_encoder(shape: NetworkShape) -> TextEncoder | TransformersEncoder:
    """Ours, or one of the transformers library."""
    if shape.transformer is not None:
        return TransformersEncoder(checked(shape.transformer))
    sizes = shape.inputs
    return TextEncoder(
        sizes.sequence_vocabulary,
        sizes.sequence_length,
        shape.text_width,
        shape.text_layers,
        shape.text_heads,
        shape.dropout or TEXT_DROPOUT,
    )


def _image_body(shape: NetworkShape) -> Body | TransformersImages:
    """Ours, or one of the transformers library."""
    if shape.image_transformer is not None:
        return TransformersImages(checked(shape.image_transformer, IMAGE))
    pixels = (shape.inputs.image_channels, shape.inputs.image_size)
    return body_of(
        shape.image_encoder, *pixels, shape.image_width, shape.image_depth, shape.image_stages, shape.image_inner
    )


def _each(encoder: nn.Module, inputs: Tensor) -> Tensor:
    """Every column of (1, B, columns, …) through one encoder → (1, B, columns · width)."""
    encoded: Tensor = encoder(inputs.flatten(0, 2))
    return encoded.view(1, inputs.shape[1], -1)


class RowNetwork(nn.Module):
    """Batch → (G, M, B, outputs): logits of classes, or the standardised target.

    Of a tabm network the first output is that of the linear model alone, and the other members correct it:
    their gradient does not reach it. How far the correction is trusted (``trust``, 0 to 1) is chosen on
    validation rows, so that the whole is no worse than the linear model where that is the right one.
    """

    target_center: Tensor
    target_scale: Tensor
    trust: Tensor

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        groups, members = shape.groups, shape.members
        several = (groups, shape.outputs) if shape.predicts == "numbers" else (groups,)
        self.register_buffer("target_center", torch.empty(several))
        self.register_buffer("target_scale", torch.empty(several))
        self.encoder = InputEncoder(shape)
        if shape.architecture != "mlp":
            self.linear = GroupedLinear(groups, self.encoder.width, shape.outputs, zero=True)
        if shape.architecture == "linear":
            return
        width = self.encoder.width
        if shape.architecture == "tabm":
            self.register_buffer("trust", torch.empty(1))
            self.embedding = PiecewiseLinearEmbedding(groups, shape.inputs.numbers, shape.bins, shape.embedding_size)
            width += shape.inputs.numbers * (shape.embedding_size - 1)
        widths = [width, *shape.layer_widths]
        self.hidden = nn.ModuleList(
            EnsembleLinear(groups, members, inputs, outputs, first=not index and members > 1)
            for index, (inputs, outputs) in enumerate(itertools.pairwise(widths))
        )
        self.head = MemberLinear(groups, members, widths[-1], shape.outputs)
        self.dropout = Dropout(shape.dropout, rows=-2)

    @torch.no_grad()
    def initialise(self, statistics: Statistics, seed: int) -> None:
        """Set every tensor: weights from the seed, buffers from the statistics."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if module is not self and hasattr(module, "initialise"):
                cast(Any, module).initialise(generator)
        self.encoder.load_statistics(statistics)
        self.target_center.copy_(torch.from_numpy(statistics.target_center))
        self.target_scale.copy_(torch.from_numpy(statistics.target_scale))
        if self.shape.architecture == "tabm":
            self.trust.fill_(1.0)
            self.embedding.left.copy_(torch.from_numpy(statistics.left).unsqueeze(2))
            self.embedding.inverse_width.copy_(torch.from_numpy(statistics.inverse_width).unsqueeze(2))

    def forward(self, batch: Batch) -> Tensor:
        numbers, rest = self.encoder(batch)
        plain = torch.cat([numbers, rest], -1) if rest.shape[-1] else numbers
        if self.shape.architecture == "linear":
            return self.linear(plain).unsqueeze(1)  # type: ignore[no-any-return]
        if self.shape.architecture == "mlp":
            return self._deep(plain)
        embedded = self.embedding(numbers.transpose(1, 2).contiguous())
        deep = self._deep(torch.cat([embedded, rest], -1) if rest.shape[-1] else embedded)
        linear = self.linear(plain).unsqueeze(1)
        return torch.cat([linear, deep + linear.detach()], 1)

    def _deep(self, inputs: Tensor) -> Tensor:
        """(G, B, in) → (G, M, B, outputs); a single member has no dimension of its own until the head gives it one."""
        state = inputs if self.shape.members == 1 else inputs.unsqueeze(1)
        for layer in self.hidden:
            state = self.dropout(torch.relu(layer(state)))
        return self.head(state)  # type: ignore[no-any-return]


def build_network(shape: NetworkShape) -> RowNetwork:
    """An uninitialised network of the given shape."""
    return RowNetwork(shape)
