"""Deployments of language models: texts streamed by the API and recorded, and the page that talks to the model."""

import json

import pytest
from django.urls import reverse

from registry.serving import prediction_log
from registry.serving.models import PredictionRecord
from registry.serving.server import rate_limit
from tests import factories
from tests.integration.answering import INPUTS, TREE, deployed, key_of, writing_version

pytestmark = pytest.mark.django_db(transaction=True)
SAID = ["Good", " day", "."]
PROMPT = {
    "inputs": [{"name": "prompt", "type": "text", "nullable": True, "example": "Once"}],
    "output": {"kind": "text"},
}


@pytest.fixture
def asked():
    return []


@pytest.fixture
def version(organization, stubs, asked):
    return writing_version(organization, stubs, SAID, asked, PROMPT | {"chat": True})


@pytest.fixture
def talker(maintainer, organization, version):
    return deployed(maintainer, organization, version, "talker")


@pytest.fixture
def numbers(maintainer, organization):
    other = factories.ModelVersionFactory(model__organization=organization, tree=TREE, signature=INPUTS)
    return deployed(maintainer, organization, other, "numbers")


@pytest.fixture(autouse=True)
def address_of_the_server(inference, settings):
    settings.SERVE_URL = inference.address  # texts come over a connection of their own


async def _all(response):
    return b"".join([part async for part in response.streaming_content])


def events(response):
    from asgiref.sync import async_to_sync

    assert response.status_code == 200, response.content
    lines = async_to_sync(_all)(response).decode().split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


TALK = [{"role": "user", "content": "Hello"}]


def test_a_text_is_streamed_by_a_deployment_and_recorded(inference, api, viewer, talker, version, asked):
    told = events(
        api(viewer).post(
            f"/api/v1/deployments/{talker.pk}/generate",
            {"messages": TALK, "max_tokens": 9, "key": "k 1"},
            format="json",
        )
    )
    assert [one["text"] for one in told[:-1]] == SAID and told[-1]["done"] is True
    assert told[-1]["version"] == str(version.pk) and asked == [{"messages": TALK, "max_tokens": 9}]
    prediction_log.buffer.flush()
    record = PredictionRecord.objects.get()
    assert str(record.request_id) == told[-1]["request_id"] and record.key == "k 1"
    assert record.predictions == [{"text": "Good day."}] and record.instances == asked
    by_name = events(api(viewer).post("/api/v1/deployments/talker/generate", {"prompt": "x"}, format="json"))
    assert by_name[-1]["done"] is True


def test_a_text_counts_for_the_rate_of_the_key_that_asks(inference, client, viewer, talker, version, monkeypatch):
    monkeypatch.setattr(inference.server, "rate", rate_limit.RateLimit(0.01))
    headers = {"Authorization": f"Bearer {key_of(viewer)}"}
    first, *others = [
        client.post(f"/api/v1/{path}/generate", {"prompt": "x"}, content_type="application/json", headers=headers)
        for path in (f"deployments/{talker.pk}", "deployments/talker", f"model-versions/{version.pk}")
    ]  # fmt: skip
    assert events(first)[-1]["done"] is True
    for refused in others:
        assert refused.status_code == 429 and refused.json()["errors"][0]["code"] == "throttled", refused.content
        assert 90 <= int(refused["Retry-After"]) <= 101
    prediction_log.buffer.flush()
    assert PredictionRecord.objects.count() == 1


def test_a_text_is_counted_once(inference, client, viewer, talker, monkeypatch):
    monkeypatch.setattr(inference.server, "rate", rate_limit.RateLimit(1.0, clock=lambda: 0.0))  # two at once
    headers = {"Authorization": f"Bearer {key_of(viewer)}"}
    path = f"/api/v1/deployments/{talker.pk}/generate"
    told = [
        client.post(path, {"prompt": "x"}, content_type="application/json", headers=headers) for _ in range(3)
    ]  # fmt: skip
    assert [one.status_code for one in told] == [200, 200, 429]
    assert all(events(one)[-1]["done"] is True for one in told[:2])


def test_nobody_but_the_platform_counts_for_a_key(inference, viewer):
    headers = {"Authorization": f"Bearer {key_of(viewer)}"}
    assert inference.client.post("/internal/rate", headers=headers).status_code == 401


def test_an_error_is_an_event_and_a_record(inference, api, viewer, talker, version, stubs):
    def breaks(instance):
        yield "Good"
        raise RuntimeError("broken")

    stubs.writers[version.pk] = breaks
    path = f"/api/v1/deployments/{talker.pk}/generate"
    told = events(api(viewer).post(path, {"prompt": "x"}, format="json"))
    assert told[0] == {"text": "Good"} and "could not be written" in told[-1]["error"]
    prediction_log.buffer.flush()
    assert PredictionRecord.objects.get().error == "error"


@pytest.mark.parametrize(
    ("messages", "attr", "code"),
    [
        ("a", "messages", "not_a_list"),
        ({"role": "user"}, "messages", "not_a_list"),
        (5, "messages", "not_a_list"),
        ([], "messages", "empty"),
        (None, "messages", "null"),
        ([{"role": "user"}], "messages.0.content", "required"),
        ([*TALK, {"role": "user", "content": "x", "colour": 1}], "messages.1.colour", "unknown_field"),
    ],
)
def test_wrong_messages_are_told_by_their_name(inference, api, viewer, talker, version, asked, messages, attr, code):
    for path in (f"deployments/{talker.pk}", "deployments/talker", f"model-versions/{version.pk}"):
        answer = api(viewer).post(f"/api/v1/{path}/generate", {"messages": messages}, format="json")
        assert answer.status_code == 400, answer.content
        assert [(one["attr"], one["code"]) for one in answer.json()["errors"]] == [(attr, code)]
    assert asked == []


def test_who_may_ask_and_for_what(inference, api, viewer, stranger, talker, numbers):
    path = f"/api/v1/deployments/{talker.pk}/generate"
    assert api(stranger).post(path, {"prompt": "x"}, format="json").status_code == 404
    assert api(stranger).post("/api/v1/deployments/talker/generate", {"prompt": "x"}, format="json").status_code == 404
    for wrong, attr in (
        ({"temperature": 9}, "temperature"), ({"colour": 1}, "colour"), ({"key": "x" * 201}, "key"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages.0.role"),
    ):  # fmt: skip
        answer = api(viewer).post(path, wrong, format="json")
        assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == attr, answer.content
    answer = api(viewer).post(f"/api/v1/deployments/{numbers.pk}/generate", {"prompt": "x"}, format="json")
    assert answer.status_code == 409 and answer.json()["errors"][0]["code"] == "not_a_language_model"


@pytest.mark.parametrize("kind", ["version", "deployment"])
def test_the_page_talks_without_scripts_too(inference, web, viewer, stranger, talker, version, asked, kind):
    found = {"version": version, "deployment": talker}[kind]
    address = reverse(f"{kind}-chat", args=[found.pk])
    page_of = reverse("model-version" if kind == "version" else "deployment", args=[found.pk])
    page = web(viewer).get(page_of).content.decode()
    assert "data-chats=" in page and "data-writes=" in page and "chatting" in page
    assert ('name="key"' in page) == (kind == "deployment")
    body = {"message": "Hello", "system": "Be brief.", "max_tokens": "5", "temperature": "0", "history": ""}
    shown = web(viewer).post(address, body)
    assert shown.status_code == 200 and "Good day." in shown.content.decode()
    form = shown.context["chat_form"]
    assert [turn["role"] for turn in form.turns] == ["user", "assistant"]
    history = form["history"].value()
    again = web(viewer).post(address, body | {"message": "And?", "history": history}).context["chat_form"]
    assert [turn["content"] for turn in again.turns] == ["Hello", "Good day.", "And?", "Good day."]
    assert asked[-1] == {
        "messages": [{"role": "system", "content": "Be brief."}, *form.turns, {"role": "user", "content": "And?"}],
        "max_tokens": 5, "temperature": 0.0,
    }  # fmt: skip
    over = web(viewer).post(address, body | {"over": "1", "history": history}).context["chat_form"]
    assert over.turns == [] and not over.is_bound
    for wrong in ({"history": "[3]"}, {"history": "{"}, {"max_tokens": "0"}, {"message": ""}, {"temperature": "x"}):
        refused = web(viewer).post(address, body | wrong)
        assert refused.status_code == 200 and refused.context["chat_form"].errors, wrong
    assert web(stranger).post(address, body).status_code == 404
    assert web(viewer).get(address).status_code == 302


def test_what_the_model_refuses_is_told_and_nothing_is_lost(inference, web, viewer, version, stubs):
    def refuses(instance):
        raise ValueError("no")

    stubs.writers[version.pk] = refuses
    address = reverse("version-chat", args=[version.pk])
    page = web(viewer).post(address, {"message": "Hello you", "max_tokens": "5", "temperature": "1"})
    assert page.status_code == 200 and page.context["chat_form"].non_field_errors()
    assert "Hello you" in page.content.decode()


def test_a_model_of_plain_texts_has_no_chat(web, viewer, organization, maintainer):
    plain = factories.ModelVersionFactory(
        model__organization=organization, number=1, tree=TREE, signature=PROMPT, task="language-model"
    )
    page = web(viewer).get(reverse("model-version", args=[plain.pk])).content.decode()
    assert "data-writes=" in page and "data-chats=" not in page
    assert web(viewer).post(reverse("version-chat", args=[plain.pk]), {"message": "x"}).status_code == 302
    old = factories.ModelVersionFactory(
        model__organization=organization, tree=TREE, signature=PROMPT | {"target": "messages"}, task="language-model"
    )
    assert "data-chats=" in web(viewer).get(reverse("model-version", args=[old.pk])).content.decode()
