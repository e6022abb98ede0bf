"""Rows added by the API: a version joins another, in order, whatever happens to those before it."""

import json
import threading

import pytest
from django.db import connection

from datasets import additions
from datasets.ingestion import extension
from datasets.ingestion.rows import read_rows
from datasets.jobs import ingest
from datasets.models import DatasetVersion
from datasets.services import cancel_version, create_version, local_parts, object_store
from dlplatform import jobs
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)
ROWS = [{"n": n, "word": ("red", "blue")[n % 2]} for n in range(30)]
CSV = b"n,word\n" + b"".join(b"%d,%s\n" % (row["n"], row["word"].encode()) for row in ROWS)


@pytest.fixture
def dataset(organization):
    return factories.DatasetFactory(organization=organization)


@pytest.fixture
def first(dataset, tmp_path):
    return factories.ready_version(dataset, ROWS, tmp_path, number=1)


@pytest.fixture
def send(api, dataset):
    """``send(user, body)``: rows as JSON, or as NDJSON when the body is text."""

    def post(user, body, **headers):
        kind = "application/x-ndjson" if isinstance(body, str) else "application/json"
        content = body if isinstance(body, str) else json.dumps(body)
        return api(user).generic(
            "POST", f"/api/v1/datasets/{dataset.pk}/rows", content, content_type=kind, headers=headers
        )

    return post


@pytest.fixture
def upload(dataset, trainer):
    def put(content=CSV):
        stored = object_store(dataset.organization_id).put_bytes(content)
        return create_version(actor=trainer, dataset=dataset, stored=stored, filename="d.csv", content_type="text/csv")

    return put


def worked(number):
    version = DatasetVersion.objects.get(number=number)
    ingest(str(version.pk))
    version.refresh_from_db()
    return version


def rows_of(version):
    return read_rows(local_parts(version), 0, 10_000)


@pytest.mark.parametrize(
    "body",
    [
        {"rows": [{"n": 30, "word": "red"}, {"n": 31}]},
        [{"n": 30, "word": "red"}, {"n": 31}],
        '{"n": 30, "word": "red"}\n\n{"n": 31}\r\n',
    ],
)
def test_rows_make_a_version_of_the_old_rows_and_the_new(send, first, trainer, api, body):
    answer = send(trainer, body)
    assert answer.status_code == 202, answer.content
    said = answer.json()
    assert (said["accepted"], said["rejected"], said["version"]["number"]) == (2, 0, 2)
    assert said["version"]["state"] == "queued"
    version = worked(2)
    assert version.state == "ready", version.problems
    assert rows_of(version) == [*ROWS, {"n": 30, "word": "red"}, {"n": 31, "word": None}]
    assert version.rows == 32 and version.extends == first
    assert sum(part["rows"] for part in version.parts) == 32
    shown = api(trainer).get(f"/api/v1/datasets/{first.dataset_id}/versions/2").json()
    assert shown["extends"] == 1 and shown["detected"]["format"] == "ndjson"
    assert api(trainer).get(f"/api/v1/datasets/{first.dataset_id}/versions/1").json()["extends"] is None


def test_stored_parts_are_shared_while_the_types_hold(send, first, trainer, monkeypatch):
    monkeypatch.setattr(extension, "SMALL_PART_ROWS", 1)
    monkeypatch.setattr("datasets.jobs.ingest_in_child", _in_this_process)
    send(trainer, [{"n": 30, "word": "red"}])
    version = worked(2)
    assert version.parts[:-1] == first.parts and version.parts[-1]["rows"] == 1
    assert version.bytes == sum(part["bytes"] for part in version.parts)
    send(trainer, [{"n": 0.5, "word": "red"}])
    widened = worked(3)
    assert [column["type"] for column in widened.columns] == ["number", "category"]
    assert not {part["sha256"] for part in widened.parts} & {part["sha256"] for part in version.parts}
    assert [row["n"] for row in rows_of(widened)] == [*range(31), 0.5]
    assert rows_of(version) == [*ROWS, {"n": 30, "word": "red"}]


def _in_this_process(source, destination, *, filename, content_type, limits, base, **_):
    from datasets.ingestion.pipeline import extend

    destination.mkdir()
    return extend(source, destination, base=base, limits=limits)


def test_the_first_rows_of_an_empty_dataset_are_its_first_version(send, trainer):
    assert send(trainer, ROWS).status_code == 202
    version = worked(1)
    assert version.state == "ready" and version.extends is None
    assert [column["type"] for column in version.columns] == ["integer", "category"]


def test_rows_that_do_not_fit_are_refused_with_row_and_column_and_nothing_is_kept(send, first, trainer):
    body = {"rows": [{"n": 1}, {"n": "two"}, {"n": 3, "wrd": "red"}, [4]]}
    answer = send(trainer, body)
    assert answer.status_code == 400
    errors = {error["attr"]: (error["code"], error["detail"]) for error in answer.json()["errors"]}
    assert {place: code for place, (code, _) in errors.items()} == {
        "rows.1.n": "wrong_type",
        "rows.2.wrd": "unknown_column",
        "rows.3": "not_an_object",
    }
    assert errors["rows.1.n"][1] == "Row 2, column “n”: “two” is not a number. Write a number without quotes, or null."
    assert DatasetVersion.objects.count() == 1


@pytest.mark.parametrize(
    ("body", "attr", "code"),
    [
        ({}, "rows", "required"),
        ({"rows": []}, "rows", "empty"),
        ({"rows": {"n": 1}}, "rows", "not_a_list"),
        ({"rows": None}, "rows", "null"),
        ({"rows": [{"n": 1}], "row": 1}, "row", "unknown_field"),
        ([{"n": 1}] * (additions.MAX_ROWS + 1), "rows", "max_length"),
        ([], "rows", "empty"),
        ("", "rows", "required"),
        (7, "non_field_errors", "invalid"),
        ("7\n", "rows.0", "not_an_object"),
        ([{"n": 10**400}], "rows.0.n", "number_too_large"),
        ([{"word": "\ud800"}], "rows.0.word", "invalid_text"),
        ([{"\ud800": 1}], "rows.0", "unknown_column"),
        ({"rows": [{"n": 1}], "\ud800": 1}, "?", "unknown_field"),
    ],
)
def test_a_body_of_another_shape_is_a_400(send, first, trainer, body, attr, code):
    answer = send(trainer, body)
    assert answer.status_code == 400, answer.content
    error = answer.json()["errors"][0]
    assert (error["attr"], error["code"]) == (attr, code), error


@pytest.mark.parametrize("body", ['{"n": 1}\n{"n": \n', '{"n": NaN}', "\x00", '{"n": 1} {"n": 2}'])
def test_ndjson_that_is_none_names_the_line(send, first, trainer, body):
    answer = send(trainer, body)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["detail"].startswith("Line "), answer.content


def test_another_content_type_is_415(api, first, trainer):
    answer = api(trainer).generic("POST", f"/api/v1/datasets/{first.dataset_id}/rows", b"a,b", content_type="text/csv")
    assert answer.status_code == 415


def test_who_may_not_write_is_refused(send, first, viewer, stranger):
    assert send(None, ROWS).status_code == 401
    assert send(viewer, ROWS).status_code == 403
    assert send(stranger, ROWS).status_code == 404
    assert DatasetVersion.objects.count() == 1


def test_a_repeated_key_adds_the_rows_once(send, first, trainer):
    key = {"Idempotency-Key": "once"}
    answers = [send(trainer, ROWS, **key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert DatasetVersion.objects.count() == 2
    assert send(trainer, ROWS[:1], **key).status_code == 422


def test_additions_in_a_row_build_on_one_another_and_wait_for_their_turn(send, first, trainer):
    for n in range(30, 33):
        assert send(trainer, [{"n": n}]).status_code == 202
    assert [version.extends.number for version in DatasetVersion.objects.filter(number__gt=1)] == [3, 2, 1]
    assert worked(4).state == worked(3).state == "queued"
    jobs.queue("datasets").empty()
    assert worked(2).rows == 31
    third = DatasetVersion.objects.get(number=3)
    assert jobs.queue("datasets").get_job_ids() == [str(third.pk)]
    assert worked(3).rows == 32
    assert [row["n"] for row in rows_of(worked(4))] == list(range(33))


def test_two_additions_at_the_same_moment_are_both_kept(send, first, trainer):
    def add(n):
        try:
            assert send(trainer, [{"n": n}]).status_code == 202
        finally:
            connection.close()

    threads = [threading.Thread(target=add, args=(n,)) for n in (30, 31)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worked(2)
    assert sorted(row["n"] for row in rows_of(worked(3))) == list(range(32))


def test_an_addition_waits_for_an_upload_before_it_and_meets_its_columns(send, first, upload, trainer):
    upload(b"k\n1\n2\n")
    assert send(trainer, [{"k": 3}]).status_code == 202
    assert worked(3).state == "queued"
    worked(2)
    version = worked(3)
    assert version.state == "ready" and rows_of(version) == [{"k": 1}, {"k": 2}, {"k": 3}]


def test_an_addition_to_a_version_that_failed_joins_the_one_before_it(send, first, upload, trainer):
    upload(b"n,word\n1,red\n2\n")
    send(trainer, [{"n": 30}])
    assert worked(2).state == "rejected"
    version = worked(3)
    assert version.state == "ready" and version.extends == first and version.rows == 31


def test_an_addition_whose_values_do_not_fit_what_the_upload_held_is_rejected_in_words(send, upload, trainer):
    upload()
    assert send(trainer, [{"n": 1}, {"n": "two"}]).status_code == 202
    worked(1)
    version = worked(2)
    assert version.state == "rejected"
    assert (version.errors[0]["row"], version.errors[0]["column"]) == (2, "n")


def test_an_addition_with_nothing_left_to_join_is_rejected_in_words(send, upload, trainer):
    waiting = upload()
    send(trainer, [{"n": 1}])
    cancel_version(actor=trainer, version=waiting)
    version = worked(2)
    assert version.state == "rejected" and version.errors[0]["code"] == "nothing_to_extend"
