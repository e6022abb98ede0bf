"""Liveness, readiness and metrics, at the root and without a login: they say nothing about anybody's data."""

import redis
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from datasets.models import DatasetVersion
from registry.models import Comparison
from training.models import Run

from . import jobs


@login_not_required
def healthz(_request: HttpRequest) -> JsonResponse:
    """The process answers."""
    return JsonResponse({"status": "ok"})


@login_not_required
def readyz(_request: HttpRequest) -> JsonResponse:
    """What the process depends on answers: 200, else 503 with the part that does not."""
    parts = {"database": _database(), "redis": _redis()}
    return JsonResponse(
        {"status": "ok" if all(parts.values()) else "waiting", **parts}, status=200 if all(parts.values()) else 503
    )


def _database() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return True
    except DatabaseError:
        return False


def _redis() -> bool:
    try:
        with jobs.connection() as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


@login_not_required
def metrics(_request: HttpRequest) -> HttpResponse:
    """Counts of work by state, for Prometheus."""
    registry = CollectorRegistry()
    for name, model in (("runs", Run), ("dataset_versions", DatasetVersion)):
        gauge = Gauge(f"dlplatform_{name}", f"Number of {name} by state", ["state"], registry=registry)
        for state in model.State.values:
            gauge.labels(state).set(model.objects.filter(state=state).count())
    depth = Gauge("dlplatform_queue_depth", "Jobs waiting in Redis", ["queue"], registry=registry)
    try:
        for queue in (Run.QUEUE, DatasetVersion.QUEUE, Comparison.QUEUE):
            depth.labels(queue).set(jobs.queue(queue).count)
    except redis.RedisError:
        depth.clear()
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
