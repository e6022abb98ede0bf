"""The form that talks to a language model: a system message, what was said so far, and what is said now."""

from collections.abc import Callable
from typing import Any

import orjson
from django import forms
from django.core.exceptions import ValidationError
from django.http import Http404

from dlplatform.api import Conflict, Unavailable

from .generation_api import LANGUAGE
from .models import ModelVersion
from .serving.client import Unusable

LONGEST = 100_000
MOST_HISTORY = 1_000_000
MOST_TURNS = 1000
SAID = ("user", "assistant")


def takes_chats(version: ModelVersion) -> bool:
    """Whether the model was taught chats, or has a template for them. Versions of before say it by their target alone."""
    known = version.signature
    return version.task == LANGUAGE and (known.get("chat") is True or known.get("target") == "messages")


def example_of(version: ModelVersion, instance: dict[str, Any]) -> dict[str, Any]:
    """The row of a command that asks the model: a message for one that takes chats."""
    return {"messages": [{"role": "user", "content": "Hello"}]} if takes_chats(version) else instance


class ChatForm(forms.Form):
    """``history``: the turns so far as JSON, as the page keeps them. ``asks_key``: a deployment, where a key chooses who
    answers."""

    history = forms.CharField(required=False, max_length=MOST_HISTORY, strip=False, widget=forms.HiddenInput)
    message = forms.CharField(max_length=LONGEST, strip=False, widget=forms.Textarea({"rows": 2}))
    system = forms.CharField(
        required=False, max_length=LONGEST, strip=False, label="System message", widget=forms.Textarea({"rows": 2}),
        help_text="How the model is to answer. Blank: none",
    )  # fmt: skip
    max_tokens = forms.IntegerField(label="Tokens at most", min_value=1, max_value=2048, initial=256)
    temperature = forms.FloatField(
        min_value=0, max_value=5, initial=0.8, help_text="0 takes the likeliest token",
        widget=forms.NumberInput({"step": "0.1"}),
    )  # fmt: skip

    def __init__(self, *args: Any, asks_key: bool = False, **more: Any) -> None:
        super().__init__(*args, **more)
        if asks_key:
            self.fields["key"] = forms.CharField(
                max_length=200, required=False, label="Key",
                help_text="Whom the answer is for. Blank: chance decides who answers",
            )  # fmt: skip

    @property
    def turns(self) -> list[dict[str, str]]:
        """What was said, to be shown."""
        try:
            return self._turns(self["history"].value() or "")
        except ValidationError:
            return []

    @property
    def settings(self) -> list[forms.BoundField]:
        return [self[name] for name in ("key", "system", "max_tokens", "temperature") if name in self.fields]

    def clean_history(self) -> list[dict[str, str]]:
        return self._turns(self.cleaned_data["history"])

    def _turns(self, text: str) -> list[dict[str, str]]:
        try:
            turns = orjson.loads(text) if text else []
        except orjson.JSONDecodeError:
            turns = None
        good = isinstance(turns, list) and len(turns) <= MOST_TURNS and all(map(_is_turn, turns))
        if not good:
            raise ValidationError("What was said before cannot be read; start over.", code="invalid")
        return [{"role": turn["role"], "content": turn["content"]} for turn in turns]

    def instance(self) -> dict[str, Any]:
        """The row as the model takes it."""
        given = self.cleaned_data
        system = [{"role": "system", "content": given["system"]}] if given["system"].strip() else []
        messages = [*system, *given["history"], {"role": "user", "content": given["message"]}]
        return {"messages": messages, "max_tokens": given["max_tokens"], "temperature": given["temperature"]}

    def answered(self, ask: Callable[[dict[str, Any]], str]) -> "ChatForm":
        """The form after the answer; this one, with what is wrong, where there is none."""
        try:
            text = ask(self.instance())
        except ValidationError as error:
            self.add_error(None, ValidationError(error.messages))
        except (Unavailable, Conflict, Unusable) as error:
            self.add_error(None, str(error.detail))
        except Http404:
            self.add_error(None, "The inference process does not know this version; it may have been removed.")
        else:
            return self._after(text)
        return self

    def _after(self, text: str) -> "ChatForm":
        given = self.cleaned_data
        said = [{"role": "user", "content": given["message"]}, {"role": "assistant", "content": text}]
        kept = {name: given[name] for name in self.fields if name not in ("history", "message")}
        history = orjson.dumps([*given["history"], *said]).decode()
        return ChatForm(initial={**kept, "history": history}, asks_key="key" in self.fields)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") in SAID and isinstance(turn.get("content"), str)
