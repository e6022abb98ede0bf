"""The work of a merge: weights tensor by tensor, everything else from the branch, evaluated, committed with two parents."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from django.conf import settings
from django.db import transaction
from safetensors.torch import save_file

from datasets.models import DatasetVersion
from dlplatform.engine import metrics, package
from dlplatform.engine.adapters import frozen
from dlplatform.engine.behaviour import labels_of
from dlplatform.engine.durable import to_json
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.grams import collect_grams
from dlplatform.engine.merging import Grams, MergeConflict, Recipe, merge_weights
from dlplatform.engine.predict import Predictor
from dlplatform.engine.runners import TorchRunner
from dlplatform.engine.table import Table
from dlplatform.engine.tokens import FILE as TOKENIZER
from dlplatform.jobs import LeaseLost
from dlplatform.objects.errors import CorruptObject, MissingObject

from . import history, services
from .comparisons import failure
from .merges import ADAPTER
from .models import Merge, ModelVersion, Ref
from .workbench import Stopped, Workbench

WEIGHTS = "model.safetensors"
MODEL = "model.json"
# What a merge takes from the branch without asking: it tells of the parents' training, not of the network.
TOLD_ANEW = {"metrics", "lineage", "config", "rows", "versions", "training", "finetune", "targets"}
# What counts of an input; ranges, examples and the order of frequent values are those of the data.
INPUT = ("name", "type")
GRAM_ROWS = 1024
LANGUAGE = "language-model"


class Merging:
    """One claimed merge."""

    def __init__(self, merge: Merge) -> None:
        self.merge = merge
        self.ancestor = history.common_ancestor(merge.ours, merge.theirs)
        self.bench = Workbench(merge, (merge.ours, merge.theirs), merge.dataset_version)

    def work(self) -> None:
        settings.JOB_PATH.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix="merge-", dir=settings.JOB_PATH) as folder:
                self._merge(Path(folder))
        except Stopped:
            self.bench.give_back()
        except MergeConflict as conflict:
            self._fail(
                "conflict", f"The versions conflict: {conflict}.", "Merge versions of one architecture and data."
            )
        except (EngineError, PackageError, MissingObject, CorruptObject) as error:
            self._fail("not_mergeable", str(error), "Choose other versions, or data that both can read.")
        except LeaseLost:
            return

    def _fail(self, code: str, sentence: str, next_step: str) -> None:
        self.merge.finish("failed", error=failure(code, sentence, next_step), phase="")

    def _merge(self, folder: Path) -> None:
        sides = [
            self.bench.fetch(self.merge.ours, folder / "ours", 0.0),
            self.bench.fetch(self.merge.theirs, folder / "theirs", 0.1),
        ]
        base = self.bench.fetch(self.ancestor, folder / "base", 0.15) if self.ancestor else None
        merged = folder / "merged"
        merged.mkdir()
        # A language model is measured by no rows, and its data need no column of prompts.
        table = Table({}, 0) if self.merge.theirs.task == LANGUAGE else self.bench.table()
        if self.merge.recipe["method"] == ADAPTER:
            described, tensors = self._worked_in(merged, sides[1])
        else:
            described = self._description([package.verify(side) for side in sides])
            tensors = self._weights(merged, sides, base, table)
        measured = {
            name: self._measured(each, table, fraction)
            for name, each, fraction in (("ours", sides[0], 0.6), ("theirs", sides[1], 0.7))
        }
        (merged / MODEL).write_bytes(to_json(described))
        measured["merged"] = self._measured(merged, table, 0.8)
        self._finish_package(merged, described, measured)
        self._commit(merged, {"tensors": tensors, "metrics": measured})

    def _description(self, sides: list[dict[str, Any]]) -> dict[str, Any]:
        """The branch's own; what makes the network and its inputs must be the same on both sides."""
        plain = [{**side, "inputs": [[column[name] for name in INPUT] for column in side["inputs"]]} for side in sides]
        odd = [name for name in plain[0] if name not in TOLD_ANEW and plain[0][name] != plain[1].get(name)]
        if odd:
            raise MergeConflict([f"{name} differs" for name in odd])
        return sides[0]

    def _worked_in(self, merged: Path, adapter: Path) -> tuple[dict[str, Any], dict[str, int]]:
        """The adapter's description without the adapter, and its weights within those of its base."""
        self.bench.beat(0.3, "merging")
        loaded = package.load(adapter)
        tensors = package.merged_tensors(loaded)
        save_file(tensors, merged / WEIGHTS, metadata={"format": "pt"})
        if (tokenizer := adapter / TOKENIZER).exists():
            shutil.copyfile(tokenizer, merged / TOKENIZER)
        kept = frozen(loaded.network)
        changed = sum(not torch.equal(tensors[name], tensor) for name, tensor in kept.items())
        described = {name: value for name, value in loaded.description.items() if name != "finetune"}
        return described, {"merged": changed, "same": len(tensors) - changed}

    def _weights(self, merged: Path, sides: list[Path], base: Path | None, table: Table) -> dict[str, int]:
        """Write the merged file; {how: number of tensors}."""
        wanted = self.merge.recipe
        regmean = wanted["method"] == "regmean"
        shares = tuple(map(float, wanted["shares"])) if wanted.get("shares") and not regmean else None
        recipe = Recipe(wanted["method"], shares, float(wanted["density"]), float(wanted["shrink"]))
        parents, grams = self._with_grams(sides, base, table) if regmean else (sides, [])
        report = merge_weights(
            merged / WEIGHTS, [side / WEIGHTS for side in parents], base / WEIGHTS if base else None, recipe, grams,
            beat=lambda done: self.bench.beat(0.2 + 0.4 * done, "merging"),
        )  # fmt: skip
        kinds = [row["how"] for row in report]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def _with_grams(self, sides: list[Path], base: Path | None, table: Table) -> tuple[list[Path], list[Grams]]:
        """The parents of RegMean, and what its layers see of their own data.

        The common ancestor is a third parent: without it the merge forgets what both sides had left as it was
        (benchmarks/merging.py).
        """
        parents, versions = [*sides], [self.merge.ours, self.merge.theirs]
        if base is not None and self.ancestor is not None:
            parents, versions = [*parents, base], [*versions, self.ancestor]
        tables = [self._own_rows(version, table) for version in versions]
        return parents, [self._grams(parent, rows) for parent, rows in zip(parents, tables, strict=True)]

    def _own_rows(self, version: ModelVersion, table: Table) -> Table:
        """What the version learned from; the merge's own rows where that is not known or not there any more."""
        data = version.dataset_version
        if data is None or data == self.merge.dataset_version or data.state != DatasetVersion.State.READY:
            return table
        return self.bench.table(data)

    def _grams(self, side: Path, table: Table) -> Grams:
        predictor = Predictor(side)
        if predictor.writer is not None:
            raise EngineError(
                "bad_data", "RegMean takes what layers see from rows, of which a language model answers none."
            )
        inputs = {column["name"] for column in predictor.description["inputs"]}
        rows = Table({name: values for name, values in table.columns.items() if name in inputs}, table.rows)
        chosen = np.linspace(0, table.rows - 1, min(table.rows, GRAM_ROWS)).astype(np.int64)
        self.bench.beat(0.2, "collecting inputs")
        run = TorchRunner(predictor.network)  # a shorter way may leave out the layers that are watched
        return collect_grams(predictor.network, lambda: run(predictor.encode(rows.take(chosen))))

    def _measured(self, side: Path, table: Table, fraction: float) -> dict[str, Any]:
        """Metrics on all labelled rows of the dataset version; empty where it lacks the target."""
        if self.merge.theirs.task == LANGUAGE:
            return {}  # its measure is the loss on texts, which only training takes
        target = self.bench.target()
        if side.name == "ours" and self.merge.recipe["method"] == ADAPTER:
            return {}  # the base may know other classes; its own measures stand on its page
        classes, predicted = self.bench.predictions(side, table, fraction)
        if target is None:
            return {}
        values = table.columns[target.name]
        actual = labels_of(target, values, classes) if classes is not None else values
        known = ~np.isnan(actual)
        if not known.any():
            return {}
        if classes is not None:
            return metrics.classification(actual[known].astype(np.int64), predicted[known])
        return metrics.regression(actual[known], predicted[known, 0])

    def _finish_package(self, merged: Path, described: dict[str, Any], measured: dict[str, Any]) -> None:
        ours, theirs, data = self.merge.ours, self.merge.theirs, self.merge.dataset_version
        told = f"v{ours.number} and v{theirs.number} merged by {self.merge.recipe['method']}"
        described = {**described, "metrics": measured["merged"], "lineage": {"merge": told}}
        (merged / MODEL).write_bytes(to_json(described))
        lines = [f"# {told}", "", f"Measured on all rows of {data.dataset.name} v{data.number}, those that the parents",
                 "learned from among them: compare the three, do not take the figures for held-out ones.", "",
                 f"| metric | v{ours.number} | v{theirs.number} | merged |", "|---|---|---|---|"]  # fmt: skip
        for name in measured["merged"]:
            cells = [measured[side].get(name) for side in ("ours", "theirs", "merged")]
            lines.append(f"| {name} | {' | '.join('-' if each is None else f'{each:.4g}' for each in cells)} |")
        (merged / "README.md").write_text("\n".join(lines) + "\n")
        package.verify(merged)

    def _commit(self, merged: Path, result: dict[str, Any]) -> None:
        merge = self.merge
        assert merge.created_by is not None
        told = merge.theirs if merge.recipe["method"] == ADAPTER else merge.ours
        like = {path: entry["sha256"] for path, entry in merge.ours.tree.items()}
        tree = services.store_directory(merge.model.organization_id, merged, like=like)
        self.bench.beat(0.95, "committing")
        with transaction.atomic():
            version = services.commit_version(
                actor=merge.created_by, model=merge.model, tree=tree, task=told.task,
                signature=told.signature, metrics=result["metrics"]["merged"],
                lineage={"merge": str(merge.pk), "recipe": merge.recipe, "settings": told.lineage.get("settings", {})},
                message=f"Merge v{merge.theirs.number} into {merge.branch} by {merge.recipe['method']}",
                dataset_version=merge.dataset_version, parents=self._parents(), branch=merge.branch,
            )  # fmt: skip
            merge.finish("succeeded", output_version=version, result=result, progress=1.0, phase="")

    def _parents(self) -> list[Any]:
        """Both; refuses when the branch has moved on since the merge was asked for."""
        merge = self.merge
        if merge.recipe["method"] == ADAPTER:
            return [merge.theirs, merge.ours]
        head = Ref.objects.filter(model=merge.model, kind=Ref.Kind.BRANCH, name=merge.branch).first()
        if head is None or head.version_id != merge.ours_id:
            raise MergeConflict([f"the branch “{merge.branch}” has moved on meanwhile; merge again"])
        return [merge.ours, merge.theirs]
