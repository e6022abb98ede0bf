"""The process that writes the prediction log: what it writes, and that neither its death nor its sender's loses a record."""

import base64
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from uuid import uuid4

import orjson
import psutil
import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from registry.serving import log_process, log_writer, prediction_log
from registry.serving.log_entries import Entry, Sent, packed
from registry.serving.models import LoggedImage, PredictionRecord
from tests import factories
from tests.fixtures.inference import eventually

pytestmark = pytest.mark.django_db(transaction=True)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
ODD = 'a\\b\t"c"\r\n\\N ü'


@pytest.fixture
def deployment(organization):
    made = factories.DeploymentFactory(organization=organization, name="screening")
    factories.VariantFactory(deployment=made, version__model__organization=organization)
    return made


@pytest.fixture
def entry(deployment):
    variant = deployment.variants.get()

    def made(**more):
        values = {
            "request_id": uuid4(), "deployment_id": deployment.pk, "variant_id": variant.pk, "role": "live",
            "revision": 3, "propensity": 0.25, "key": "", "instances": [{"x": 1.5}], "predictions": [{"label": "a"}],
            "milliseconds": 1.25, "error": "", "at": timezone.now(), "organization_id": deployment.organization_id,
        }  # fmt: skip
        return Entry(**values | more)

    return made


@pytest.fixture
def process():
    made = log_process.WriterProcess()
    yield made
    made.close()


def kept():
    return set(PredictionRecord.objects.values_list("request_id", flat=True))


def test_records_are_written_as_they_are_by_a_process_that_yields(process, entry, deployment):
    odd = entry(key=ODD, predictions=None, error="invalid", propensity=None)
    odd.instances = [{ODD: ODD, "many": 10**30, "y": -0.5, "z": True, "none": None}]
    assert process.wrote([odd, entry()])
    found = PredictionRecord.objects.get(request_id=odd.request_id)
    for name in prediction_log.COLUMNS:
        assert getattr(found, name) == getattr(odd, name), name
    writer = psutil.Process(process._process.pid)
    assert writer.nice() == min(19, os.nice(0) + log_writer.NICE)
    password = connection.settings_dict["PASSWORD"]
    assert password and password not in " ".join(writer.cmdline()), "others see the arguments"

    text = base64.b64encode(PNG).decode()
    pictured = entry(instances=[{"many": 10**30, "picture": "sha256:…"}], images=(Sent(0, "picture", text),))
    orphan = entry(deployment_id=uuid4())
    nul = entry(predictions=[{"text": "a\0b"}])
    good = entry()
    assert process.wrote([pictured, orphan, nul, good]), "a record that cannot be written costs no other"
    assert kept() >= {pictured.request_id, good.request_id} and not kept() & {orphan.request_id, nul.request_id}
    row = PredictionRecord.objects.get(request_id=pictured.request_id).instances[0]
    assert row == {"many": 10**30, "picture": f"object:{sha256(PNG).hexdigest()}"}
    assert LoggedImage.objects.get().deployment == deployment


@pytest.fixture
def rests(monkeypatch):
    """How many records are to be seen whenever the writer rests, which takes no time here."""
    seen = []
    monkeypatch.setattr(log_writer.time, "sleep", lambda _: seen.append(PredictionRecord.objects.count()))
    return seen


@pytest.fixture
def writer():
    made = log_writer.Writer(orjson.loads(log_process._address()))
    yield made
    made._disconnect()


def test_the_writer_rests_between_parts_of_a_batch_unless_it_is_urgent(writer, rests, entry):
    batch = [entry() for _ in range(2 * log_writer.AT_ONCE + 1)]
    assert writer.write(orjson.loads(packed(batch))) == {}
    assert rests == [log_writer.AT_ONCE, 2 * log_writer.AT_ONCE], "no transaction lasts over a rest"
    assert kept() == {one.request_id for one in batch}
    assert writer.write(orjson.loads(packed([entry() for _ in batch], urgent=True))) == {}
    assert writer.write(orjson.loads(packed([entry() for _ in range(log_writer.AT_ONCE)]))) == {}
    assert len(rests) == 2
    long = [entry(instances=[{"x": "a" * log_writer.CHARACTERS}]) for _ in range(3)]
    assert writer.write(orjson.loads(packed(long))) == {} and len(rests) == 4, "long records are parts of their own"
    assert kept() >= {one.request_id for one in long}
    assert PredictionRecord.objects.count() == 2 * len(batch) + log_writer.AT_ONCE + 3


@pytest.mark.parametrize("place", [0, log_writer.AT_ONCE, -1])
def test_a_record_that_cannot_be_written_costs_no_other_part_of_its_batch(writer, rests, entry, place):
    batch = [entry() for _ in range(2 * log_writer.AT_ONCE + 1)]
    batch[place].key = "k" * 201
    assert writer.write(orjson.loads(packed(batch))) == {}
    assert kept() == {one.request_id for one in batch} - {batch[place].request_id}
    assert writer.write(orjson.loads(packed(batch[:1]))) == {}, "the connection is as it was"


@pytest.mark.parametrize("fresh", [True, False])
def test_a_connection_that_breaks_between_two_parts_costs_no_record(writer, entry, monkeypatch, fresh):
    if not fresh:
        assert writer.write(orjson.loads(packed([entry()]))) == {}
    batch = [entry() for _ in range(2 * log_writer.AT_ONCE)]

    def broken(_):
        connection.ensure_connection()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [writer._connection.info.backend_pid])
        monkeypatch.setattr(log_writer.time, "sleep", lambda _: None)

    monkeypatch.setattr(log_writer.time, "sleep", broken)
    answer = writer.write(orjson.loads(packed(batch)))
    if fresh:  # then it is not tried twice: the sender keeps the batch, and sends it again
        assert "terminating connection" in answer["away"] and len(kept()) == log_writer.AT_ONCE
        answer = writer.write(orjson.loads(packed(batch)))
    assert answer == {}
    assert kept() >= {one.request_id for one in batch}
    assert PredictionRecord.objects.count() == len(batch) + (not fresh)


def test_a_batch_is_urgent_where_another_waits_behind_it(entry, monkeypatch):
    told = []
    process = log_process.WriterProcess()
    monkeypatch.setattr(process, "wrote", lambda batch, urgent: told.append((len(batch), urgent)) or True)
    monkeypatch.setattr(prediction_log, "BATCH", 2)
    buffer = prediction_log.RecordBuffer(thread=False, process=process)
    for _ in range(5):
        buffer.add(entry())
    assert buffer.flush() == 5
    assert told == [(2, True), (2, False), (1, False)]


def test_what_is_sent_again_is_there_once(process, entry):
    batch = [entry() for _ in range(3)]
    assert process.wrote(batch) and process.wrote([*batch, entry()])
    assert PredictionRecord.objects.count() == 4
    prediction_log.store([*batch, entry()])
    assert PredictionRecord.objects.count() == 5


def test_a_writer_that_dies_or_hangs_loses_nothing_and_is_started_again(process, entry, monkeypatch, caplog):
    buffer = prediction_log.RecordBuffer(thread=False, process=process)
    added = []

    def add():
        added.append(entry())
        buffer.add(added[-1])

    add()
    assert buffer.flush() == 1
    first = process._process.pid
    os.kill(first, signal.SIGKILL)
    add()
    assert buffer.flush() == 1 and process._process is None, "written by this process, without waiting"
    assert "is started again" in caplog.text
    add()
    assert buffer.flush() == 1 and process._process is None, "not at once: it may die each time"
    process._not_before = 0.0
    add()
    assert buffer.flush() == 1 and process._process.pid != first
    monkeypatch.setattr(log_process, "ANSWER_SECONDS", 0.2)
    os.kill(process._process.pid, signal.SIGSTOP)
    add()
    assert buffer.flush() == 1 and process._process is None
    assert kept() == {one.request_id for one in added} and PredictionRecord.objects.count() == 5


def test_records_wait_while_the_database_does_not_answer(process, entry, monkeypatch):
    buffer = prediction_log.RecordBuffer(thread=False, process=process)
    buffer.add(entry())
    real = log_process._address
    monkeypatch.setattr(
        log_process, "_address", lambda: real().replace(connection.settings_dict["NAME"].encode(), b"no")
    )
    assert buffer.flush() == 0 and buffer.waiting == 1
    with pytest.raises(DatabaseError, match='"no"'):
        process.wrote([entry()])
    monkeypatch.undo()
    process.close()
    process._not_before = 0.0
    assert buffer.flush() == 1 and process._process is not None


def test_a_broken_connection_is_made_anew(process, entry):
    assert process.wrote([entry()])
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'COPY serving%' AND datname = current_database()"
        )
        assert cursor.fetchall() == [(True,)]
    assert process.wrote([entry()]) and PredictionRecord.objects.count() == 2


SENDER = """
import os, sys, django
django.setup()
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[1]
from registry.serving import log_process
process = log_process.WriterProcess()
log_process._wait, real = lambda pipe, event, deadline: (event == log_process.select.POLLIN and print("sent", flush=True),
    real(pipe, event, deadline)), log_process._wait
process._asked(sys.stdin.buffer.readline())
"""


def waits_for_lock(cursor):
    cursor.execute(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'serving_predictionrecord'::regclass"
    )
    return cursor.fetchone()[0]


def test_what_was_sent_is_written_though_the_sender_is_killed(entry):
    """The sender dies while PostgreSQL holds the writing up, and its last batch is there all the same, once."""
    batch = [entry(), entry()]
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "dlplatform.settings"}
    sender = subprocess.Popen(
        [sys.executable, "-c", SENDER, connection.settings_dict["NAME"]], env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE serving_predictionrecord IN ACCESS EXCLUSIVE MODE")
        sender.stdin.write(packed(batch))
        sender.stdin.flush()
        assert select.select([sender.stdout], [], [], 30)[0] and sender.stdout.readline() == b"sent\n"
        eventually(lambda: waits_for_lock(cursor))
        (writer,) = psutil.Process(sender.pid).children()
        sender.kill()
        sender.communicate()
        writer.terminate()  # who stops everything sends it this too
    eventually(lambda: kept() == {one.request_id for one in batch})
    eventually(lambda: not writer.is_running() or writer.status() == psutil.STATUS_ZOMBIE)


def test_a_batch_is_the_same_whether_its_records_were_packed_before(entry):
    batch = [entry(), entry(key=ODD, predictions=None), entry(images=(Sent(0, "x", "AAAA"),))]
    at_once = packed(batch)
    for one in batch[:2]:
        one.pack()
        assert one.packed
    assert packed(batch) == at_once
    odd = entry(key="\ud800")
    odd.pack()
    assert not odd.packed and odd.opened() is odd, "the writer says what becomes of it"


def test_a_packed_record_holds_bytes_alone_and_is_written_without_the_process_too(entry, deployment):
    text = base64.b64encode(PNG).decode()
    many, failed = entry(instances=[{"y": -0.5, ODD: ODD}] * 3, key=ODD), entry(predictions=None, error="invalid")
    pictured = entry(instances=[{"picture": "sha256:…"}], images=(Sent(0, "picture", text),))
    before = [replace(one) for one in (many, failed, pictured)]
    buffer = prediction_log.RecordBuffer(thread=False)
    for one, was in zip((many, failed, pictured), before, strict=True):
        one.pack()
        assert one.packed and not one.instances and one.predictions is None
        assert one.opened() == was
        buffer.add(one)
    assert buffer.flush() == 3
    for was in before[:2]:
        found = PredictionRecord.objects.get(request_id=was.request_id)
        for name in prediction_log.COLUMNS:
            assert getattr(found, name) == getattr(was, name), name
    (image,) = LoggedImage.objects.all()
    assert PredictionRecord.objects.get(request_id=pictured.request_id).instances == [
        {"picture": f"object:{image.sha256}"}
    ]


def test_rows_nested_too_deeply_and_what_nobody_foresaw_end_no_log(entry, monkeypatch, caplog):
    deep = []
    for _ in range(1020):
        deep = [deep]
    kept_rows, shown = entry(), entry(instances=[{"x": deep}])
    buffer = prediction_log.RecordBuffer(thread=False)
    for one in (kept_rows, shown):
        buffer.add(one)
    assert buffer.flush() == 2
    assert PredictionRecord.objects.get(request_id=shown.request_id).instances == []

    def surprised(batch):
        raise RuntimeError("nobody foresaw it")

    with monkeypatch.context() as patch:
        patch.setattr(prediction_log, "store", surprised)
        buffer.add(entry(images=(Sent(0, "picture", "abcd"),)))
        assert buffer.flush() == 1
    assert buffer.lost_ever == 1 and buffer.waiting == 0 and buffer._of_images == 0
    assert "1 records of predictions cannot be written" in caplog.text
    last = entry()
    buffer.add(last)
    assert buffer.flush() == 1
    assert kept() == {kept_rows.request_id, shown.request_id, last.request_id}
