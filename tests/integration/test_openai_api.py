"""Language models with the stock client of OpenAI: lists, texts and chats, whole and streamed, and what is refused."""

import json
import threading
import time

import openai
import pytest

from registry.serving import prediction_log, services
from registry.serving.models import PredictionRecord
from registry.serving.server.openai_questions import Stopping, question_of
from registry.serving.services import Wanted
from tests import factories
from tests.integration.answering import INPUTS, TREE, deployed, key_of, value_of, writing_version

pytestmark = pytest.mark.django_db(transaction=True)
SAID = ["Once", " upon", " a", " time", "."]
CHAT = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Go on"}]}]


@pytest.fixture
def asked():
    return []


@pytest.fixture
def version(organization, stubs, asked):
    return writing_version(organization, stubs, SAID, asked)


@pytest.fixture
def stories(maintainer, organization, version):
    return deployed(maintainer, organization, version, "stories")


def client_of(inference, user, **more):
    return openai.OpenAI(base_url=f"{inference.address}/v1", api_key=key_of(user), max_retries=0, timeout=20, **more)


@pytest.fixture
def client(inference, viewer, stories):
    with client_of(inference, viewer) as made:
        yield made


def test_models_are_the_deployments_of_language_models_that_the_caller_sees(
    client, inference, maintainer, organization, stranger
):
    other = factories.ModelVersionFactory(model__organization=organization, tree=TREE, signature=INPUTS)
    services.create_deployment(actor=maintainer, organization=organization, name="numbers", variants=[Wanted(other.pk)])
    assert [(one.id, one.owned_by) for one in client.models.list()] == [("stories", "lab")]
    assert client.models.retrieve("stories").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("numbers")
    assert list(client_of(inference, stranger).models.list()) == []
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{inference.address}/v1", api_key="dlp_no", max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError, match="You are in no organization"):
        client_of(inference, stranger, organization="lab").models.list()
    with pytest.raises(openai.BadRequestError, match="writes no texts"):
        client.completions.create(model="numbers", prompt="x")
    with pytest.raises(openai.NotFoundError):
        client_of(inference, stranger).completions.create(model="stories", prompt="x")


def test_a_text_and_a_chat_come_whole_and_are_recorded(client, asked, stories):
    told = client.completions.create(model="stories", prompt="Tell", max_tokens=3, temperature=0, seed=-1, user="u 1")
    assert told.choices[0].text == "Once upon a" and told.choices[0].finish_reason == "length"
    assert (told.usage.prompt_tokens, told.usage.completion_tokens, told.usage.total_tokens) == (3, 3, 6)
    assert asked[-1] == {"prompt": "Tell", "max_tokens": 3, "temperature": 0, "seed": 2**31 - 1}
    chat = client.chat.completions.create(model="stories", messages=CHAT, stop=[" time"])
    assert chat.choices[0].message.content == "Once upon a" and chat.choices[0].finish_reason == "stop"
    assert [one["role"] for one in asked[-1]["messages"]] == ["system", "user"]
    assert asked[-1]["messages"][1]["content"] == "Go on" and asked[-1]["temperature"] == 1.0
    prediction_log.buffer.flush()
    first, second = PredictionRecord.objects.order_by("id")
    assert told.id == f"cmpl-{first.request_id}" and first.key == "u 1"
    assert second.predictions == [{"text": "Once upon a"}] and second.instances[0]["messages"]


def test_streams_come_piece_by_piece_with_their_usage(client, stubs, version):
    gate = threading.Event()

    def slowly(instance):
        yield "Once"
        assert gate.wait(20)
        yield " upon"

    stubs.writers[version.pk] = slowly
    events = client.chat.completions.create(
        model="stories", messages=CHAT, stream=True, stream_options={"include_usage": True}
    )
    first = next(iter(events))
    assert first.choices[0].delta.content == "Once" and first.choices[0].delta.role == "assistant"
    gate.set()
    rest = list(events)
    assert [one.choices[0].delta.content for one in rest[:1]] == [" upon"]
    assert rest[-2].choices[0].finish_reason == "stop" and rest[-1].usage.completion_tokens == 2
    texts = client.completions.create(model="stories", prompt="x", stream=True, max_tokens=1)
    told = list(texts)
    assert told[0].choices[0].text == "Once" and told[-1].choices[0].finish_reason == "length"


def test_writing_holds_up_no_other_model_and_ends_when_the_reader_leaves(
    client, inference, viewer, maintainer, organization, stubs, version
):
    other = factories.ModelVersionFactory(model__organization=organization, tree=TREE, signature=INPUTS)
    services.create_deployment(actor=maintainer, organization=organization, name="numbers", variants=[Wanted(other.pk)])

    def endless(instance):
        while True:
            yield "on and "

    stubs.writers[version.pk] = endless
    stream = client.completions.create(model="stories", prompt="x", stream=True, max_tokens=2000)
    next(iter(stream))
    assert value_of(inference.ask("numbers", key_of(viewer))) == 1.0, "while the text is being written"
    stream.close()
    stubs.writers[version.pk] = lambda instance: SAID
    assert client.completions.create(model="stories", prompt="x").choices[0].text == "".join(SAID)
    prediction_log.buffer.flush()
    errors = PredictionRecord.objects.filter(variant__version=version).values_list("error", flat=True)
    assert sorted(errors) in (["", ""], ["", "reader_left"])


@pytest.fixture
def on_and_on(stubs, version):
    """A model that is slow to begin and then writes for ten seconds, unless the prompt is short; what it is doing."""
    doing = []

    def write(instance):
        doing.append("begins")
        time.sleep(1.0 if instance["prompt"] == "slow to begin" else 0.0)
        for _ in range(1000 if len(instance["prompt"]) > 5 else 2):
            yield "on and "
            doing.append("writes")
            time.sleep(0.01)

    stubs.writers[version.pk] = write
    return doing


def recorded():
    """The error of each prompt."""
    prediction_log.buffer.flush()
    return {row.instances[0]["prompt"]: row.error for row in PredictionRecord.objects.all()}


def test_who_stops_reading_is_told_from_who_gave_up_before_a_word(client, on_and_on):
    """The second one waits in vain for the first one's text to end."""
    stream = client.completions.create(model="stories", prompt="is read", stream=True, max_tokens=2000)
    next(iter(stream))
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(model="stories", prompt="waits for its turn")
    stream.close()
    client.completions.create(model="stories", prompt="last")
    assert recorded() == {"is read": "reader_left", "waits for its turn": "client_gone", "last": ""}


@pytest.mark.parametrize(("prompt", "stream"), [("slow to begin", True), ("slow to begin", False), ("is long", False)])
def test_who_got_no_word_gave_up_whatever_was_written(client, on_and_on, prompt, stream):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(
            model="stories", prompt=prompt, stream=stream, max_tokens=2000
        )
    client.completions.create(model="stories", prompt="last")
    assert recorded() == {prompt: "client_gone", "last": ""}
    assert on_and_on.count("writes") < 900, "writing ends when the reader leaves"


def test_an_error_in_the_middle_is_an_event_and_one_at_the_beginning_an_answer(client, stubs, version):
    def breaks(instance):
        yield "Once"
        raise RuntimeError("broken")

    stubs.writers[version.pk] = breaks
    with pytest.raises(openai.APIError):
        list(client.completions.create(model="stories", prompt="x", stream=True))
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="stories", prompt="x")
    prediction_log.buffer.flush()
    assert set(PredictionRecord.objects.values_list("error", flat=True)) == {"error"}


def test_what_cannot_be_done_is_refused_by_its_name(client):
    for wrong, param in (
        ({"model": None}, "model"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"top_p": 0.5}, "top_p"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"user": 7}, "user"),
        ({"stream": "yes"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.post("/chat/completions", body={"model": "stories", "messages": CHAT} | wrong, cast_to=object)
        assert refused.value.body["param"].startswith(param), (wrong, refused.value.body)
        assert refused.value.body["type"] == "invalid_request_error"


def test_nobody_is_told_that_before_what_is_wrong_with_the_request(inference, viewer, stories):
    for body in (b"no JSON", b"{}", b'{"model": "stories", "messages": []}'):
        told = [
            inference.client.post("/v1/chat/completions", content=body, headers={"Authorization": f"Bearer {key}"})
            for key in ("dlp_no", key_of(viewer))
        ]
        assert [one.status_code for one in told] == [401, 400], body


@pytest.mark.parametrize("field", ["model", "prompt", "stop", "user", "messages", "stream_options"])
def test_half_a_surrogate_is_refused_by_its_field(inference, viewer, stories, field):
    value = {"messages": [{"role": "user", "content": "\ud800"}], "stream_options": {"a": "\ud800"}}.get(
        field, "a\ud800"
    )
    asked = json.dumps({"model": "stories", "prompt": "x", field: value})
    headers = {"Authorization": f"Bearer {key_of(viewer)}"}
    answer = inference.client.post("/v1/completions", content=asked, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field, answer.text


def test_a_prompt_is_one_text():
    asked = {"model": "m", "prompt": ["a"], "max_tokens": 10**6, "top_k": 5, "n": 1, "top_p": 1}
    assert question_of(asked, chat=False).instance == {
        "prompt": "a", "max_tokens": 2048, "temperature": 1.0, "top_k": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "stopped"),
    [
        ((), ["a", "b"], "ab", False),
        (("xy",), ["ax", "yb"], "a", True),
        (("xy",), ["ax", "b"], "axb", False),
        (("xyz", "b"), ["x", "y", "ab"], "xya", True),
        (("aab",), ["a", "a", "a", "b"], "a", True),
    ],
)
def test_a_stop_sequence_ends_the_text_before_it(stops, pieces, text, stopped):
    stopping, told = Stopping(stops), ""
    for piece in pieces:
        told += stopping.feed(piece)
        if stopping.stopped:
            break
    assert (told if stopping.stopped else told + stopping.rest(), stopping.stopped) == (text, stopped)
