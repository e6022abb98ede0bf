"""The inference server under load: its queues, its threads, what it tells Prometheus, and its end."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dlplatform.engine.errors import PackageError, PredictionInputError
from registry.serving import batching, prediction_log
from registry.serving.models import PredictionRecord
from tests.fixtures.inference import eventually
from tests.integration.answering import Held, change, code_of, key_of, value_of

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_full_queue_is_503_and_who_leaves_is_not_answered(
    viewer, deployment, versions, stubs, inference, monkeypatch
):
    held = stubs.answers[versions[0].pk] = Held()
    key = key_of(viewer)
    with ThreadPoolExecutor(2) as many:
        first = many.submit(inference.ask, "screening", key)
        assert held.entered.wait(20)
        body = b'{"instances": [{"x": 99}]}'
        with socket.create_connection(inference.client.base_url.netloc.decode().split(":")) as leaving:
            request = (
                f"POST /api/v1/deployments/screening/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            )
            request += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            leaving.sendall(request.encode() + body)
            eventually(lambda: inference.server.models.live.waiting == 1)
        monkeypatch.setattr(batching, "MOST_WAITING", 1)
        refused = inference.ask("screening", key)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1" and code_of(refused) == "overloaded"
        eventually(lambda: any(one.error == "client_gone" for one in prediction_log.buffer._waiting))
        held.gate.set()
        assert value_of(first.result()) == 1.0
    eventually(lambda: inference.server.models.live.waiting == 0)
    assert held.rows == [{"x": 1.0}], "the row of who left was never run"


def test_a_small_model_is_run_by_the_loop_itself_and_answers_as_any(
    viewer, deployment, maintainer, versions, stubs, inference
):
    def echo(rows):
        if any(row["x"] == -1 for row in rows):
            raise PredictionInputError(0, "x", "bad_value", "no")
        return [{"value": row["x"], "rows": len(rows), "thread": threading.current_thread().name} for row in rows]

    stubs.steady.add(versions[1].pk)
    stubs.answers[versions[1].pk] = echo
    change(maintainer, deployment, versions[1])
    key = key_of(viewer)
    inference.wait_for(deployment.pk, 2)
    with ThreadPoolExecutor(16) as clients:
        told = list(clients.map(lambda x: inference.ask("screening", key, [{"x": x}]), [*range(60), -1]))
    assert [value_of(answer) for answer in told[:-1]] == list(range(60))
    assert (told[-1].status_code, code_of(told[-1])) == (400, "bad_value")
    threads = {answer.json()["predictions"][0]["thread"] for answer in told[:-1]}
    assert len(threads) == 1 and "torch" not in threads.pop()
    many = inference.ask("screening", key, [{"x": 1.0}] * 1000).json()["predictions"]
    assert len(many) == 1000
    prediction_log.buffer.flush()
    assert PredictionRecord.objects.filter(deployment=deployment, error="").count() == 61
    assert PredictionRecord.objects.get(error="bad_request").instances == [{"x": -1}]
    seen = inference.client.get("/metrics").text
    assert 'error="bad_request"' in seen and "dlplatform_inference_batch_rows_count" in seen


def test_a_slow_model_of_one_deployment_is_no_reason_to_fail_at_the_end(viewer, deployment, versions, stubs, inference):
    """Stopped in good order, what is being answered is answered, and its record is written."""
    held = stubs.answers[versions[0].pk] = Held()
    with ThreadPoolExecutor(1) as many:
        first = many.submit(inference.ask, "screening", key_of(viewer))
        assert held.entered.wait(20)
        inference._uvicorn.should_exit = True
        held.gate.set()
        assert value_of(first.result()) == 1.0
    inference._thread.join(20)
    assert PredictionRecord.objects.get().predictions == [{"value": 1.0}]


def test_prometheus_reads_what_was_answered_and_what_is_held(viewer, deployment, versions, stubs, inference):
    def refuse(rows):
        raise PackageError("no")

    key = key_of(viewer)
    assert inference.ask("screening", key, [{"x": 1}, {"x": 2}]).status_code == 200
    stubs.answers[versions[0].pk] = refuse
    assert inference.ask("screening", key).status_code == 422
    told = inference.client.get("/metrics").text
    labels = f'deployment="{deployment.pk}",variant="{deployment.variants.get().pk}"'
    for line in (
        f"dlplatform_inference_seconds_count{{{labels}}} 1.0",
        f'dlplatform_inference_requests_total{{deployment="{deployment.pk}",error="model_unusable",'
        f'variant="{deployment.variants.get().pk}"}} 1.0',
        'dlplatform_inference_batch_rows_bucket{le="1.0"} 1.0',
        'dlplatform_inference_batch_rows_bucket{le="2.0"} 2.0',
        "dlplatform_inference_queue_seconds_count 2.0",
        'dlplatform_inference_waiting{queue="live"} 0.0',
        "dlplatform_inference_loaded_models 1.0",
        "dlplatform_inference_deployments 1.0",
        "dlplatform_inference_loading_models 0.0",
        "dlplatform_inference_log_backlog 2.0",
        "dlplatform_inference_log_lost_total 0.0",
    ):
        assert line in told.splitlines(), line
    assert "screening" not in told and "lab" not in told.replace("label", ""), "it says nothing about anybody's data"
