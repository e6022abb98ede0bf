"""What a tick costs that watches a split, a bandit (of two or ten), pairs or a canary with a large log: reading all of it, and carrying sums on.

300,000 requests (a third with keys; of pairs each with its copy) with feedback and guardrails; then ticks with 500 further
requests each, and labels for earlier ones. After every tick both must say the same.

    python -m benchmarks.experiment_watching [--short]
"""

import statistics
import time
from datetime import timedelta
from typing import Any

from .measuring import arguments, platform, report

LIMIT = 1.0  # seconds of a tick
LIMITS = [{"kind": "errors", "limit": 0.9}, {"kind": "slow", "milliseconds": 100, "limit": 0.9}]
GUARDS = [*LIMITS, {"kind": "latency", "tolerance": 100.0}]
KINDS = {
    "split": {"minimum_effect": 0.001, "baseline": 0.8, "guardrails_wanted": GUARDS},
    "bandit": {"mode": "bandit", "guardrails_wanted": LIMITS},
    "bandit of ten": {"mode": "bandit", "guardrails_wanted": LIMITS},
    "paired": {"mode": "paired", "minimum_effect": 0.001, "baseline": 0.8, "guardrails_wanted": GUARDS},
    "canary": {"guardrails_wanted": GUARDS},
}
RECORDS = """
    INSERT INTO serving_predictionrecord
        (request_id, deployment_id, variant_id, role, revision, propensity, key, instances, predictions, milliseconds, error, at)
    SELECT gen_random_uuid(), %(deployment)s, (%(variants)s::uuid[])[1 + n %% cardinality(%(variants)s::uuid[])], 'live', %(revision)s,
           1.0 / cardinality(%(variants)s::uuid[]),
           CASE WHEN n %% 3 = 0 THEN 'k' || (n::bigint * 7919 %% 20000) ELSE '' END, '[{"x": 1}]',
           jsonb_build_array(jsonb_build_object('label', CASE WHEN n::bigint * 31 %% 10 < 8 THEN 'a' ELSE 'b' END)),
           3 + n %% 17, '', %(at)s
    FROM generate_series(1, %(count)s) AS n RETURNING request_id
"""
COPIES = """
    INSERT INTO serving_predictionrecord
        (request_id, deployment_id, variant_id, role, revision, key, instances, predictions, milliseconds, error, at)
    SELECT request_id, %(deployment)s, %(b)s, 'shadow', %(revision)s, '', '[{"x": 1}]', '[{"label": "a"}]', 4, '', %(at)s
    FROM unnest(%(requests)s::uuid[]) AS request_id
"""
LABELS = """
    INSERT INTO serving_feedback (deployment_id, request_id, index, label, at)
    SELECT %(deployment)s, request_id, 0, '"a"', %(at)s FROM unnest(%(requests)s::uuid[]) AS request_id
    ON CONFLICT (deployment_id, request_id, index) DO UPDATE SET label = '"b"', at = excluded.at
"""


def versions_here() -> tuple[Any, Any, list[Any]]:
    """Who deploys, where, and ten versions that nothing answers with."""
    from dlplatform.accounts.models import Organization, User
    from tests import factories

    admin, organization = User.objects.get(is_superuser=True), Organization.objects.order_by("created_at").first()
    model = factories.RegisteredModelFactory(organization=organization, name="watched")
    tree = {"model.json": {"sha256": "a" * 64, "size": 10}}
    return admin, organization, [factories.ModelVersionFactory(model=model, number=n, tree=tree) for n in range(1, 11)]


def holder_here(kind: str, admin: Any, organization: Any, versions: list[Any]) -> Any:
    """An experiment or a canary that began a day ago, which no scheduler watches."""
    from django.utils import timezone

    from registry.serving import services
    from registry.serving.experiments import rollouts
    from registry.serving.experiments import services as experiments
    from registry.serving.models import Experiment, Rollout

    deployment = services.create_deployment(
        actor=admin,
        organization=organization,
        name=f"watched-{kind.replace(' ', '-')}",
        variants=[services.Wanted(versions[0].pk)],
    )
    wanted: dict[str, Any] = {"actor": admin, "deployment": deployment, **KINDS[kind]}
    began, later = timezone.now() - timedelta(days=1), timezone.now() + timedelta(days=1)
    if kind == "canary":
        made = rollouts.start_rollout(candidate=versions[1].pk, **wanted)
        Rollout.objects.filter(pk=made.pk).update(started_at=began, step_began_at=began, watch_after=later)
        return Rollout.objects.get(pk=made.pk)
    if kind == "bandit of ten":
        wanted["further"] = [one.pk for one in versions[2:]]
    draft = experiments.create_experiment(challenger=versions[1].pk, metric="accuracy", **wanted)
    experiments.start_experiment(actor=admin, experiment=draft)
    Experiment.objects.filter(pk=draft.pk).update(started_at=began, watch_after=later)
    return Experiment.objects.get(pk=draft.pk)


def write(holder: Any, kind: str, count: int, seconds_ago: float) -> list[Any]:
    from django.db import connection
    from django.utils import timezone

    a, b, *further = variants_of(holder, kind)
    at = timezone.now() - timedelta(seconds=seconds_ago)
    named = {
        "deployment": holder.deployment_id, "variants": [a] if kind == "paired" else [a, b, *further], "revision": holder.revision,
        "count": count, "at": at,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(RECORDS, named)
        requests = [row[0] for row in cursor.fetchall()]
        if kind == "paired":
            cursor.execute(COPIES, named | {"b": b, "requests": requests})
        label(holder, requests[len(requests) // 10 :], at)  # the others get theirs late
    return requests


def variants_of(holder: Any, kind: str) -> list[Any]:
    if kind == "canary":
        return [holder.variant_stable_id, holder.variant_candidate_id]
    return [holder.variant_a_id, holder.variant_b_id, *(arm.variant_id for arm in holder.further.all())]


def label(holder: Any, requests: list[Any], at: Any) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(LABELS, {"deployment": holder.deployment_id, "requests": requests, "at": at})


def timed(work: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def measure(kind: str, holder: Any, size: int, ticks: int) -> None:
    from django.db import connection
    from django.utils import timezone

    from registry.serving.experiments import looks, rollouts
    from registry.serving.experiments.sums import window_until_now

    sums_of: Any = rollouts if kind == "canary" else looks
    first = write(holder, kind, size, 600)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE serving_predictionrecord, serving_feedback")

    def window() -> Any:
        return window_until_now(holder.deployment_id, holder.started_at, holder.revision)

    made, _ = timed(lambda: sums_of.carried_sums(holder, window()))
    whole, carried, same = [], [], True
    for tick in range(ticks):
        write(holder, kind, 500, 6)
        label(holder, first[tick * 100 : tick * 100 + 100], timezone.now() - timedelta(seconds=6))
        now = window()
        seconds, sums = timed(lambda now=now: sums_of.carried_sums(holder, now))  # type: ignore[misc]
        carried.append(seconds)
        seconds, read = timed(lambda now=now: sums_of.read_sums(holder, now))  # type: ignore[misc]
        whole.append(seconds)
        same = same and looks.agree(sums, read)
    seconds = statistics.median(carried)
    report(
        "experiment_watching", f"{kind}, {size:,} requests", limit=f"{LIMIT} s a tick", passes=seconds <= LIMIT and same,
        seconds_whole_log=round(statistics.median(whole), 2), seconds_carried_on=round(seconds, 3),
        seconds_made_anew=round(made, 2), same=same,
    )  # fmt: skip


def main() -> None:
    short = arguments(__doc__).short
    size, ticks = (100_000, 3) if short else (300_000, 8)
    with platform(DLP_SAMPLES="0", MAX_WORKERS="1"):
        here = versions_here()
        for kind in KINDS:
            measure(kind, holder_here(kind, *here), size, ticks)


if __name__ == "__main__":
    main()
