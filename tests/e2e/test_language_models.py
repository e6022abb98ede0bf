"""Language models through the whole platform: chats and prompts from a file to a text that is written before one's eyes."""

import json

import openai
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("platform")]

CONFIG = {"epochs": 120, "threads": 1, "batch_size": 2, "early_stopping": False, "text_length": 32, "learning_rate": 0.005,
          "params": {"text_width": 32, "text_layers": 2, "text_heads": 2, "dropout": 0.0}}  # fmt: skip


def lines(kind: str) -> bytes:
    """What the model is to learn: that a colour is followed by its fruit."""
    pairs = [("red", "apple"), ("yellow", "banana"), ("green", "pear")] * 20
    if kind == "prompts":
        rows = [{"prompt": f"colour {colour} fruit", "completion": f" {fruit}"} for colour, fruit in pairs]
    elif kind == "chats":
        rows = [
            {"messages": [{"role": "user", "content": colour}, {"role": "assistant", "content": fruit}]}
            for colour, fruit in pairs
        ]
    else:
        rows = [{"text": f"the {colour} {fruit} is a {fruit}"} for colour, fruit in pairs]
    return b"\n".join(json.dumps(row).encode() for row in rows)


def ingested(platform, client, name, content):
    dataset = client.post("/datasets", json={"name": name}).raise_for_status().json()
    path = f"/datasets/{dataset['id']}/versions"
    headers = {"Content-Type": "application/x-ndjson"}
    sent = client.post(path, params={"filename": "texts.ndjson"}, content=content, headers=headers)
    number = sent.raise_for_status().json()["number"]
    version = platform.wait(lambda: client.get(f"{path}/{number}").json(), ("ready", "rejected"))
    assert version["state"] == "ready", version["problems"]
    return version


def events(answer):
    return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]


@pytest.mark.parametrize(
    ("kind", "target", "asked"),
    [
        ("prompts", "completion", {"prompt": "colour yellow fruit"}),
        ("chats", "messages", {"messages": [{"role": "user", "content": "yellow"}]}),
        ("texts", "text", {"prompt": "the yellow"}),
    ],
)
def test_a_language_model_from_a_file_to_a_written_text(platform, kind, target, asked):
    with platform.client() as client:
        version = ingested(platform, client, f"fruits as {kind}", lines(kind))
        run = platform.train(client, version["id"], task="language-model", target=target, config=CONFIG)
        ended = platform.finished(client, run["id"])
        assert ended["state"] == "succeeded", ended["error"]
        assert ended["metrics"]["perplexity"] < ended["evaluation"]["baseline"]["metrics"]["perplexity"]
        assert ended["evaluation"]["samples"]
        address = f"/model-versions/{ended['output_version']}"
        said = client.post(f"{address}/predict", json={"instances": [{**asked, "temperature": 0, "max_tokens": 8}]})
        assert "banana" in said.raise_for_status().json()["predictions"][0]["text"]
        with client.stream("POST", f"{address}/generate", json={**asked, "temperature": 0, "max_tokens": 8}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            told = events(answer)
        assert told[-1] == {"done": True}
        assert "banana" in "".join(piece.get("text", "") for piece in told)
        assert "banana" in written_by_openai(platform, client, ended["output_version"], kind, asked)
        for wrong in ({"temperature": 9}, {"colour": "red"}, {"messages": [{"role": "king", "content": ""}]}):
            assert client.post(f"{address}/generate", json=wrong).status_code == 400


def written_by_openai(platform, client, version, kind, asked):
    """The same text by OpenAI's client, from a deployment on the inference server."""
    wanted = {"name": f"fruits-as-{kind}", "variants": [{"version": version}]}
    client.post("/deployments", json=wanted).raise_for_status()
    token = client.headers["Authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{platform.serve_port}/v1", api_key=token) as other:
        more = {"model": wanted["name"], "temperature": 0, "max_tokens": 8, "stream": True}
        if kind == "chats":
            return "".join(one.choices[0].delta.content or "" for one in other.chat.completions.create(**asked, **more))
        return "".join(one.choices[0].text for one in other.completions.create(**asked, **more))


def test_what_is_no_chat_fails_by_row(platform):
    content = lines("chats") + b'\n{"messages": [{"role": "king", "content": "no"}]}'
    with platform.client() as client:
        version = ingested(platform, client, "a bad chat", content)
        run = platform.train(client, version["id"], task="language-model", target="messages", config=CONFIG)
        ended = platform.finished(client, run["id"])
        assert ended["state"] == "failed" and ended["error"]["code"] == "bad_data"
        assert "Row 61" in ended["error"]["sentence"]
