"""The page of runs, 50 among 10,000, beside one bare query for the same rows and the rendering of their table.

The whole view goes through Django's test client as a signed-in user: middleware, session, filters, the page around
the table. Beside it, interleaved, plain rows from one SQL statement in the same table template.

    python -m benchmarks.runs_page [--short]
"""

import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from tests.live import USERNAME

from .measuring import arguments, held_run, median, platform, report, spread, table

LIMIT = 2.0
RUNS = 10_000
SHOWN = 50
METRICS = ("accuracy", "r2", "validation/loss")
ROWS = """
SELECT r.id, r.name, r.state, r.progress, r.eta_seconds, r.created_at, r.started_at, r.finished_at, r.task, r.target,
       r.archived_at, r.cancel_requested_at, e.name, v.number, d.name, u.username,
       (SELECT array_agg(s.last ORDER BY array_position(%(metrics)s, s.key::text)) FROM training_metricseries s
         WHERE s.run_id = r.id AND s.key = ANY(%(metrics)s))
  FROM training_run r
  JOIN training_experiment e ON e.id = r.experiment_id
  JOIN datasets_datasetversion v ON v.id = r.dataset_version_id
  JOIN datasets_dataset d ON d.id = v.dataset_id
  LEFT JOIN accounts_user u ON u.id = r.created_by_id
 WHERE e.organization_id = %(organization)s AND r.archived_at IS NULL
 ORDER BY r.created_at DESC LIMIT 50
"""
COLUMNS = (
    "pk", "name", "state", "progress", "eta_seconds", "created_at", "started_at", "finished_at", "task", "target",
    "archived_at", "cancel_requested_at",
)  # fmt: skip


def fill(first: Any) -> None:
    """Ended runs with three metrics each."""
    from django.db import connection
    from django.utils import timezone

    from training.models import MetricSeries, Run

    now = timezone.now()
    runs = [
        Run(
            experiment=first.experiment, created_by=first.created_by, dataset_version=first.dataset_version,
            name=f"run {number}", task="classification", target="label", register_as="benchmark",
            state=Run.State.SUCCEEDED, progress=1.0, started_at=now - timedelta(minutes=number),
            finished_at=now - timedelta(minutes=number - 1),
        )
        for number in range(RUNS)
    ]  # fmt: skip
    Run.objects.bulk_create(runs, batch_size=2000)
    series = (MetricSeries(run=run, key=key, last=0.5, minimum=0.1, maximum=0.9) for run in runs for key in METRICS)
    MetricSeries.objects.bulk_create(series, batch_size=5000)
    first.delete()
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def bare(organization: Any, request: Any) -> str:
    from django.db import connection
    from django.template.loader import render_to_string

    with connection.cursor() as cursor:
        cursor.execute(ROWS, {"organization": organization, "metrics": list(METRICS)})
        found = cursor.fetchall()
    rows = []
    for *plain, experiment, number, dataset, username, values in found:
        rows.append(
            SimpleNamespace(
                **dict(zip(COLUMNS, plain, strict=True)), values=values, experiment_name=experiment,
                dataset_number=number, dataset_name=dataset, creator=username, ended=True,
            )
        )  # fmt: skip
    context = {"page": {"object_list": rows}, "metrics": METRICS, "sort": "-created", "request": request}
    return render_to_string("training/_runs_table.html", context)


def main() -> None:
    repetitions = 20 if arguments(__doc__).short else 60
    with platform() as running, running.client() as api:
        from django.test import Client, RequestFactory

        from dlplatform.accounts.models import User

        first = held_run(running.upload(api, "small", table())["id"])
        organization = first.experiment.organization_id
        fill(first)
        browser = Client(SERVER_NAME="localhost")
        browser.force_login(User.objects.get(username=USERNAME), backend="django.contrib.auth.backends.ModelBackend")
        request = RequestFactory(SERVER_NAME="localhost").get("/runs/")
        work = {"view": lambda: browser.get("/runs/"), "bare": lambda: bare(organization, request)}
        taken: dict[str, list[float]] = {"view": [], "bare": []}
        answers: dict[str, Any] = {}
        for repetition in range(repetitions + 2):
            for name, act in work.items():
                began = time.perf_counter()
                answers[name] = act()
                if repetition > 1:
                    taken[name].append((time.perf_counter() - began) * 1000)
        page = answers["view"].content.decode()
        if (
            answers["view"].status_code != 200
            or page.count("<tr>") != SHOWN + 1
            or answers["bare"].count("<tr>") != SHOWN + 1
        ):
            raise RuntimeError("the page does not show its 50 runs")
    ratios = [one / other for one, other in zip(taken["view"], taken["bare"], strict=True)]
    report(
        "runs_page", f"{SHOWN} of {RUNS} runs", repetitions=repetitions, milliseconds=median(taken["view"], 1),
        bare_milliseconds=median(taken["bare"], 1), ratio=median(ratios), spread=spread(ratios),
        limit=f"{LIMIT} x bare", passes=median(ratios) <= LIMIT,
    )  # fmt: skip


if __name__ == "__main__":
    main()
