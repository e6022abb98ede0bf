"""The pages of datasets and models: rows, profiles, downloads; cards, refs, trying a version."""

import csv
import io

import pytest
from django.contrib.messages import get_messages
from django.core.exceptions import ValidationError
from django.urls import reverse

from dlplatform.api import Unavailable
from registry import cards
from registry.models import Ref, RefMove
from registry.serving import client as inference
from tests import factories

pytestmark = pytest.mark.django_db


def said(answer):
    return [str(one) for one in get_messages(answer.wsgi_request)]


# --- datasets -----------------------------------------------------------------------------------------


def test_columns_rows_and_usage_of_a_version(web, viewer, flowers, queue_run):
    run = queue_run()
    client, address = web(viewer), reverse("dataset", args=[flowers.dataset_id])
    columns = client.get(address).content.decode()
    assert '<svg class="histogram"' in columns and "240 rows" in columns
    rows = client.get(address + "?tab=rows&sort=-length").context["rows"]
    lengths = [float(row[0]["text"]) for row in rows]
    assert len(rows) == 50 and lengths == sorted(lengths, reverse=True)
    assert run.name in client.get(address + "?tab=usage").content.decode()


def test_the_csv_of_a_version_is_whole_and_runs_no_formula(web, viewer, organization, tmp_path):
    dataset = factories.DatasetFactory(organization=organization)
    rows = [{"text": "=1+1" if index % 2 else "plain", "number": -index} for index in range(40)]
    version = factories.ready_version(dataset, rows, tmp_path, number=1)
    answer = web(viewer).get(reverse("version-csv", args=[dataset.pk, version.number]))
    read = list(csv.DictReader(io.StringIO(b"".join(answer).decode())))
    assert len(read) == 40
    assert read[1]["text"] == "'=1+1" and read[1]["number"] == "-1"
    assert web(viewer).get(reverse("version-csv", args=[dataset.pk, 9])).status_code == 404


def test_a_dataset_is_renamed_archived_and_brought_back(web, maintainer, organization):
    dataset = factories.DatasetFactory(organization=organization, name="one")
    factories.DatasetFactory(organization=organization, name="two")
    client = web(maintainer)
    clash = client.post(reverse("dataset-edit", args=[dataset.pk]), {"name": "two"})
    assert "There is a dataset “two” already" in said(clash)[0]
    client.post(reverse("dataset-edit", args=[dataset.pk]), {"name": "three", "description": "rows"})
    client.post(reverse("dataset-archive", args=[dataset.pk]))
    assert "three" not in client.get(reverse("datasets")).content.decode().partition("<table")[2]
    assert "three" in client.get(reverse("datasets") + "?archived=on").content.decode()
    client.post(reverse("dataset-restore", args=[dataset.pk]))
    assert "three" in client.get(reverse("datasets")).content.decode()


def test_an_ingestion_is_followed_and_cancelled(web, trainer, organization):
    version = factories.DatasetVersionFactory(dataset__organization=organization, number=1, state="queued")
    client, address = web(trainer), reverse("dataset", args=[version.dataset_id])
    page = client.get(address).content.decode()
    assert "Waiting for a worker." in page and "every 1s" in page
    client.post(reverse("version-cancel", args=[version.dataset_id, 1]))
    assert "was cancelled" in client.get(address).content.decode()
    again = client.post(reverse("version-cancel", args=[version.dataset_id, 1]))
    assert said(again)[-1] == "This version is cancelled already."


def test_a_dataset_without_a_file_and_a_rejected_file_say_what_to_do(web, trainer, organization):
    empty = factories.DatasetFactory(organization=organization)
    assert "Upload a file" in web(trainer).get(reverse("dataset", args=[empty.pk])).content.decode()
    problem = {"row": 7, "column": "x", "code": "broken", "severity": "error", "detail": "Close the quote."}
    rejected = factories.DatasetVersionFactory(
        dataset__organization=organization, state="rejected", problems=[problem], rows=None, columns=[], profile={}
    )
    page = web(trainer).get(reverse("dataset", args=[rejected.dataset_id])).content.decode()
    assert "Close the quote." in page and "could not be used" in page


# --- models -------------------------------------------------------------------------------------------

INPUTS = [
    {"name": "length", "type": "number", "nullable": True, "minimum": 1.0, "maximum": 9.0, "example": 5.0},
    {"name": "a.b", "type": "category", "nullable": True, "categories": ["red", "blue"], "example": "red"},
    {"name": "wet", "type": "boolean", "nullable": True, "example": True},
]


@pytest.fixture
def versions(organization):
    model = factories.RegisteredModelFactory(organization=organization, name="kinds")
    return [
        factories.ModelVersionFactory(
            model=model, number=number, metrics={"accuracy": 0.9 + number / 100}, signature={"inputs": INPUTS}
        )
        for number in (1, 2)
    ]


def test_production_moves_from_where_the_page_showed_it_and_back(web, maintainer, versions):
    first, second = versions
    client, address = web(maintainer), reverse("ref-move", args=[first.model_id])
    body = {"kind": "alias", "name": "production", "version": str(first.pk), "expected": "", "reason": "good"}
    assert said(client.post(address, body)) == ["production points to v1 now."]
    stale = client.post(address, body | {"version": str(second.pk)})
    assert "was moved meanwhile" in said(stale)[-1]
    moved = client.post(address, body | {"version": str(second.pk), "expected": str(first.pk)}, follow=True)
    undo = list(get_messages(moved.wsgi_request)) or list(moved.context["messages"])
    client.post(undo[-1].extra_tags)
    assert Ref.objects.get(name="production").version_id == first.pk
    log = client.get(reverse("model", args=[first.model_id])).content.decode()
    assert "Taken back" in log and "good" in log
    assert RefMove.objects.filter(name="production").count() == 3


def test_a_trainer_may_not_move_production(web, trainer, versions):
    body = {"kind": "alias", "name": "production", "version": str(versions[0].pk)}
    assert web(trainer).post(reverse("ref-move", args=[versions[0].model_id]), body).status_code == 403
    assert not Ref.objects.filter(name="production").exists()


def test_a_wrong_ref_is_refused_in_words(web, maintainer, versions):
    address = reverse("ref-move", args=[versions[0].model_id])
    other = factories.ModelVersionFactory()
    body = {"kind": "alias", "name": "bad name", "version": str(versions[0].pk)}
    assert "Use letters, digits" in said(web(maintainer).post(address, body))[0]
    assert "no version with this id" in said(web(maintainer).post(address, body | {"version": str(other.pk)}))[0]
    assert "version" in said(web(maintainer).post(address, body | {"version": "x"}))[0]


def test_an_alias_is_removed(web, maintainer, versions):
    factories.RefFactory(version=versions[0], name="staging")
    web(maintainer).post(reverse("ref-delete", args=[versions[0].model_id, "alias", "staging"]))
    assert not Ref.objects.filter(name="staging").exists()


def test_quality_over_the_versions_is_drawn_from_the_second_on(web, viewer, versions):
    charts = web(viewer).get(reverse("model", args=[versions[0].model_id])).context["charts"]
    assert charts[0]["series"][0]["points"] == [[1, 0.91], [2, 0.92]]


@pytest.fixture
def model_answers(monkeypatch):
    """The inference process lies outside this one; what it was asked is kept."""
    asked = []

    def answer_with(answer):
        def predict(version, instances):
            asked.append(instances)
            if isinstance(answer, Exception):
                raise answer
            return [answer]

        monkeypatch.setattr(inference, "predict", predict)
        return asked

    return answer_with


def test_trying_a_version_sends_typed_values_and_shows_the_classes(web, viewer, versions, model_answers):
    asked = model_answers({"label": "<b>", "probabilities": {"<b>": 0.75, "c": 0.25}})
    body = {"input-0": "4.5", "input-1": "", "input-2": "false"}
    page = web(viewer).post(reverse("version-try", args=[versions[0].pk]), body, headers={"HX-Request": "true"})
    assert asked == [[{"length": 4.5, "a.b": None, "wet": False}]]
    text = page.content.decode()
    assert "75.0 %" in text and "&lt;b&gt;" in text and "<b>" not in text and "<html" not in text


def test_a_number_is_shown_and_works_without_htmx(web, viewer, versions, model_answers):
    model_answers({"value": 12.5})
    page = web(viewer).post(reverse("version-try", args=[versions[0].pk]), {"input-0": "4"}).content.decode()
    assert "12.5" in page and "<html" in page


def test_a_refused_input_is_named_beside_its_field(web, viewer, versions, model_answers):
    model_answers(inference.PredictionRefused("instances.0.a.b", "This is no colour.", "invalid"))
    page = web(viewer).post(reverse("version-try", args=[versions[0].pk]), {"input-1": "x"})
    assert page.context["try_form"].errors == {"input-1": ["This is no colour."]}


@pytest.mark.parametrize("error", [Unavailable(), inference.Unusable("It is broken."), ValidationError("All wrong.")])
def test_a_model_that_cannot_answer_says_so(error, web, viewer, versions, model_answers):
    model_answers(error)
    page = web(viewer).post(reverse("version-try", args=[versions[0].pk]), {"input-1": "x"})
    assert page.status_code == 200 and page.context["try_form"].non_field_errors()


def test_a_model_is_edited_archived_and_brought_back(web, maintainer, versions):
    model = versions[0].model
    client = web(maintainer)
    client.post(reverse("model-edit", args=[model.pk]), {"name": "better", "description": "It tells kinds."})
    client.post(reverse("model-archive", args=[model.pk]))
    model.refresh_from_db()
    assert model.archived_at and model.name == "better"
    factories.RegisteredModelFactory(organization=model.organization, name="better")
    assert "rename it first" in said(client.post(reverse("model-restore", args=[model.pk])))[-1]


def test_a_card_holds_nothing_active():
    text = "# Hi\n<script>alert(1)</script>\n[a](javascript:alert(1)) ![i](http://x/y.png)\n\n"
    text += "| a |\n|---|\n| <b onclick=x> |"
    html = cards.rendered(text)
    assert "<h3>Hi</h3>" in html and "<table>" in html
    assert "<script" not in html and "<img" not in html and 'href="javascript' not in html and "<b " not in html
