"""Warnings about a table that was read: what a person would want to know before training on it."""

from __future__ import annotations

from typing import Any

from datasets.ingestion.association import strongest
from datasets.ingestion.leakage import leakage_problem
from datasets.ingestion.profile import TableProfiler
from datasets.ingestion.result import Column, Findings, shown

Profile = dict[str, dict[str, Any]]

MOSTLY_MISSING = 0.5
MANY_CATEGORIES = 1_000
ID_ROWS = 20
ID_LENGTH = 64
TARGET_NAMES = ("target", "label", "class", "y", "outcome", "response")
GUESS_ROWS = 5_000
GUESS_COLUMNS = 500
IMBALANCE = 0.01


def table_warnings(columns: list[Column], profile: Profile, profiler: TableProfiler, findings: Findings) -> None:
    """Add every warning that one look at the profile gives."""
    _duplicate_rows(profiler, findings)
    for column in columns:
        _column_warnings(column, profile[column.name], profiler, findings)
    _copied_columns(columns, profile, profiler, findings)
    target = probable_target(columns, profile)
    if target is not None:
        _imbalance(target, profile[target], findings)
        _probable_leaks(target, columns, profiler, findings)


def _duplicate_rows(profiler: TableProfiler, findings: Findings) -> None:
    repeated, exact = profiler.duplicate_rows()
    if repeated:
        about = "" if exact else "about "
        findings.warn(
            "duplicate_rows",
            f"{about}{repeated:,} of {profiler.rows:,} rows repeat an earlier row in every column. Remove "
            "them if they "
            "are mistakes: a row in both training and validation data makes the result look better than "
            "it is.",
        )


def _column_warnings(column: Column, profile: dict[str, Any], profiler: TableProfiler, findings: Findings) -> None:
    name = column.name
    if profile["count"] == 0:
        findings.warn("all_missing", f"Column {shown(name)} has no values at all. Leave it out.", column=name)
        return
    if profile["missing_fraction"] >= MOSTLY_MISSING:
        findings.warn(
            "mostly_missing",
            f"Column {shown(name)}: {100 * profile['missing_fraction']:.0f} % of the values are missing. "
            "Fill it at the source, or leave it out.",
            column=name,
        )
    if profile["distinct"] == 1 and profiler.rows > 1:
        findings.warn(
            "constant_column",
            f"Column {shown(name)} holds the same value in every row that has one. Leave it out, it "
            "cannot explain "
            "anything.",
            column=name,
        )
    elif is_id_like(column, profile, profiler):
        findings.warn(
            "id_like",
            f"Column {shown(name)} looks like an identifier: every value occurs once. Leave it out of the "
            "features, "
            "a model would learn the rows by heart.",
            column=name,
        )
    elif column.type == "category" and profile["distinct"] > MANY_CATEGORIES:
        findings.warn(
            "high_cardinality",
            f"Column {shown(name)} has {profile['distinct']:,} different categories. Group the rare ones, "
            "or treat it "
            "as text.",
            column=name,
        )


def is_id_like(column: Column, profile: dict[str, Any], profiler: TableProfiler) -> bool:
    """A unique value in every row: short text, or integers in a dense or rising sequence."""
    count = profile["count"]
    if "names" in profile:
        return False  # a file's name, which runs leave out by themselves
    if count < ID_ROWS or count < profiler.rows or profile["distinct"] < count * _unique_share(profile):
        return False
    if column.type in ("text", "category"):
        return bool(profile["length"]["max"] <= ID_LENGTH)
    if column.type != "integer":
        return False
    dense = profile["max"] - profile["min"] < 2 * count
    return bool(dense or profiler.columns[profiler.names.index(column.name)].increasing)


def _unique_share(profile: dict[str, Any]) -> float:
    """An estimate of the distinct count may fall short of the truth by a few per cent."""
    return 0.97 if "distinct" in profile.get("approximate", ()) else 1.0


def _copied_columns(columns: list[Column], profile: Profile, profiler: TableProfiler, findings: Findings) -> None:
    """Columns equal to an earlier one in every row."""
    seen: dict[tuple[str, int], str] = {}
    for column, summary in zip(columns, profiler.columns, strict=True):
        if profile[column.name]["distinct"] < 2:
            continue
        original = seen.setdefault((summary.kind, summary.fingerprint), column.name)
        if original != column.name:
            findings.warn(
                "duplicate_column",
                f"Column {shown(column.name)} equals column {shown(original)} in every row. Leave one of them out.",
                column=column.name,
            )


def probable_target(columns: list[Column], profile: Profile) -> str | None:
    """The column that a run would probably predict: named like a target, else the last one if it can be
    one.
    """
    named = [column.name for column in columns if column.name.lower() in TARGET_NAMES]
    if named:
        return named[-1]
    last = columns[-1]
    return last.name if last.type in ("category", "boolean") and profile[last.name]["distinct"] > 1 else None


def _imbalance(target: str, profile: dict[str, Any], findings: Findings) -> None:
    top = profile.get("top", [])
    if not 2 <= profile["distinct"] <= len(top) or profile.get("type") == "text":
        return
    rarest = top[-1]
    if rarest["count"] < IMBALANCE * profile["count"]:
        findings.warn(
            "class_imbalance",
            f"Column {shown(target)}, perhaps the target: the class {shown(rarest['value'])} has only "
            f"{rarest['count']} of "
            f"{profile['count']:,} rows. Collect more of it, or judge models by a measure that heeds rare "
            "classes.",
            column=target,
        )


def _probable_leaks(target: str, columns: list[Column], profiler: TableProfiler, findings: Findings) -> None:
    """A cheap look at the sampled rows; a run asks `leakage_warnings` about its true target."""
    samples = {
        column.name: summary.sampled()[:GUESS_ROWS] for column, summary in zip(columns, profiler.columns, strict=True)
    }
    truth = samples[target]
    for column in columns[:GUESS_COLUMNS]:
        if column.name == target:
            continue
        link = strongest(samples[column.name], truth)
        if link is not None:
            findings.add(leakage_problem(column.name, target, link))
