"""The work of an optimization: variant after variant made, verified, measured beside its parent and committed.

A variant that is committed stays, whatever happens to the job; who takes the job up again goes on with the next.
"""

import copy
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from datasets.services import local_parts
from datasets.services import object_store as dataset_store
from dlplatform.engine import package
from dlplatform.engine.compiling import FOLDER as COMPILED_FOLDER
from dlplatform.engine.compiling import Compiler
from dlplatform.engine.dataset import Dataset
from dlplatform.engine.environment import serving_threads
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.optimizing.plan import Plan, parse_plan
from dlplatform.engine.optimizing.report import report, threads
from dlplatform.engine.optimizing.rows import split_again, targets_of
from dlplatform.engine.optimizing.verifying import BrokenPass
from dlplatform.engine.optimizing.work import make_variant
from dlplatform.engine.schema import Column
from dlplatform.engine.table import read_table
from dlplatform.engine.tokens import FILE as TOKENIZER
from dlplatform.jobs import Job, LeaseLost
from dlplatform.objects.errors import CorruptObject, MissingObject

from . import services
from .comparisons import failure
from .graphs import graph_file
from .models import ModelVersion, Optimization, OptimizedVariant
from .workbench import Stopped, Workbench


class Optimizing:
    """One claimed optimization."""

    def __init__(self, optimization: Optimization) -> None:
        self.optimization = optimization
        self.version: ModelVersion = optimization.version
        # What is compiled here to be measured is found again by the inference server of this machine.
        self._compiler = Compiler(settings.CACHE_PATH / COMPILED_FOLDER, waiting=lambda: self.bench.beat(*self._told))
        self._told = (0.0, "")
        self.bench = Workbench(optimization, (self.version,), optimization.dataset_version)

    def work(self) -> None:
        settings.JOB_PATH.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix="optimize-", dir=settings.JOB_PATH) as folder:
                # Others compute on the same machine, and threads that wait for one another are the first to suffer.
                with lease_kept(self.optimization), threads(serving_threads(settings.SERVE_PROCESSES)):
                    self._work(Path(folder))
                self._finish()
        except Stopped:
            self.bench.give_back()
        except (EngineError, PackageError, MissingObject, CorruptObject) as error:
            self._fail("not_optimizable", str(error), getattr(error, "next_step", "") or "Choose other rows.")
        except LeaseLost:
            return

    def _fail(self, code: str, sentence: str, next_step: str) -> None:
        self.optimization.finish("failed", error=failure(code, sentence, next_step), phase="")

    def _work(self, folder: Path) -> None:
        waiting = list(self.optimization.variants.filter(report__isnull=True, error__isnull=True))
        if not waiting:
            return
        parent = self.bench.fetch(self.version, folder / "parent", 0.0)
        loaded = package.load(parent)
        if package.is_adapter(loaded.description):
            parent, loaded = _worked_in(parent, loaded, folder / "whole")
        rows = self._rows(loaded)
        for place, variant in enumerate(waiting):
            share = (place / len(waiting), 1 / len(waiting))
            self._one(variant, parent, loaded, rows, folder / f"variant-{variant.position}", share)

    def _rows(self, loaded: package.Package) -> Dataset:
        data = self.optimization.dataset_version
        types = {column["name"]: column["type"] for column in data.columns}
        targets = targets_of(loaded.description, types)
        inputs = [Column(column["name"], column["type"]) for column in loaded.description["inputs"]]
        self.bench.beat(0.0, "reading rows")
        table = read_table(local_parts(data), list({column.name: column for column in (*inputs, *targets)}.values()))
        store = dataset_store(data.dataset.organization_id)
        return split_again(
            loaded.description, loaded.preprocessor, table, targets, lambda value: store.read(str(value)),
            lambda: self.bench.beat(0.0, "reading rows"),
        )  # fmt: skip

    def _one(
        self, variant: OptimizedVariant, parent: Path, loaded: package.Package, rows: Dataset, folder: Path,
        share: tuple[float, float],
    ) -> None:  # fmt: skip
        """Make it, or keep the reason why it cannot be."""
        plan, beat = parse_plan(variant.plan), self._beats(share)
        try:
            make_variant(
                parent, loaded, plan, rows, folder, lambda done: beat(0.6 * done, plan.name), self._compiler.predictor
            )
            told = report(
                parent, folder, rows, self.optimization.tolerance, lambda done: beat(0.6 + 0.3 * done, "measuring"),
                self._compiler, settings.SERVE_PROCESSES,
            )  # fmt: skip
        except (BrokenPass, EngineError) as error:
            code = error.code if isinstance(error, EngineError) else "broken"
            fix = error.next_step if isinstance(error, EngineError) else "Nothing was kept. Choose another pass."
            beat(0.95, "committing")
            variant.error = failure(code, str(error), fix)
            variant.save(update_fields=["error"])
        else:
            beat(0.95, "committing")
            self._commit(variant, plan, folder, told)

    def _beats(self, share: tuple[float, float]) -> Callable[[float, str], None]:
        first, each = share

        def beat(done: float, phase: str) -> None:
            self._told = (first + each * done, phase[:60])
            self.bench.beat(*self._told)

        return beat

    def _commit(self, variant: OptimizedVariant, plan: Plan, folder: Path, told: dict[str, Any]) -> None:
        made, parent = self.optimization, self.version
        assert made.created_by is not None
        like = {path: entry["sha256"] for path, entry in parent.tree.items()}
        tree = services.store_directory(made.model.organization_id, folder, like=like)
        metrics = package.verify(folder)["metrics"]
        with transaction.atomic():
            made.write(phase="committing")  # refused when somebody else holds the job by now
            variant.output_version = services.commit_version(
                actor=made.created_by, model=made.model, tree=tree, task=parent.task, signature=parent.signature,
                metrics=metrics, lineage=self._lineage(plan), message=f"{plan.name} of v{parent.number}",
                dataset_version=made.dataset_version, parents=[parent], branch=f"optimised-v{parent.number}",
            )  # fmt: skip
            variant.graph = tree[name]["sha256"] if (name := graph_file(tree)) else ""
            variant.report = told
            variant.save(update_fields=["output_version", "graph", "report"])

    def _lineage(self, plan: Plan) -> dict[str, Any]:
        kept = {
            name: self.version.lineage[name] for name in ("settings", "seed", "target") if name in self.version.lineage
        }
        return {"optimization": str(self.optimization.pk), "plan": plan.to_dict(), **kept}

    def _finish(self) -> None:
        variants = list(self.optimization.variants.all())
        if any(each.output_version_id for each in variants):
            self.optimization.finish("succeeded", progress=1.0, phase="")
        else:
            told = next((each.error for each in variants if each.error), None)
            self.optimization.finish("failed", error=told, phase="")


def _worked_in(parent: Path, loaded: package.Package, folder: Path) -> tuple[Path, package.Package]:
    """An adapter and its base as one package, which its variants are measured beside."""
    told = {name: value for name, value in loaded.description.items() if name != "finetune"}
    extra = {TOKENIZER: (parent / TOKENIZER).read_bytes()} if (parent / TOKENIZER).is_file() else {}
    package.save(folder, told, package.merged_tensors(loaded), "", {}, extra)
    return folder, package.load(folder)


@contextmanager
def lease_kept(job: Job) -> Iterator[None]:
    """Renew the lease beside work that cannot say how far it is, such as writing a graph."""
    ended, held = threading.Event(), copy.copy(job)

    def renew() -> None:
        try:
            while not ended.wait(settings.LEASE_SECONDS / 4):
                held.renew()
        except LeaseLost:
            return  # the work is told so at its next beat
        finally:
            connection.close()

    thread = threading.Thread(target=renew, name="keep the lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
