"""What a tick costs that watches an experiment with a large log: reading all of it, and carrying its sums on.

300,000 requests (a third with keys) with feedback and three guardrails; then ticks with 500 further requests each, and labels
for earlier ones. After every tick both must say the same.

    python -m benchmarks.experiment_watching [--short]
"""

import statistics
import time
from datetime import timedelta
from typing import Any

from .measuring import arguments, platform, report

LIMIT = 1.0  # seconds of a tick
GUARDS = [
    {"kind": "errors", "limit": 0.9}, {"kind": "slow", "milliseconds": 100, "limit": 0.9},
    {"kind": "latency", "tolerance": 100.0},
]  # fmt: skip
RECORDS = """
    INSERT INTO serving_predictionrecord
        (request_id, deployment_id, variant_id, role, revision, propensity, key, instances, predictions, milliseconds, error, at)
    SELECT gen_random_uuid(), %(deployment)s, (ARRAY[%(a)s, %(b)s]::uuid[])[1 + n %% 2], 'live', %(revision)s, 0.5,
           CASE WHEN n %% 3 = 0 THEN 'k' || (n::bigint * 7919 %% 20000) ELSE '' END, '[{"x": 1}]',
           jsonb_build_array(jsonb_build_object('label', CASE WHEN n::bigint * 31 %% 10 < 8 THEN 'a' ELSE 'b' END)),
           3 + n %% 17, '', %(at)s
    FROM generate_series(1, %(count)s) AS n RETURNING request_id
"""
LABELS = """
    INSERT INTO serving_feedback (deployment_id, request_id, index, label, at)
    SELECT %(deployment)s, request_id, 0, '"a"', %(at)s FROM unnest(%(requests)s::uuid[]) AS request_id
    ON CONFLICT (deployment_id, request_id, index) DO UPDATE SET label = '"b"', at = excluded.at
"""


def experiment_here() -> Any:
    from dlplatform.accounts.models import Organization, User
    from registry.serving import services
    from registry.serving.experiments import services as experiments
    from registry.serving.models import Experiment
    from tests import factories

    admin, organization = User.objects.get(is_superuser=True), Organization.objects.order_by("created_at").first()
    model = factories.RegisteredModelFactory(organization=organization, name="watched")
    tree = {"model.json": {"sha256": "a" * 64, "size": 10}}
    made = [factories.ModelVersionFactory(model=model, number=number, tree=tree) for number in (1, 2)]
    deployment = services.create_deployment(
        actor=admin, organization=organization, name="watched", variants=[services.Wanted(made[0].pk)]
    )
    experiment = experiments.create_experiment(
        actor=admin, deployment=deployment, challenger=made[1].pk, metric="accuracy", minimum_effect=0.001, baseline=0.8,
        guardrails_wanted=GUARDS,
    )  # fmt: skip
    experiments.start_experiment(actor=admin, experiment=experiment)
    from django.utils import timezone

    Experiment.objects.update(
        started_at=timezone.now() - timedelta(days=1), watch_after=timezone.now() + timedelta(days=1)
    )
    return Experiment.objects.get()


def write(experiment: Any, count: int, seconds_ago: float) -> list[Any]:
    from django.db import connection
    from django.utils import timezone

    at = timezone.now() - timedelta(seconds=seconds_ago)
    named = {
        "deployment": experiment.deployment_id, "a": experiment.variant_a_id, "b": experiment.variant_b_id,
        "revision": experiment.revision, "count": count, "at": at,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(RECORDS, named)
        requests = [row[0] for row in cursor.fetchall()]
        label(experiment, requests[len(requests) // 10 :], at)  # the others get theirs late
    return requests


def label(experiment: Any, requests: list[Any], at: Any) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(LABELS, {"deployment": experiment.deployment_id, "requests": requests, "at": at})


def timed(work: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def main() -> None:
    short = arguments(__doc__).short
    size, ticks = (100_000, 3) if short else (300_000, 8)
    with platform(DLP_SAMPLES="0", MAX_WORKERS="1"):
        from django.db import connection
        from django.utils import timezone

        from registry.serving.experiments import looks, running

        experiment = experiment_here()
        first = write(experiment, size, 600)
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE serving_predictionrecord, serving_feedback")
        made, _ = timed(lambda: running.carry_on(experiment, looks.window_of(experiment)))
        whole, carried, same = [], [], True
        for tick in range(ticks):
            write(experiment, 500, 6)
            label(experiment, first[tick * 100 : tick * 100 + 100], timezone.now() - timedelta(seconds=6))
            window = looks.window_of(experiment)
            seconds, sums = timed(lambda window=window: running.carry_on(experiment, window))  # type: ignore[misc]
            carried.append(seconds)
            seconds, read = timed(lambda window=window: looks.read_sums(experiment, window))  # type: ignore[misc]
            whole.append(seconds)
            same = same and running.agree(sums, read)
        seconds = statistics.median(carried)
        report(
            "experiment_watching", f"{size:,} requests", limit=f"{LIMIT} s a tick", passes=seconds <= LIMIT,
            seconds_whole_log=round(statistics.median(whole), 2), seconds_carried_on=round(seconds, 3),
            seconds_made_anew=round(made, 2), same=same,
        )  # fmt: skip


if __name__ == "__main__":
    main()
