"""Semantic versions, computed: how far a version departs from the last release decides the next number.

The rules are those of semver.org for the model's interface: what a caller sends (inputs) and gets (output) is the
public interface; weights are its implementation.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from .models import ModelVersion, Ref, RegisteredModel

PATCH, MINOR, MAJOR = "patch", "minor", "major"
BUMPS = (PATCH, MINOR, MAJOR)
NUMBER = re.compile(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})")
FIRST = "1.0.0"
MOST_NAMED = 5


@dataclass
class Proposal:
    """The next number for a version and why: ``bump`` is the least that its signature allows."""

    number: str
    bump: str
    base: ModelVersion | None
    base_number: str = ""
    reasons: list[str] = field(default_factory=list)


def latest_release(model: RegisteredModel) -> Ref | None:
    """The tag with the highest semantic number."""
    tags = Ref.objects.filter(model=model, kind=Ref.Kind.TAG).select_related("version")
    numbered = [tag for tag in tags if NUMBER.fullmatch(tag.name)]
    return max(numbered, key=lambda tag: parts_of(tag.name), default=None)


def parts_of(number: str) -> tuple[int, int, int]:
    """(major, minor, patch). Raises ValueError for anything but three plain numbers."""
    matched = NUMBER.fullmatch(number)
    if matched is None:
        raise ValueError(f"“{number[:40]}” is not a semantic version.")
    return int(matched[1]), int(matched[2]), int(matched[3])


def raised(number: str, bump: str) -> str:
    major, minor, patch = parts_of(number)
    if bump == MAJOR:
        return f"{major + 1}.0.0"
    return f"{major}.{minor + 1}.0" if bump == MINOR else f"{major}.{minor}.{patch + 1}"


def proposal(version: ModelVersion, bump: str | None = None) -> Proposal:
    """What releasing this version would be called; a greater ``bump`` than necessary is respected."""
    last = latest_release(version.model)
    if last is None:
        return Proposal(FIRST, MAJOR, None, reasons=["the first release"])
    least, reasons = necessary_bump(last.version, version)
    chosen = max(bump or least, least, key=BUMPS.index)
    return Proposal(raised(last.name, chosen), least, last.version, last.name, reasons)


def necessary_bump(base: ModelVersion, head: ModelVersion) -> tuple[str, list[str]]:
    """The least bump from one version to the other, and what demands it."""
    breaking = [*_task_breaks(base, head), *_input_breaks(_inputs(base), _inputs(head)), *_class_breaks(base, head)]
    if breaking:
        return MAJOR, breaking
    extending = [*_new_inputs(base, head), *_new_classes(base, head), *_architecture(base, head)]
    return (MINOR, extending) if extending else (PATCH, ["same signature, new weights"])


def changelog_line(proposed: Proposal, version: ModelVersion) -> str:
    """One sentence from the diff: why the number, which data, settings and metrics changed."""
    base = proposed.base
    if base is None:
        return f"{proposed.number}: first release. {_metric_text(version.metrics, {})}".strip()
    parts = ["; ".join(proposed.reasons)]
    if version.dataset_version_id != base.dataset_version_id and version.dataset_version:
        parts.append(f"trained on {version.dataset_version.dataset.name} v{version.dataset_version.number}")
    before, after = (each.lineage.get("settings", {}) for each in (base, version))
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        parts.append(f"settings changed: {', '.join(changed[:MOST_NAMED])}{more}")
    if text := _metric_text(version.metrics, base.metrics):
        parts.append(text)
    return f"{proposed.number}: {'. '.join(parts)}"


def _metric_text(metrics: dict[str, Any], before: dict[str, Any]) -> str:
    shown = []
    for name in list(metrics)[:MOST_NAMED]:
        old = f"{before[name]:.4g} → " if isinstance(before.get(name), int | float) else ""
        if isinstance(metrics[name], int | float):
            shown.append(f"{name} {old}{metrics[name]:.4g}")
    return ", ".join(shown)


def _inputs(version: ModelVersion) -> dict[str, dict[str, Any]]:
    return {column["name"]: column for column in version.signature.get("inputs", [])}


def _classes(version: ModelVersion) -> list[str]:
    return [str(name) for name in version.signature.get("output", {}).get("classes") or []]


def _task_breaks(base: ModelVersion, head: ModelVersion) -> list[str]:
    found = [f"task {base.task} → {head.task}"] if base.task != head.task else []
    before, after = base.signature.get("target"), head.signature.get("target")
    return found + ([f"target {before or 'none'} → {after or 'none'}"] if before != after else [])


def _input_breaks(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[str]:
    """Requests that were right and would be refused or misread now."""
    found = _named("input removed", before.keys() - after.keys())
    found += _named(
        "required input added", {name for name in after.keys() - before.keys() if not _optional(after[name])}
    )
    for name in sorted(before.keys() & after.keys()):
        if before[name]["type"] != after[name]["type"]:
            found.append(f"input {name}: {before[name]['type']} → {after[name]['type']}")
        elif _optional(before[name]) and not _optional(after[name]):
            found.append(f"input {name} may no longer be left out")
    return found


def _optional(column: dict[str, Any]) -> bool:
    return bool(column.get("nullable"))


def _class_breaks(base: ModelVersion, head: ModelVersion) -> list[str]:
    return _named("class removed", set(_classes(base)) - set(_classes(head)))


def _new_inputs(base: ModelVersion, head: ModelVersion) -> list[str]:
    return _named("optional input added", _inputs(head).keys() - _inputs(base).keys())


def _new_classes(base: ModelVersion, head: ModelVersion) -> list[str]:
    return _named("class added", set(_classes(head)) - set(_classes(base)))


def _architecture(base: ModelVersion, head: ModelVersion) -> list[str]:
    before, after = (each.lineage.get("settings", {}).get("architecture") for each in (base, head))
    return [f"architecture {before} → {after}"] if before != after else []


def _named(what: str, names: Any) -> list[str]:
    """One sentence for a set of names, the first few of them given."""
    if not names:
        return []
    shown = ", ".join(sorted(map(str, names))[:MOST_NAMED])
    more = len(names) - MOST_NAMED
    return [f"{what}: {shown}{f' and {more} more' if more > 0 else ''}"]
