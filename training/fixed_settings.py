"""Settings of a run that its base fixes: given, they would change nothing, so another value than the base's is refused.

A package brings its whole network and what was fitted to its data; a Hugging Face directory what reads texts, looks at
images, or writes. Runs and searches ask here alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import orjson
from django.core.exceptions import ValidationError

from dlplatform.api import Conflict
from dlplatform.engine.description import MODEL
from dlplatform.engine.errors import PackageError
from dlplatform.engine.fields import ENCODER_PARAMS, FIELDS, PRETRAINED
from dlplatform.engine.transformers_config import longest_text
from dlplatform.engine.transformers_settings import SENSES
from dlplatform.objects.errors import CorruptObject, MissingObject
from registry.availability import require_files
from registry.models import ModelVersion
from registry.services import object_store
from registry.transformers_bases import LANGUAGE, config_of, is_transformers, takes

from .finetune_outlook import will_write

PARAMS: Final = "params."
OF_A_PACKAGE: Final = (
    "architecture", "folds", "text_encoder", "image_encoder", "image_size", "text_length", "tokenizer", "vocabulary", *SENSES,
)  # fmt: skip
# Of a directory that is taught to write: how much of a text it reads at once is for the run to say.
OF_A_WRITER: Final = tuple(name for name in OF_A_PACKAGE if name != "text_length")
# Of one that reads the texts of rows, or looks at their images, beside the networks of other columns.
OF_AN_ENCODER: Final = {
    "text": ("text_encoder", "tokenizer", "vocabulary"),
    "image": ("image_encoder",),
}
HELD_OUT: Final = "validation_fraction"  # by its groups, where a base was cross-fitted
MOST_BYTES: Final = 16 << 20  # of a description that is looked into
_DEFAULTS: Final = {one.name: one.default for one in FIELDS}
_ABSENT: Final = object()

Fixed = Callable[[str], bool]


def fixed_by(base: ModelVersion, task: str = "") -> Fixed:
    """Whether a setting (`params.width` among them) changes nothing beside a base; ``task``: what it is to learn.

    Raises PackageError for a Hugging Face directory whose files are gone.
    """
    if not is_transformers(base):
        own = (*OF_A_PACKAGE, *([HELD_OUT] if _is_cross_fitted(base) else []))
        return lambda name: name in own or name.startswith(PARAMS)
    if will_write(base, task):
        return lambda name: name in OF_A_WRITER or name.startswith(PARAMS)
    sense = takes(base)
    params = tuple(PARAMS + one.name for one in ENCODER_PARAMS if one.name.startswith(f"{sense}_"))
    return (*OF_AN_ENCODER[sense], *params).__contains__


def _is_cross_fitted(base: ModelVersion) -> bool:
    folds = (base.lineage.get("settings") or {}).get("folds")
    return isinstance(folds, int) and folds > 1


def faults(
    base: ModelVersion, task: str, config: Mapping[str, Any], kept: Mapping[str, Any]
) -> dict[str, ValidationError]:
    """{config.NAME: what is wrong} of settings that the base fixes to something else. ``kept``: those of a run that is
    cloned, which may have them from the time when they were not refused. The files of the base are asked only where they
    decide. Raises Conflict where they are gone."""
    before = dict(_flat(kept))
    asked = {name: value for name, value in _flat(config) if _may_be_fixed(name) and value != _default(name)}
    asked = {name: value for name, value in asked.items() if value != before.get(name, _ABSENT)}
    fixed = _fixed_by_its_files(base, task) if asked else _nothing
    asked = {name: value for name, value in asked.items() if fixed(name)}
    known = list(_records(base, task)) if asked else []
    return {
        f"config.{name}": _fault(name, value)
        for name, value in asked.items()
        if not any(value == each.get(name, _ABSENT) for each in known)
    }


def _may_be_fixed(name: str) -> bool:
    """Whether any base at all fixes a setting of the name."""
    return name in (*OF_A_PACKAGE, HELD_OUT) or name.startswith(PARAMS)


def _nothing(name: str) -> bool:
    return False


def _fixed_by_its_files(base: ModelVersion, task: str) -> Fixed:
    """`fixed_by` for a run that is to start from the base. Raises Conflict."""
    try:
        return fixed_by(base, task)
    except PackageError as error:
        raise _gone(base, error) from error


def longest_text_of(base: ModelVersion) -> int | None:
    """The most tokens that a Hugging Face directory reads of a text; None of any other base. Raises Conflict where its files are
    gone."""
    try:
        if not is_transformers(base) or takes(base) != "text":
            return None
        return longest_text(config_of(base))
    except PackageError as error:
        raise _gone(base, error) from error


def _gone(base: ModelVersion, error: PackageError) -> Exception:
    require_files(base)
    return Conflict(f"No run can start from v{base.number}. {error}", code="not_trainable")


def _fault(name: str, value: Any) -> ValidationError:
    text = f"The base fixes {name}, so that {str(value)[:60]} would change nothing; leave it out."
    return ValidationError(text, code="not_for_base")


def said_once(base: ModelVersion, config: Mapping[str, Any]) -> dict[str, Any]:
    """Checked settings without the architecture that a package brings: the engine takes none beside it."""
    return {**config, **({} if is_transformers(base) else dict.fromkeys(SENSES))}


def free_of(base: ModelVersion, task: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that the base fixes. Raises PackageError as `fixed_by` does."""
    fixed = fixed_by(base, task)
    free = {name: value for name, value in config.items() if name != "params" and not fixed(name)}
    given = config.get("params")
    params = {name: value for name, value in given.items() if not fixed(PARAMS + name)} if given else {}
    return {**free, **({"params": params} if params else {})}


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(params.width, 64) and the like; what is no object of settings is refused where they are read."""
    params = config.get("params")
    yield from ((name, value) for name, value in config.items() if name != "params" and isinstance(name, str))
    if isinstance(params, Mapping):
        yield from ((f"{PARAMS}{name}", value) for name, value in params.items())


def _default(name: str) -> Any:
    return "auto" if name.startswith(PARAMS) else _DEFAULTS.get(name, _ABSENT)


# --- what a base has ------------------------------------------------------------------------------------


def _records(base: ModelVersion, task: str) -> Iterator[dict[str, Any]]:
    """What the base says of its settings: as they were asked for, as they came out, and what its network is."""
    if is_transformers(base):
        yield from ({f"{sense}_encoder": PRETRAINED} for sense in OF_AN_ENCODER)
        if will_write(base, task):
            yield {"text_encoder": "transformer"}  # as a language model records it
        return
    for name in ("config", "settings"):
        yield dict(_flat(base.lineage.get(name) or {}))
    yield _network_of(base)


def _network_of(base: ModelVersion) -> dict[str, Any]:
    """The settings that its network answers to: a version that was tuned recorded some that changed nothing."""
    shape = _architecture(base)
    inputs = shape.get("inputs")
    sizes = inputs if isinstance(inputs, dict) else {}
    params = {f"{PARAMS}{name}": value for name, value in shape.items() if not isinstance(value, dict | list)}
    if base.task == LANGUAGE:
        named = {name: shape.get(name) for name in ("width", "layers", "heads")}
        params |= {f"{PARAMS}text_{name}": value for name, value in named.items()}
    elif isinstance(groups := shape.get("groups"), int) and isinstance(members := shape.get("members"), int):
        params[f"{PARAMS}members"] = groups * members
    lengths = {
        "text_length": sizes.get("sequence_length") or shape.get("length"),
        "image_size": sizes.get("image_size"),
    }
    plain = {name: shape.get(name) for name in ("architecture", "image_encoder")}
    return {**params, **lengths, **plain, "folds": shape.get("groups")}


def _architecture(base: ModelVersion) -> dict[str, Any]:
    """What ``model.json`` says of the network; nothing where it cannot be read."""
    entry = base.tree.get(MODEL)
    if entry is None or entry["size"] > MOST_BYTES:
        return {}
    try:
        found = orjson.loads(object_store(base.model.organization_id).read(entry["sha256"]))
    except (orjson.JSONDecodeError, MissingObject, CorruptObject):
        return {}
    shape = found.get("architecture") if isinstance(found, dict) else None
    return shape if isinstance(shape, dict) else {}
