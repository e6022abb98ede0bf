"""Settings of fine-tuning in a search (`finetune.rank`, …): which there are, where they count, what a trial makes of them.

Pure. A setting counts in some modes only: rank in mode lora, unfreeze_every in mode head. A search over modes may name
both; in a trial whose mode does not know a setting, what was drawn for it is left out.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from dlplatform.engine.config import ConfigError, Problem
from dlplatform.engine.finetune_config import ADAPTERS, FINETUNE_FIELDS, MODES, parse_finetune

PREFIX = "finetune."
BLOCKS = "blocks"  # of which a value is a text: names or patterns with spaces between them
USUAL = "usual"  # or this word, for those that are taken when none are named
# A text as long as a page, of language models alone; and what is of images alone.
UNSEARCHED = ("chat_template", "pixels")
NAMES = (*(one.name for one in FINETUNE_FIELDS if one.name not in UNSEARCHED), BLOCKS)
MODES_OF = {
    "adapter": ("lora",), "rank": ("lora",), "alpha": ("lora",), "head": ("lora",), "unfreeze_every": ("head",),
    BLOCKS: ("head", "lora"),
}  # fmt: skip
LOW_RANK = ("rank", "alpha")  # which ia3, a factor for each output, does not have


def bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def of_finetuning(point: Mapping[str, Any]) -> dict[str, Any]:
    """{rank: 8} of {finetune.rank: 8, learning_rate: 0.1}."""
    return {bare(name): value for name, value in point.items() if name.startswith(PREFIX)}


def counts(name: str, chosen: Mapping[str, Any]) -> bool:
    """Whether a setting does anything beside the mode and the adapter that were chosen; one not chosen suits all."""
    mode = chosen.get("mode")
    if mode is not None and mode not in MODES_OF.get(name, MODES):
        return False
    return name not in LOW_RANK or chosen.get("adapter") != "ia3"


def where_it_counts(name: str) -> str:
    """Such as: mode lora with adapter lora or dora."""
    modes = " or ".join(MODES_OF.get(name, MODES))
    return f"mode {modes}" + (f" with adapter {' or '.join(ADAPTERS[:2])}" if name in LOW_RANK else "")


def tuned(shared: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """The fine-tuning settings of a trial: what all share and what it drew, as far as they count in its mode."""
    drawn = {name: _read(name, value) for name, value in of_finetuning(point).items()}
    chosen = {**shared, **drawn}
    return {name: value for name, value in chosen.items() if counts(name, chosen)}


def _read(name: str, value: Any) -> Any:
    if name != BLOCKS or not isinstance(value, str):
        return value
    return [] if value.strip() == USUAL else value.split()


def effective(shared: Mapping[str, Any] | None, point: Mapping[str, Any]) -> dict[str, Any]:
    """What of a point does anything."""
    chosen = {**(shared or {}), **of_finetuning(point)}
    return {name: value for name, value in point.items() if not name.startswith(PREFIX) or counts(bare(name), chosen)}


def shared_by_all(shared: Mapping[str, Any], searched: Iterable[str]) -> dict[str, Any]:
    """{finetune.mode: lora} of what is not searched and does something in a trial; blocks as a text."""
    fixed = {name: shared.get(name) for name in NAMES if f"{PREFIX}{name}" not in set(searched)}
    told = {name: " ".join(value) if isinstance(value, list) else value for name, value in fixed.items()}
    return {f"{PREFIX}{name}": value for name, value in told.items() if value and counts(name, fixed)}


def problems_with(name: str, value: Any, shared: Mapping[str, Any] | None) -> list[Problem]:
    """What the engine says to one value of one setting; ``shared`` is None in a search without a base."""
    if shared is None:
        text = "Only what starts from a base is fine-tuned: give base_version, or remove this setting."
        return [(name, "unknown_field", text)]
    if bare(name) not in NAMES:
        text = f"{name[:80]} is no setting to search; known ones: {', '.join(PREFIX + one for one in NAMES)}."
        return [(name, "unknown_field", text)]
    mode = MODES_OF.get(bare(name), MODES)[0]
    try:
        parse_finetune({"mode": mode, bare(name): _read(bare(name), value)})
    except ConfigError as error:
        return [(name, code, message) for _, code, message in error.problems]
    return []


def conditions(shared: Mapping[str, Any], choices: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Every pair of mode and adapter that trials can have; ``choices``: {mode: values} where it is searched."""
    names = ("mode", "adapter")
    values = [list(choices.get(name, [shared.get(name)])) for name in names]
    return [dict(zip(names, pair, strict=True)) for pair in itertools.product(*values)]
