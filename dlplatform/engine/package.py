"""The model package: a directory of JSON, safetensors and text. Code is in it only when its architecture is somebody's
own, and is loaded only in a sandbox.

``verify`` trusts nothing: it checks the files, the header of the weights and the shapes that ``model.json``
promises before anything of their size is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dlplatform.engine import compact, graphs, programs, transformers_images, transformers_models
from dlplatform.engine.adapters import PREFIX, load_tensors, merged
from dlplatform.engine.adapters import WEIGHTS as ADAPTER
from dlplatform.engine.blocks import block_of
from dlplatform.engine.chat_template import chat_of
from dlplatform.engine.config import ConfigError
from dlplatform.engine.description import MODEL, read_description
from dlplatform.engine.durable import MANIFEST, check_manifest, commit_directory, to_json
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.fields import ARCHITECTURES
from dlplatform.engine.fields import CODE as OWN_CODE
from dlplatform.engine.finetune_config import recorded_finetune
from dlplatform.engine.finetuning import fresh_blocks, grown, plan_of
from dlplatform.engine.job import CODE
from dlplatform.engine.language import LanguageNetwork, LanguageShape
from dlplatform.engine.network import NetworkShape, RowNetwork, build_network
from dlplatform.engine.preprocessing import Preprocessor
from dlplatform.engine.runtime import COMPILED, EXPORTED, FILES, GRAPH, PROGRAM, runtime_of
from dlplatform.engine.safetensors_header import DTYPES, MAXIMUM_BYTES, read_header, require_tensors
from dlplatform.engine.shape_limits import check_limits
from dlplatform.engine.tokens import FILE as TOKENIZER
from dlplatform.engine.tokens import MAXIMUM_BYTES as TOKENIZER_BYTES
from dlplatform.engine.tokens import Tokenizer, read_tokenizer
from dlplatform.engine.transformers_config import CONFIG as TRANSFORMERS_CONFIG
from dlplatform.engine.transformers_config import IMAGE, checked
from dlplatform.engine.transformers_language import language_network, read_language_tokenizer
from dlplatform.engine.transformers_models import TransformersBase
from dlplatform.engine.transformers_tokens import read_transformers_tokenizer
from dlplatform.engine.user_code import CodeNetwork, load_build

WEIGHTS: Final = "model.safetensors"
LANGUAGE: Final = "language-model"
BASE: Final = "base"
CARD: Final = "README.md"
EVALUATION: Final = "evaluation.json"
_UNSAFE_SUFFIXES: Final = frozenset(
    {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz", ".dill", ".so", ".h5"}
)


@dataclass(frozen=True)
class Package:
    """A package in memory. ``network`` carries its adapters when the package is one of an adapter."""

    description: dict[str, Any]
    network: RowNetwork | LanguageNetwork
    preprocessor: Preprocessor


@dataclass(frozen=True)
class GraphPackage:
    """A package in memory whose network is written down whole: ``session`` is one of onnxruntime, or a traced module."""

    description: dict[str, Any]
    session: Any
    preprocessor: Preprocessor


def save(
    directory: Path,
    description: dict[str, Any],
    tensors: dict[str, Tensor],
    card: str,
    evaluation: dict[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> str:
    """Write a package so that it is whole or absent; returns the SHA-256 of its manifest.

    ``extra``: more files by name, such as a tokenizer.
    """
    return save_content(directory, description, weights_content(tensors), card, evaluation, extra)


def weights_content(tensors: Mapping[str, Tensor]) -> bytes:
    """The file of some tensors; the same for the same tensors."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return safetensors.torch.save(weights, metadata={"format": "pt"})


def save_content(
    directory: Path,
    description: dict[str, Any],
    content: bytes,
    card: str,
    evaluation: dict[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> str:
    """As `save`, of the file that holds the tensors, or the graph."""
    files = {
        MODEL: to_json(description),
        weights_file(description): content,
        CARD: card.encode(),
        EVALUATION: to_json(evaluation),
        **(extra or {}),
    }
    return commit_directory(directory, files, {})


def is_adapter(description: dict[str, Any]) -> bool:
    """Whether a package holds an adapter over a base instead of weights."""
    return bool(description.get("finetune", {}).get("mode") == "lora")


def weights_file(description: dict[str, Any]) -> str:
    """The file that holds a package's tensors, or its graph."""
    if whole := FILES.get(runtime_of(description).kind):
        return whole
    return ADAPTER if is_adapter(description) else WEIGHTS


def read_base(directory: Path, *, sandboxed: bool = False) -> Package | TransformersBase:
    """What a run starts from: a package of ours, or a Hugging Face directory; see `load`. Raises PackageError."""
    if (directory / MODEL).is_file() or not (directory / TRANSFORMERS_CONFIG).is_file():
        return load(directory, sandboxed=sandboxed)
    base = transformers_models.read_base(directory)
    config = base.transformer.config
    transformers_models.require_filled(
        base,
        lambda: (
            transformers_images.build(config, fresh=False)
            if base.sense == IMAGE
            else transformers_models.build(config, base.writes)
        ),
    )
    return base


def runs_code(description: dict[str, Any]) -> bool:
    """Whether the network is built by code that came with the package."""
    return bool(description["architecture"].get("architecture") == OWN_CODE)


def load(directory: Path, *, sandboxed: bool = False) -> Package:
    """Verify a package and read it; an adapter's base is the package in its folder ``base``. Raises PackageError.

    Code that came with the package is run only where the caller says that this process is a sandbox. A graph has no
    network: see `load_graph`.
    """
    description = verify(directory)
    if runtime_of(description).kind in FILES:
        raise PackageError(
            "The network is a graph, without weights of its own; take the version that it was made from instead."
        )
    if runs_code(description) and not sandboxed:
        raise PackageError("The model is built by code of its own, which is run only in a sandbox.")
    network = _built(directory, description)
    if is_adapter(description):
        _load_adapter(directory, description, network)
    else:
        try:
            network.load_state_dict(compact.restored(network, _read(directory / WEIGHTS)))
        except RuntimeError as error:
            raise PackageError(f"{WEIGHTS} cannot be read.") from error
    _check_values(network)
    transformers_models.try_out(network.eval())
    preprocessor = Preprocessor.from_dict(description["preprocessing"], _tokenizer(directory, description))
    return Package(description, network.eval(), preprocessor)


def is_graph(directory: Path) -> bool:
    """Whether a package's network is a graph, or a traced program. Raises PackageError."""
    return runtime_of(read_description(directory)).kind in FILES


def load_graph(directory: Path) -> GraphPackage:
    """Verify a package whose network is a graph, and open it. Raises PackageError."""
    description = verify(directory)
    preprocessor = Preprocessor.from_dict(description["preprocessing"], _tokenizer(directory, description))
    exported = runtime_of(description).kind == EXPORTED
    opened = programs.opened(directory / PROGRAM) if exported else graphs.opened(directory / GRAPH)
    return GraphPackage(description, opened, preprocessor)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise PackageError(f"{path.name} cannot be read.") from error


def _built(directory: Path, description: dict[str, Any]) -> RowNetwork | LanguageNetwork:
    """The network that a description promises, not initialised."""
    if description["task"] == LANGUAGE:
        return _built_to_write(directory, description)
    shape = _shape(directory, description)
    if runs_code(description):
        return _built_by_its_code(directory, description, shape)
    return build_network(shape)


def _built_to_write(directory: Path, description: dict[str, Any]) -> LanguageNetwork:
    shape = LanguageShape.from_dict(description["architecture"])
    tokenizer = _tokenizer(directory, description)
    if tokenizer is None or (shape.transformer is None and tokenizer.size != shape.vocabulary):
        raise PackageError(f"The tokenizer does not fit the vocabulary that {MODEL} describes.")
    return language_network(shape)


def _built_by_its_code(directory: Path, description: dict[str, Any], shape: NetworkShape) -> CodeNetwork:
    try:
        return CodeNetwork(shape, load_build(directory / CODE), description.get("config", {}).get("params", {}))
    except EngineError as error:
        raise PackageError(error.sentence) from error


def _load_adapter(directory: Path, description: dict[str, Any], network: RowNetwork | LanguageNetwork) -> None:
    """The base's weights, its outputs grown to this package's classes, and the adapters over them."""
    base, tensors = read_base(directory / BASE), _read(directory / ADAPTER)
    try:
        config = recorded_finetune(description["finetune"])
        weights, fresh = fitted_weights(base, network, description["output"].get("classes", []))
        absent = network.state_dict().keys() - weights.keys() - {name.removeprefix(PREFIX) for name in tensors}
        if absent:
            raise EngineError("bad_data", f"neither of the two holds {min(absent)!r}.")
        network.load_state_dict(weights, strict=False)
        plan_of(network, config, fresh, 0)
    except (ConfigError, EngineError, RuntimeError, TypeError) as error:
        raise PackageError(f"The adapter does not fit its base: {error}"[:500]) from error
    load_tensors(network, tensors)


def fitted_weights(
    base: Package | TransformersBase, network: nn.Module, classes: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """A base's tensors by their names in the network, with outputs for the given classes, and the blocks that are new.

    Raises PackageError when the weights of the base cannot be read.
    """
    if isinstance(base, TransformersBase):
        return _transformer_weights(base, network)
    weights, old = merged(base.network), base.description["output"].get("classes", [])
    return grown(weights, old, classes, 0), fresh_blocks(old, classes, list(weights))


def _transformer_weights(base: TransformersBase, network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """All that is not within the transformer is new."""
    prefix, model = next(transformers_models.parts(network))
    weights = {f"{prefix}.{name}": tensor for name, tensor in transformers_models.read_weights(base, model).items()}
    blocks = dict.fromkeys(block_of(name) for name, _ in network.named_parameters())
    return weights, [block for block in blocks if not block.startswith(f"{prefix}.")]


def merged_tensors(loaded: Package) -> dict[str, Tensor]:
    """The tensors of a whole package, adapters worked in."""
    return {name: tensor.detach().contiguous() for name, tensor in merged(loaded.network).items()}


def verify(directory: Path) -> dict[str, Any]:
    """Check a package without loading its weights; returns its description. Raises PackageError.

    Whether an adapter fits its base is only seen when it is loaded.
    """
    _check_files(directory)
    description = read_description(directory)
    _require_weights(directory, (weights_file(description),))
    if runtime_of(description).kind in FILES:
        _verify_graph(directory, description)
        return _with_whole_files(directory, description)
    header = read_header(directory / weights_file(description))
    if runtime_of(description).kind == COMPILED and not is_whole(description):
        raise PackageError("Only a network of rows that is whole and of this platform can be compiled.")
    if runs_code(description):
        _shape(directory, description)  # which tensors there should be only its code knows
    else:
        expected = _expected_tensors(directory, description)
        if not is_adapter(description):
            require_tensors(expected, header, WEIGHTS)
    return _with_whole_files(directory, description)


def is_whole(description: dict[str, Any]) -> bool:
    """Whether the package is a network of rows, with all its weights, that this platform builds."""
    return not (description["task"] == LANGUAGE or runs_code(description) or is_adapter(description))


def _verify_graph(directory: Path, description: dict[str, Any]) -> None:
    if not is_whole(description):
        raise PackageError("Only a network of rows that is whole and of this platform can be a graph.")
    runtime, shape = runtime_of(description), _shape(directory, description)
    if runtime.kind == EXPORTED:
        programs.check(directory / PROGRAM, runtime)
    else:
        graphs.check(directory / GRAPH, runtime, shape)


def _with_whole_files(directory: Path, description: dict[str, Any]) -> dict[str, Any]:
    if (directory / MANIFEST).exists():
        try:
            check_manifest(directory)
        except ValueError as error:
            raise PackageError(f"The package is damaged: {error}") from error
    return description


def _check_files(directory: Path) -> None:
    if not directory.is_dir():
        raise PackageError("The package is not a directory.")
    for path in directory.rglob("*"):
        if path.is_symlink():
            raise PackageError(f"{path.name} is a link; a package holds plain files only.")
        if path.suffix.lower() in _UNSAFE_SUFFIXES:
            raise PackageError(
                f"{path.name} may hold a pickle or binary code, which could run anything when opened. "
                "Convert the weights with safetensors.torch.save_file and upload that."
            )
    _require_weights(directory, (WEIGHTS, ADAPTER, *FILES.values()))


def _require_weights(directory: Path, names: Sequence[str]) -> None:
    """At least one of the files must be there."""
    if not any((directory / name).is_file() for name in names):
        raise PackageError(f"The package has no {names[0]}.")


def _expected_tensors(directory: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors without memory, of the shapes the description promises. Raises PackageError."""
    with torch.device("meta"):
        network = _built(directory, description)
        tensors = compact.stored(network, network.state_dict(), runtime_of(description).weights)
    total = sum(math.prod(tensor.shape) * DTYPES[tensor.dtype][1] for tensor in tensors.values())
    if total > MAXIMUM_BYTES:
        raise PackageError(f"{MODEL} describes a network of {total >> 30} GB; the limit is {MAXIMUM_BYTES >> 30}.")
    return tensors


def _tokenizer(directory: Path, description: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer of texts that are read in order, if there are any."""
    texts = any(coding.get("length") for coding in description["preprocessing"])
    if not texts and description["task"] != LANGUAGE:
        return None
    try:
        with (directory / TOKENIZER).open(encoding="utf-8") as file:
            content = file.read(TOKENIZER_BYTES + 1)
        transformer, chat = description["architecture"].get("transformer"), chat_of(description.get("chat"))
        if transformer is None:
            return read_tokenizer(content).with_chat(chat)
        if description["task"] == LANGUAGE:
            return read_language_tokenizer(content, checked(transformer).config, chat)
        return read_transformers_tokenizer(content, transformers_models.vocabulary_of(checked(transformer).config))
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"The package has no readable {TOKENIZER}.") from error


def _shape(directory: Path, description: dict[str, Any]) -> NetworkShape:
    """The network's shape, every number within limits and in step with inputs and outputs."""
    try:
        shape = NetworkShape.from_dict(description["architecture"])
        preprocessor = Preprocessor.from_dict(description["preprocessing"], _tokenizer(directory, description))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PackageError(f"{MODEL} does not describe a network of this platform.") from error
    if shape.architecture not in (*ARCHITECTURES[1:], OWN_CODE):
        raise PackageError(f"The architecture {str(shape.architecture)[:40]!r} is unknown.")
    check_limits(shape)
    columns = [(each.column.name, each.column.type) for each in preprocessor.codings]
    if columns != [(each["name"], each["type"]) for each in description["inputs"]]:
        raise PackageError("The input schema and the preprocessing name different columns.")
    sizes = preprocessor.sizes()
    if sizes != shape.inputs:
        raise PackageError("The architecture does not fit the preprocessing.")
    if shape.outputs != _outputs(description) or (shape.kind and shape.kind != description["output"].get("kind")):
        raise PackageError("The number of classes does not fit the network's outputs.")
    return shape


def _outputs(description: dict[str, Any]) -> int:
    if description["output"].get("kind") == "number":
        return 1
    classes = description["output"].get("classes")
    return len(classes) if isinstance(classes, list) and len(set(map(str, classes))) == len(classes) else -1


def _check_values(network: RowNetwork | LanguageNetwork) -> None:
    """Indices must stay inside their table; weights must be numbers."""
    known = network.encoder.known if isinstance(network, RowNetwork) else torch.zeros(0)
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < known.numel():
        raise PackageError(f"{WEIGHTS} maps a category outside the vocabulary.")
    for name, tensor in network.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise PackageError(f"The tensor {name!r} holds infinite or undefined values.")
