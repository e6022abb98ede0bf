"""One step of a sweep: look at what its runs did, judge who goes on, start what there is room for, and end it.

Everything follows from the rows, under the lock of the sweep: done twice, by two workers, or cut off in the middle, it
comes to the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.utils import timezone

from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from dlplatform.engine.finetune_config import LETTERBOX
from registry import availability
from training import finetuning, states
from training import services as runs
from training.models import Run, Sweep, Trial

from .importance import store_importance
from .judging import judge
from .rungs import Standing, last_hope, median_verdict, promotable
from .sampling import Past, propose
from .space import counting, dimensions_of, with_settings
from .tuning import tuned
from .waking import announce

HOPELESS = 5  # trials that fail before any other outcome, and the sweep waits for a person
SETTLED = (Trial.State.PRUNED, Trial.State.SUCCEEDED, Trial.State.FAILED, Trial.State.CANCELLED)


class FilesDeleted(Exception):
    """The base of a sweep is not there, in words."""


def advance(identifier: UUID) -> None:
    """Take a sweep as far as it can go now."""
    with transaction.atomic():
        rows = Sweep.objects.select_for_update(of=("self",)).filter(pk=identifier)
        sweep = rows.select_related(
            "experiment__organization", "dataset_version__dataset__organization", "base_version__model"
        ).first()
        if sweep is None:
            return
        step = Step(sweep)
        step.work()
    if step.changed:
        store_importance(sweep)


class Step:
    """What is to be done for one locked sweep."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.trials = list(sweep.trials.all())
        self.runs: dict[UUID, list[Run]] = {trial.pk: [] for trial in self.trials}
        for run in Run.objects.filter(trial__sweep=sweep).order_by("created_at", "pk"):
            self.runs[run.trial_id].append(run)  # type: ignore[index]
        self.sign = -1.0 if sweep.direction == Sweep.Direction.MAXIMIZE else 1.0
        self.changed = False

    def work(self) -> None:
        for trial in self.trials:
            self._look(trial)
        if self.sweep.state == Sweep.State.RUNNING:
            try:
                self._go_on()
            except PermissionDenied:
                self._stop(Sweep.State.PAUSED, "Whoever started this sweep may not train here any more.")
            except FilesDeleted as error:
                self._stop(Sweep.State.PAUSED, f"{error} Bring them back, then resume.")
        self.sweep.advanced_at = timezone.now()
        self.sweep.save(update_fields=["state", "reason", "finished_at", "advanced_at"])
        announce(self.sweep)

    @property
    def actor(self) -> User:
        """Whoever started the sweep; the services ask again whether they still may."""
        if self.sweep.created_by is None:
            raise PermissionDenied
        return self.sweep.created_by

    # --- looking ------------------------------------------------------------------------------------

    def _look(self, trial: Trial) -> None:
        """Write down what a trial's runs say. Settled ones are looked at again only when a run of them lives."""
        its_runs = self.runs[trial.pk]
        if trial.state in SETTLED and all(run.ended for run in its_runs) and not self._outcome_missing(trial):
            return
        if not its_runs:
            return
        found = judge(self.sweep, trial, its_runs)
        if (found.state, found.rung_values, found.value) == (trial.state, trial.rung_values, trial.value):
            return
        self.changed = self.changed or found.state != trial.state
        trial.state, trial.rung_values = found.state, found.rung_values
        trial.value, trial.spread = found.value, found.spread
        trial.save(update_fields=["state", "rung_values", "value", "spread"])

    def _outcome_missing(self, trial: Trial) -> bool:
        """A pruned trial whose run somebody resumed by hand has succeeded after all."""
        return trial.state != Trial.State.SUCCEEDED and all(
            run.state == Run.State.SUCCEEDED for run in self.runs[trial.pk]
        )

    def _standings(self) -> list[Standing]:
        return [
            Standing(one.number, tuple(self.sign * value for value in one.rung_values), one.state == Trial.State.PAUSED)
            for one in self.trials
        ]

    @property
    def _active(self) -> int:
        return sum(trial.state == Trial.State.RUNNING for trial in self.trials)

    # --- going on -----------------------------------------------------------------------------------

    def _go_on(self) -> None:
        self._require_base()
        for trial in self.trials:
            if trial.state == Trial.State.RUNNING and not self.runs[trial.pk]:
                self._start(trial)
        if self.sweep.pruner == Sweep.Pruner.MEDIAN:
            self._judge_by_median()
        while self._active < self.sweep.parallel and self._next():
            pass
        if self._hopeless():
            self._stop(Sweep.State.PAUSED, f"The first {HOPELESS} trials all failed; look at one of them, then resume.")
        elif not self._active:
            self._end()

    def _require_base(self) -> None:
        """No trial can begin or go on from a base whose files are gone. Raises FilesDeleted."""
        if self.sweep.base_version is not None:
            try:
                availability.require_files(self.sweep.base_version)
            except Conflict as conflict:
                raise FilesDeleted(str(conflict.detail)) from conflict

    def _judge_by_median(self) -> None:
        standings = self._standings()
        for one in standings:
            if one.waiting:
                trial = self.trials[one.number]
                if median_verdict(one, standings) == "continue":
                    self._promote(trial)
                else:
                    self._prune(trial)

    def _next(self) -> bool:
        """A trial that may go on, else a new one. False when there is neither now."""
        if self.sweep.pruner == Sweep.Pruner.ASHA:
            found = promotable(self._standings(), len(self.sweep.rungs), self.sweep.eta)
            if found is not None:
                return self._promote(self.trials[found.number])
        return not self._hopeless() and self._draw()

    def _hopeless(self) -> bool:
        return len(self.trials) >= HOPELESS and all(trial.state == Trial.State.FAILED for trial in self.trials)

    def _end(self) -> None:
        """Nothing trains and nothing can begin: let the best of those that wait train on, or end it."""
        hope = None
        if not any(trial.state == Trial.State.SUCCEEDED for trial in self.trials):
            hope = last_hope(self._standings())
        if hope is not None and self._promote(self.trials[hope.number]):
            return
        for trial in self.trials:
            if trial.state == Trial.State.PAUSED:
                self._prune(trial)
        self._stop(Sweep.State.FINISHED, "", finished=True)

    def _stop(self, state: str, reason: str, *, finished: bool = False) -> None:
        self.sweep.state, self.sweep.reason = state, reason
        self.sweep.finished_at = timezone.now() if finished else None
        self.changed = True

    # --- single trials ------------------------------------------------------------------------------

    def _draw(self) -> bool:
        if len(self.trials) >= self.sweep.trial_count:
            return False
        sweep, past = self.sweep, list(self._past())
        params = propose(sweep.sampler, dimensions_of(sweep.space), sweep.seed, past, self._counting)
        if params is None:
            return False
        trial = Trial.objects.create(sweep=self.sweep, number=len(self.trials), params=params)
        self.trials.append(trial)
        self.runs[trial.pk] = []
        self._start(trial)
        return True

    def _counting(self, point: Mapping[str, Any]) -> dict[str, Any]:
        return counting(point, self.sweep.config, self.sweep.finetune, self.sweep.task)

    def _past(self) -> Iterator[Past]:
        for one in self.trials:
            rungs = dict(zip(self.sweep.rungs, (self.sign * value for value in one.rung_values), strict=False))
            value = None if one.value is None else self.sign * one.value
            yield Past(one.params, one.state, value, rungs)

    def _start(self, trial: Trial) -> None:
        """One run for each seed. Settings that go with none of the others are the trial's failure, not the sweep's."""
        try:
            self.runs[trial.pk] = [self._run(trial, number) for number in range(self.sweep.seeds)]
            trial.state = Trial.State.RUNNING
        except ValidationError as error:
            text = " ".join(error.messages)
            trial.state = Trial.State.FAILED
            trial.error = {"code": "refused", "sentence": text[:500], "next_step": "Narrow the search space."}
        trial.save(update_fields=["state", "error"])

    def _run(self, trial: Trial, number: int) -> Run:
        sweep = self.sweep
        seed = int(sweep.config.get("seed") or 0) + number
        name = f"{sweep.name[:90]} #{trial.number}"
        return runs.create_run(
            actor=self.actor,
            dataset_version=sweep.dataset_version,
            task=sweep.task,
            target=sweep.targets,
            features=sweep.features,
            config={**with_settings(sweep.config, trial.params), "seed": seed},
            experiment=sweep.experiment,
            name=f"{name} seed {seed}" if sweep.seeds > 1 else name,
            register_as=sweep.register_as,
            branch=sweep.branch,
            trial=trial,
            code=sweep.code,
            entry=sweep.entry,
            stop_after_epoch=sweep.rungs[0] if sweep.rungs else None,
            base_version=sweep.base_version,
            finetune=self._finetune(trial),
        )

    def _finetune(self, trial: Trial) -> dict[str, Any] | None:
        """Whether the base can be tuned in all ways that are searched was checked when the sweep began. One that began when
        settings said nothing of pixels goes on with images as they were then."""
        if self.sweep.finetune is None:
            return None
        shared = {"pixels": LETTERBOX, **self.sweep.finetune}
        return finetuning.parsed_settings(tuned(shared, trial.params)).to_dict()

    def _promote(self, trial: Trial) -> bool:
        """Have the runs of a trial that waits train up to the next rung, or to the end. False when none could."""
        rung = len(trial.rung_values)
        until = self.sweep.rungs[rung] if rung < len(self.sweep.rungs) else None
        resumed = 0
        for run in self.runs[trial.pk]:
            if run.state == Run.State.PAUSED:
                try:
                    runs.resume_run(actor=self.actor, run=run, stop_after_epoch=until)
                    resumed += 1
                except Conflict:  # somebody cancelled it a moment ago
                    continue
        trial.state = Trial.State.RUNNING
        trial.save(update_fields=["state"])
        return resumed > 0

    def _prune(self, trial: Trial) -> None:
        epoch = self.sweep.rungs[len(trial.rung_values) - 1]
        reason = f"Pruned by its sweep after epoch {epoch}: other trials were better there."
        for run in self.runs[trial.pk]:
            if run.state == Run.State.PAUSED:
                states.end_unheld(run, Run.State.CANCELLED, reason=reason)
        trial.state, trial.pruned_at_epoch = Trial.State.PRUNED, epoch
        trial.save(update_fields=["state", "pruned_at_epoch"])
        self.changed = True
