"""An architecture that a user wrote: ``code/model.py`` with ``build(schema, **params)``. Run only in a sandbox.

``build`` returns an ``nn.Module``. Its ``forward`` takes a dict of tensors, those of `InputSchema.tensors`, of a batch
of B rows, and returns (B, schema.outputs): logits of the classes or labels, or the target in units of its standard
deviation from its mean. Everything else, such as preprocessing, loss, validation, checkpoints and the package, is the
engine's own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from dlplatform.engine.blocks import block_of
from dlplatform.engine.denials import guarded
from dlplatform.engine.errors import EngineError
from dlplatform.engine.network import Batch, InputEncoder, NetworkShape, RowNetwork
from dlplatform.engine.preprocessing import InputSizes
from dlplatform.engine.statistics import CLIP, Statistics
from dlplatform.engine.wheels import make_importable

ENTRY: Final = "model.py"
FUNCTION: Final = "build"
MODULE: Final = "user_model"
MOST_FILES: Final = 1_000

Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class InputSchema:
    """What a network of somebody's own is given and asked for; passed to ``build`` as ``schema``.

    ``task``: class, labels, number or numbers. ``outputs``: how many numbers it answers for a row. ``numbers``: numeric
    inputs (dates count as several). ``missing``: how many of them may be missing. ``categories``: values of each
    categorical column, unknown (0) and missing among them. ``texts`` columns of ``text_buckets`` hashed words;
    ``sequences`` columns of at most ``sequence_length`` tokens out of ``sequence_vocabulary``; ``images`` columns of
    (``image_channels``, ``image_size``, ``image_size``) pixels.
    """

    task: str
    outputs: int
    numbers: int
    missing: int
    categories: tuple[int, ...]
    texts: int = 0
    text_buckets: int = 0
    sequences: int = 0
    sequence_vocabulary: int = 0
    sequence_length: int = 0
    images: int = 0
    image_channels: int = 0
    image_size: int = 0

    @staticmethod
    def of(shape: NetworkShape) -> InputSchema:
        """The part of a network's shape that is fixed by data and task."""
        sizes = shape.inputs
        return InputSchema(
            shape.predicts, shape.outputs, sizes.numbers, len(sizes.indicators), sizes.vocabularies, sizes.texts,
            sizes.buckets, sizes.sequences, sizes.sequence_vocabulary, sizes.sequence_length, sizes.images,
            sizes.image_channels, sizes.image_size,
        )  # fmt: skip

    @property
    def tensors(self) -> dict[str, str]:
        """The tensors that ``forward`` is given, with their shapes and types."""
        shapes = {
            "numbers": f"(B, {self.numbers}) float32, normalised, 0 where missing",
            "missing": f"(B, {self.missing}) float32, 1 where the number is missing",
            "categories": f"(B, {len(self.categories)}) int64",
            "texts": f"(B, {self.texts}, words) int64, 0 where there is no word",
            "sequences": f"(B, {self.sequences}, tokens) int64, 0 where there is no token",
            "images": f"(B, {self.images}, {self.image_channels}, {self.image_size}, {self.image_size}) float32",
        }
        present = {"numbers", "missing", "categories"}
        present |= {name for name in ("texts", "sequences", "images") if getattr(self, name)}
        return {name: text for name, text in shapes.items() if name in present}


class _Inputs(InputEncoder):
    """The engine's normalisation without its embeddings: Batch → the dict that ``forward`` takes."""

    pixel_mean: Tensor
    pixel_deviation: Tensor

    def __init__(self, sizes: InputSizes) -> None:
        nn.Module.__init__(self)
        self.sizes, self.groups, self.codes = sizes, 1, sum(sizes.vocabularies)
        self.register_buffer("center", torch.empty(1, 1, sizes.numbers))
        self.register_buffer("inverse_scale", torch.empty(1, 1, sizes.numbers))
        self.register_buffer("known", torch.empty(self.codes, dtype=torch.int64))
        if sizes.images:
            self.register_buffer("pixel_mean", torch.empty(sizes.image_channels, 1, 1))
            self.register_buffer("pixel_deviation", torch.empty(sizes.image_channels, 1, 1))
        starts = [sum(sizes.vocabularies[:column]) for column in range(len(sizes.vocabularies))]
        self.register_buffer("offsets", torch.tensor(starts, dtype=torch.int64), persistent=False)

    def load_statistics(self, statistics: Statistics) -> None:
        self.center.copy_(torch.from_numpy(statistics.center).unsqueeze(1))
        self.inverse_scale.copy_(torch.from_numpy(statistics.inverse_scale).unsqueeze(1))
        self.known.copy_(self._known_rows(torch.from_numpy(statistics.known)))
        if self.sizes.images:
            self.pixel_mean.copy_(torch.from_numpy(statistics.pixel_mean).view(-1, 1, 1))
            self.pixel_deviation.copy_(torch.from_numpy(statistics.pixel_deviation).view(-1, 1, 1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:  # type: ignore[override]
        absent = batch.numbers[0].isnan()
        scaled = ((batch.numbers[0] - self.center[0]) * self.inverse_scale[0]).masked_fill(absent, 0.0)
        given = {
            "numbers": scaled * torch.rsqrt(1 + (scaled / CLIP).square()),
            "missing": absent[:, list(self.sizes.indicators)].float(),
            "categories": self._categories(batch.categories[0]),
        }
        if self.sizes.texts:
            given["texts"] = batch.tokens[0].long()
        if batch.sequences is not None:
            given["sequences"] = batch.sequences[0].long()
        if batch.images is not None:
            given["images"] = (batch.images[0].float() - self.pixel_mean) / self.pixel_deviation
        return given

    def _categories(self, codes: Tensor) -> Tensor:
        """Codes within each column; values that training did not know are unknown."""
        return self.known[codes + self.offsets] - self.offsets if self.codes else codes.long()


class CodeNetwork(RowNetwork):
    """Batch → (1, 1, B, outputs), by a module of somebody's own."""

    def __init__(self, shape: NetworkShape, build: Build, params: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.shape = shape
        several = (1, shape.outputs) if shape.predicts == "numbers" else (1,)
        self.register_buffer("target_center", torch.empty(several))
        self.register_buffer("target_scale", torch.empty(several))
        self.encoder = _Inputs(shape.inputs)
        self._build, self._params = build, params
        self.model = self._built()

    def _built(self) -> nn.Module:
        made = guarded(
            f"{ENTRY}: {FUNCTION}(schema, **params)", self._build, InputSchema.of(self.shape), **self._params
        )
        if not isinstance(made, nn.Module):
            raise EngineError("code_error", f"{FUNCTION} returned {type(made).__name__} instead of an nn.Module.")
        if not any(parameter.requires_grad for parameter in made.parameters()):
            raise EngineError("code_error", f"{FUNCTION} returned a module without parameters that can be trained.")
        return made

    @torch.no_grad()
    def initialise(self, statistics: Statistics, seed: int) -> None:
        """As `RowNetwork.initialise`; the module is built anew, so that its weights follow from the seed alone."""
        torch.manual_seed(seed)
        with torch.enable_grad():
            self.model = self._built()
        self.encoder.load_statistics(statistics)
        self.target_center.copy_(torch.from_numpy(statistics.target_center))
        self.target_scale.copy_(torch.from_numpy(statistics.target_scale))

    def forward(self, batch: Batch) -> Tensor:
        rows = batch.numbers.shape[1]
        answer = guarded(f"{ENTRY}: forward", self.model, self.encoder(batch))
        if not isinstance(answer, Tensor) or answer.shape != (rows, self.shape.outputs):
            found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            wanted = (rows, self.shape.outputs)
            raise EngineError("code_error", f"forward returned {found}; it must return a tensor of the shape {wanted}.")
        return answer[None, None]

    def __deepcopy__(self, memo: dict[int, Any]) -> CodeNetwork:
        """A copy built by the same code: modules of others need not know how to be copied."""
        with torch.random.fork_rng(devices=[]):
            copied = CodeNetwork(self.shape, self._build, self._params)
        copied.load_state_dict(self.state_dict())
        return copied.to(self.target_center.device)


@dataclass(frozen=True)
class Classes:
    """What a base answered and what the network is to answer, in the order of their outputs: those of the base come first
    (`dlplatform.engine.target.code_like`)."""

    old: Sequence[str]
    new: Sequence[str]

    def carried(self, fresh: Tensor, known: Tensor, axis: int) -> Tensor:
        """A new tensor with the base's slices of the classes that both have."""
        places = {label: place for place, label in enumerate(self.old)}
        result = fresh.clone()
        for place, label in enumerate(self.new):
            if label in places:
                result.select(axis, place).copy_(known.select(axis, places[label]))
        return result


def started_from(network: CodeNetwork, base: nn.Module, classes: Classes) -> list[str]:
    """Take over the weights of a base that the same code built; the blocks that did not fit whole.

    A tensor that differs along one axis alone, by the number of classes, keeps there what it has of those that both know; the
    rest of it begins as the code says, and so does one of any other shape. Raises EngineError ``code_error`` when the code
    builds other parts than it did.
    """
    wanted, given = network.state_dict(), base.state_dict()
    if odd := sorted(wanted.keys() ^ given.keys()):
        raise EngineError("code_error", f"{FUNCTION} makes other parts than the base has, such as {odd[0][:200]!r}.")
    fitting = {name: tensor for name, tensor in given.items() if tensor.shape == wanted[name].shape}
    axes = {name: _axis(wanted[name], given[name], classes) for name in wanted if name not in fitting}
    carried = {
        name: classes.carried(wanted[name], given[name], axis) for name, axis in axes.items() if axis is not None
    }
    network.load_state_dict({**wanted, **fitting, **carried})
    return list(dict.fromkeys(block_of(name) for name in wanted if name not in fitting))


def _axis(wanted: Tensor, given: Tensor, classes: Classes) -> int | None:
    """The only axis along which the shapes differ, if it has one place for each class."""
    if wanted.dim() != given.dim():
        return None
    differ = [axis for axis in range(given.dim()) if wanted.shape[axis] != given.shape[axis]]
    if len(differ) != 1:
        return None
    sizes = (given.shape[differ[0]], wanted.shape[differ[0]])
    return differ[0] if sizes == (len(classes.old), len(classes.new)) else None


def load_build(folder: Path) -> Build:
    """The function ``build`` of ``model.py`` in a folder, whose other files can be imported from there.

    Raises EngineError `code_missing` or `code_error`.
    """
    path = folder / ENTRY
    if not path.is_file():
        raise EngineError("code_missing", f"The code has no {ENTRY}.")
    make_importable(folder)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    found = importlib.util.spec_from_file_location(MODULE, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[MODULE] = module
    guarded(f"Loading {ENTRY}", found.loader.exec_module, module)
    build = getattr(module, FUNCTION, None)
    if not callable(build):
        raise EngineError("code_missing", f"{ENTRY} has no function {FUNCTION}(schema, **params).")
    return build  # type: ignore[no-any-return]


def files_of(folder: Path) -> dict[str, bytes]:
    """{path: content} of all files of the code, for a package that carries it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths[:MOST_FILES]}
