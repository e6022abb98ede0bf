"""The work of a batch prediction: the rows of a dataset version through the predictor that answers online.

Some thousand rows, fewer where they are long, are a file in a folder of the job. A worker that takes the job up again goes on
behind the last of them, however they were cut; the rows become a dataset version in the transaction that ends the job, so there is exactly one.
"""

import base64
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction

from datasets import services as datasets
from datasets.models import Dataset, DatasetVersion
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from dlplatform.engine.errors import EngineError, PackageError, PredictionInputError
from dlplatform.engine.predict import Predictor
from dlplatform.jobs import LeaseLost
from dlplatform.objects.errors import CorruptObject, MissingObject
from registry.comparisons import failure
from registry.models import ModelVersion
from registry.workbench import Stopped, Workbench

from .answer_columns import with_answers
from .batch_runtime import BatchRuntime
from .batches import folder_of
from .cache import loaded
from .confined import ConfinedPredictor
from .models import BatchPrediction
from .pieces import pieces

ROWS = 2048
AT_ONCE_BYTES = 64 << 20  # of what the model is asked at once
IMAGE_BYTES = 1 << 20  # beside its file: about what its pixels take in the network
CHECK_INPUTS = "Check the data against the model's inputs, or choose other rows."


class Predicting:
    """One claimed batch prediction."""

    def __init__(self, batch: BatchPrediction) -> None:
        self.batch = batch
        self.data: DatasetVersion = batch.dataset_version
        self.version: ModelVersion = batch.version
        self.bench = Workbench(batch, (self.version,), self.data)
        self.folder = folder_of(batch.pk)
        self._told = (0.0, "")

    def work(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._commit(self._joined(self._predicted()))
        except Stopped:
            self.bench.give_back()
        except PredictionInputError as error:
            self._fail("bad_rows", error.message, CHECK_INPUTS)
        except (EngineError, PackageError, MissingObject, CorruptObject) as error:
            self._fail("not_predictable", str(error), "Choose another version of the model, or other data.")
        except (Conflict, PermissionDenied, ValidationError) as error:
            self._fail("not_stored", _sentence(error), "Give another name for the dataset, and ask again.")
        except LeaseLost:
            return  # whoever holds it now goes on in the folder
        if self.batch.ended:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _fail(self, code: str, sentence: str, next_step: str) -> None:
        self.batch.finish("failed", error=failure(code, sentence, next_step), phase="")

    def _beat(self, fraction: float, phase: str) -> None:
        self._told = (fraction, phase)
        self.bench.beat(fraction, phase)

    def _predicted(self) -> list[Path]:
        """The files of rows with their answers, in order; those that are there already are taken as they are."""
        self._beat(0.0, "loading the model")
        predictor = loaded(self.version)
        runtime = BatchRuntime(
            predictor,
            f"batch prediction {self.batch.pk}",
            lambda: self.bench.beat(self._told[0], "compiling the network"),
        )
        try:
            with runtime.ready():
                return self._made(predictor, runtime)
        finally:
            if isinstance(predictor, ConfinedPredictor):
                predictor.close()

    def _made(self, predictor: Predictor | ConfinedPredictor, runtime: BatchRuntime) -> list[Path]:
        made, done = finished(self.folder)
        for rows in pieces(datasets.local_parts(self.data), ROWS, done):
            path, began = self.folder / _name(done), time.monotonic()
            self._answer(predictor, rows, done, path)
            made.append(path)
            done += rows.num_rows
            phase = f"predicting, {runtime.told}" if runtime.told else "predicting"
            self._beat(0.95 * done / max(self.data.rows or done, 1), phase)
            runtime.consider((time.monotonic() - began) / rows.num_rows * ((self.data.rows or done) - done))
        return made

    def _answer(self, predictor: Predictor | ConfinedPredictor, rows: pa.RecordBatch, first: int, path: Path) -> None:
        answers: list[dict[str, Any]] = []
        for some in self._instances(rows):
            try:
                answers += predictor.predict(some)
            except PredictionInputError as error:
                place = f"Row {first + len(answers) + error.row + 1:,}"
                raise PredictionInputError(error.row, error.column, error.code, f"{place}: {error.message}") from None
            self.bench.beat(*self._told)
        images = self.data.image_columns
        kept = pa.Table.from_batches([rows]).drop_columns([name for name in images if name in rows.schema.names])
        temporary = path.with_suffix(".tmp")
        pq.write_table(with_answers(kept, answers), temporary)
        temporary.replace(path)

    def _instances(self, rows: pa.RecordBatch) -> Iterator[list[dict[str, Any]]]:
        """The rows as requests would bring them, so many at once as memory takes: images are read as they are needed."""
        names = [column["name"] for column in self.version.signature.get("inputs", [])]
        images = set(names) & set(self.data.image_columns)
        some, size = [], 0
        for one in rows.select(names).to_pylist():
            sent = {name: self._image(value) if name in images else _as_sent(value) for name, value in one.items()}
            some.append(sent)
            size += sum(len(value) for value in sent.values() if isinstance(value, str)) + len(images) * IMAGE_BYTES
            if size >= AT_ONCE_BYTES:
                yield some
                some, size = [], 0
        if some:
            yield some

    def _image(self, sha256: str | None) -> str | None:
        if not sha256:
            return None
        return base64.b64encode(datasets.object_store(self.data.dataset.organization_id).read(sha256)).decode()

    def _joined(self, parts: list[Path]) -> Path:
        """All rows in one file, as somebody would upload it."""
        whole = self.folder / "whole.parquet"
        schema = _plain(pq.read_schema(parts[0]))
        with pq.ParquetWriter(whole, schema) as out:
            for part in parts:
                out.write_table(pq.read_table(part).cast(schema))
                self.bench.beat(0.96, "writing")
        return whole

    def _commit(self, whole: Path) -> None:
        actor = self.batch.created_by
        if actor is None:
            raise PermissionDenied("Whoever asked for it has no account any more.")
        stored = datasets.object_store(self.data.dataset.organization_id).put_file(whole)
        with transaction.atomic():
            made = datasets.create_version(
                actor=actor, dataset=self._dataset(actor), stored=stored, filename="predictions.parquet",
                content_type="application/vnd.apache.parquet",
            )  # fmt: skip
            self.batch.finish("succeeded", output_version=made, progress=1.0, phase="")

    def _dataset(self, actor: User) -> Dataset:
        organization = self.version.model.organization
        found = Dataset.objects.filter(organization=organization, name=self.batch.name, archived_at=None).first()
        return found or datasets.create_dataset(
            actor=actor, organization=organization, name=self.batch.name,
            description=f"Rows of {self.data} with the predictions of {self.version}.",
        )  # fmt: skip


def finished(folder: Path) -> tuple[list[Path], int]:
    """The files that are there, one behind the other from the first row on, and how many rows they have.

    Older code numbered its files, each of which had as many rows as it took then.
    """
    found: list[Path] = []
    done = 0
    while (rows := _rows_in(path := folder / f"{len(found):07d}.parquet")) or (
        rows := _rows_in(path := folder / _name(done))
    ):
        found.append(path)
        done += rows
    return found, done


def _name(first: int) -> str:
    return f"from-{first:010d}.parquet"


def _rows_in(path: Path) -> int:
    """0 where the file is missing, or was cut off when a machine lost its power."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (FileNotFoundError, pa.ArrowInvalid):
        return 0


def _as_sent(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _plain(schema: pa.Schema) -> pa.Schema:
    """Dictionaries as the strings that they stand for: those of two parts may differ."""
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in schema
    ]
    return pa.schema(fields)


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return " ".join(error.messages)
    return str(getattr(error, "detail", error))
