"""What differs between two versions, of one model or of two, as far as their commits tell: no weight is read for it.

Weights and behaviour are compared by a job (`registry.comparisons`).
"""

from typing import Any

from datasets.models import DatasetVersion
from dlplatform.engine.config import ConfigError
from dlplatform.engine.finetune_config import recorded_finetune

from .history import common_ancestor
from .models import ModelVersion
from .releases import necessary_bump

MOST_COLUMNS = 200


def diff(base: ModelVersion, head: ModelVersion) -> dict[str, Any]:
    """Every section of the comparison, ready for JSON."""
    ancestor = common_ancestor(base, head) if base.model_id == head.model_id else None
    bump, reasons = necessary_bump(base, head)
    return {
        "base": _named(base),
        "head": _named(head),
        "common_ancestor": _named(ancestor) if ancestor else None,
        "files": files(base.tree, head.tree),
        "settings": changes(settings_of(base), settings_of(head)),
        "signature": {"bump": bump, "reasons": reasons, **_signature(base, head)},
        "metrics": _metrics(base.metrics, head.metrics),
        "data": data(base.dataset_version, head.dataset_version),
    }


def _named(version: ModelVersion) -> dict[str, Any]:
    return {"id": str(version.pk), "number": version.number, "model": str(version.model_id)}


def settings_of(version: ModelVersion) -> dict[str, Any]:
    """{"params.width": 256, "finetune.rank": 8, …}: those of its training, and how its base was fine-tuned."""
    return _flat(version.lineage.get("settings") or {}) | finetuning_of(version.lineage.get("finetune"))


def finetuning_of(raw: Any) -> dict[str, Any]:
    """{"finetune.rank": 8, …} of what a run or a version recorded, as it was meant then; blocks as a text."""
    try:
        known = recorded_finetune(raw).to_dict() if raw else {}
    except ConfigError:  # sent from elsewhere
        known = raw if isinstance(raw, dict) else {}
    plain = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in known.items()}
    return _flat(plain, "finetune.")


def files(base: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """Paths that were added, removed or changed, and how many stayed."""
    both = sorted(base.keys() & head.keys())
    changed = [path for path in both if base[path]["sha256"] != head[path]["sha256"]]
    return {
        "added": [{"path": path, "size": head[path]["size"]} for path in sorted(head.keys() - base.keys())],
        "removed": [{"path": path, "size": base[path]["size"]} for path in sorted(base.keys() - head.keys())],
        "changed": [{"path": path, "base": base[path]["size"], "head": head[path]["size"]} for path in changed],
        "same": len(both) - len(changed),
    }


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"params.width": 256, …}"""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def changes(base: dict[str, Any], head: dict[str, Any]) -> list[dict[str, Any]]:
    """[{name, base, head}] of the values that differ; None where one side has none."""
    return [
        {"name": name, "base": base.get(name), "head": head.get(name)}
        for name in sorted(base.keys() | head.keys())
        if base.get(name) != head.get(name)
    ]


def _signature(base: ModelVersion, head: ModelVersion) -> dict[str, Any]:
    before, after = ({one["name"]: one["type"] for one in each.signature.get("inputs", [])} for each in (base, head))
    classes = [list(map(str, each.signature.get("output", {}).get("classes") or [])) for each in (base, head)]
    return {
        "inputs": changes(before, after),
        "classes_added": [name for name in classes[1] if name not in classes[0]],
        "classes_removed": [name for name in classes[0] if name not in classes[1]],
    }


def _metrics(base: dict[str, Any], head: dict[str, Any]) -> list[dict[str, Any]]:
    """Every metric of either, with the difference where both have it."""
    rows = []
    for name in sorted(base.keys() | head.keys()):
        before, after = base.get(name), head.get(name)
        change = after - before if isinstance(before, int | float) and isinstance(after, int | float) else None
        rows.append({"name": name, "base": before, "head": after, "change": change})
    return rows


def data(base: DatasetVersion | None, head: DatasetVersion | None) -> dict[str, Any]:
    """Rows, columns and how far each column's distribution moved; empty when one side has no data of ours."""
    if base is None or head is None:
        return {"same": base is head, "base": _data_named(base), "head": _data_named(head), "columns": []}
    named = {"same": base.pk == head.pk, "base": _data_named(base), "head": _data_named(head)}
    before = {column["name"]: column["type"] for column in base.columns}
    after = {column["name"]: column["type"] for column in head.columns}
    return {
        **named,
        "types": changes(before, after),
        "columns": [] if named["same"] else _moved_columns(base, head, [name for name in after if name in before]),
    }


def _data_named(version: DatasetVersion | None) -> dict[str, Any] | None:
    if version is None:
        return None
    return {
        "id": str(version.pk), "dataset": version.dataset.name, "dataset_id": str(version.dataset_id),
        "number": version.number, "rows": version.rows,
    }  # fmt: skip


def _moved_columns(base: DatasetVersion, head: DatasetVersion, names: list[str]) -> list[dict[str, Any]]:
    before, after = base.profile or {}, head.profile or {}
    rows = [_column_change(name, before.get(name, {}), after.get(name, {})) for name in names[:MOST_COLUMNS]]
    return sorted(rows, key=lambda row: -(row["shift"] or 0.0))


def _column_change(name: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Missing share and centre on both sides; ``shift`` is 0 for the same distribution and grows with the distance."""
    return {
        "name": name,
        "missing": [before.get("missing_fraction"), after.get("missing_fraction")],
        "mean": [before.get("mean"), after.get("mean")],
        "shift": _mean_shift(before, after) if "mean" in before and "mean" in after else _share_shift(before, after),
    }


def _mean_shift(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """Cohen's d: the difference of the means in pooled standard deviations (Cohen 1988, chapter 2)."""
    if None in (before["mean"], after["mean"], before.get("std"), after.get("std")):
        return None
    pooled = ((before["std"] ** 2 + after["std"] ** 2) / 2) ** 0.5
    difference = abs(after["mean"] - before["mean"])
    return round(difference / pooled, 4) if pooled else float(difference > 0)


def _share_shift(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """Total variation distance between the shares of the frequent values: 0 the same, 1 disjoint."""
    if not before.get("top") or not after.get("top") or not before.get("count") or not after.get("count"):
        return None
    shares = [
        {str(one["value"]): one["count"] / profile["count"] for one in profile["top"]} for profile in (before, after)
    ]
    names = shares[0].keys() | shares[1].keys()
    return round(sum(abs(shares[0].get(name, 0.0) - shares[1].get(name, 0.0)) for name in names) / 2, 4)
