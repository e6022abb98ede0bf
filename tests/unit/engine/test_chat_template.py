"""Chat templates: written as the transformers library writes them, answers found, and hostile ones stopped."""

from __future__ import annotations

from typing import Any

import pytest

from dlplatform.engine import chat_budget
from dlplatform.engine.chat_template import (
    MAXIMUM_BYTES,
    ChatTemplate,
    ChatTemplateError,
    chat_of,
    problem_with,
    template_in,
    template_of,
)
from dlplatform.engine.errors import PackageError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<head>system</head>\\n" }}{{ "Today: " ~ date_string ~ "\\n" }}{{- system_message }}{{- eos_token }}
{%- for message in messages %}
    {%- if message.role in ['user', 'assistant'] and not (message.tool_calls is defined and message.tool_calls|length) %}
        {{- '<head>' + message['role'] + '</head>\\n\\n' + message['content'] | trim + eos_token }}
    {%- elif 'tool_calls' in message %}
        {{- message.tool_calls|tojson(indent=4) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<head>assistant</head>\\n\\n' }}
{%- endif %}
"""
STRICT = """{% macro turn(role, text) -%}
<{{ role|upper }}>{{ text|replace('\\n\\n', '\\n') }}
{%- endmacro -%}
{{ bos_token }}{% set ns = namespace(seen=0, last=-1) %}
{% for m in messages[::-1] %}{% if m.role == 'user' and ns.last < 0 %}{% set ns.last = messages|length - loop.index %}{% endif %}{% endfor %}
{% for message in messages %}
{% if loop.first and message.role == 'system' %}{{ turn('system', message.content) }}{% continue %}{% endif %}
{% if (message['role'] == 'user') != (ns.seen % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}
{% set ns.seen = ns.seen + 1 %}
{% if message.role == 'assistant' and loop.index0 > ns.last and loop.last %}
{{ turn('model', '<think></think>' ~ message.content.split('</think>')[-1].lstrip('\\n')) }}{{ eos_token }}
{% else %}
{{ turn({'assistant': 'model'}.get(message.role, message.role), message.content.strip()) }}{{ eos_token }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<MODEL>{% endif %}"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hello\n\nthere"},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "And <b> & {{ 7*7 }} ü?"},
    {"role": "assistant", "content": "Well."},
]


@pytest.mark.parametrize("text", [CHATML, HEADERS, STRICT])
@pytest.mark.parametrize("many", [2, 3, 4, 5])
def test_templates_write_as_the_library_does(text: str, many: int) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for answering in (True, False):
        theirs, _ = render_jinja_template(
            [TALK[:many]], chat_template=text, add_generation_prompt=answering, date_string="26 Jul 2024", **TOKENS
        )
        assert ChatTemplate(text, TOKENS).written(TALK[:many], answering=answering) == theirs[0]


def said(text: str, messages: list[dict[str, str]] = TALK) -> list[str]:
    written, spans = ChatTemplate(text, TOKENS).answered(messages)
    return [written[first:last] for first, last in spans]


def test_answers_are_found_with_what_ends_them() -> None:
    assert said(CHATML) == ["Good day.<|im_end|>\n", "Well.<|im_end|>\n"]
    assert said(HEADERS) == ["Good day.</s>", "Well.</s>"]
    assert said(CHATML, TALK[:2]) == []
    # This one writes an empty thought before the last answer only.
    assert said(STRICT)[0].strip() == "Good day.</s>"
    assert said(STRICT)[1].strip() == "<think></think>Well.</s>"


def test_blocks_of_generation_say_what_is_generated() -> None:
    marked = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{%- generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert said(marked) == ["Good day.</s>", "Well.</s>"]
    assert "\ue000" not in ChatTemplate(marked, TOKENS).written(TALK)
    assert said(marked, [{"role": "user", "content": "\ue000x"}, *TALK[2:3]]) == ["Good day.</s>"]


def test_a_template_whose_beginning_depends_on_its_end_is_refused() -> None:
    text = "{{ messages|length }}{% for m in messages %}{{ m.content }};{% endfor %}"
    with pytest.raises(ChatTemplateError, match="message 3 otherwise than what it asks an answer for"):
        said(text)


NESTED = "{% set ns = namespace(x=(1,)) %}{% for i in range(40) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
GROWING = "{% set ns = namespace(x='ab', y=[1], z=3) %}{% for i in range(60) %}{% set ns.STEP %}{% endfor %}"
ATTACKS = {
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "a loop that keeps nothing": "{% for a in range(9999) if false %}{% endfor %}" * 500,
    "a long body": "{% for i in range(9999) %}" + "{% set a = 1 and 1 and 1 and 1 %}" * 1000 + "{% endfor %}",
    "a long text": "{{ 'a' * 10**9 }}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a wide format": "{{ '{:1000000000d}'.format(1) }}",
    "a format that looks inside": "{{ '{0.__class__}'.format(1) }}",
    "padding": "{{ 'x'.ljust(10**9) }}",
    "a tab": "{{ '\t'.expandtabs(10**9) }}",
    "a centre": "{{ 'x'|center(10**9) }}",
    "an indent": "{{ 'x'|indent(10**9) }}",
    "a wide JSON": "{{ messages|tojson(indent=10**9) }}",
    "a JSON of many levels": "{% set ns = namespace(x=range(9000)|list) %}{% for i in range(40) %}{% set ns.x = [ns.x] %}"
    "{% endfor %}{{ ns.x|tojson(indent=16) }}",
    "many pieces": "{% set x = 'aa,' * 200000 %}{% for i in range(9) %}{% set y = x.split(',') %}{% endfor %}",
    "a long range": "{{ range(10**9) }}",
    "a range of none": "{{ range(none) }}",
    "words": "{{ lipsum(n=10**6) }}",
    "chance": "{{ messages|random }}",
    "a macro for ever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that doubles": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "a loop in itself": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "joined texts": GROWING.replace("STEP", "x = ns.x ~ ns.x"),
    "added texts": GROWING.replace("STEP", "x = ns.x + ns.x"),
    "replaced texts": GROWING.replace("STEP", "x = ns.x.replace('a', 'aaab')"),
    "texts by a list": GROWING.replace("STEP", "x = [ns.x, ns.x]|join"),
    "captured texts": "{% set x %}abcdefgh{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "added lists": GROWING.replace("STEP", "y = ns.y + ns.y"),
    "multiplied lists": "{{ messages * 10**9 }}",
    "numbers": GROWING.replace("STEP", "z = ns.z * ns.z"),
    "a power": "{{ 10**10**10 }}",
    "much output": "{% for i in range(9999) %}{{ 'a' * 9000 }}{% endfor %}",
    "much text between": "{% for i in range(9999) %}" + "x" * 60_000 + "{% endfor %}",
    "a doubled tree in print": NESTED + "{{ ns.x }}",
    "a doubled tree as JSON": NESTED + "{{ ns.x|tojson }}",
    "a doubled tree as a key": NESTED + "{{ {ns.x: 1} }}",
    "a doubled tree looked up": NESTED + "{{ {}[ns.x] }}",
    "a doubled tree got": NESTED + "{{ {}.get(ns.x) }}",
    "a doubled tree in an object": NESTED + "{{ ns.x in {} }}",
    "a doubled tree compared": NESTED + "{{ ns.x == (ns.x, ns.x) }}",
    "a doubled tree tested": NESTED + "{{ ns.x is eq ns.x }}",
    "a doubled tree among others": NESTED + "{{ [ns.x]|unique|list }}",
    "a doubled tree by its parts": NESTED + "{{ [ns.x]|map('string')|list }}",
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "a search": "{% set x = 'a' * 90000 %}{{ x.rfind('b' + 'a' * 40000) }}",
    "many copies": "{% set x = 'a' * 90000 %}{% for i in range(9999) %}{% set y = x[::-1] %}{% endfor %}",
    "many searches": "{% set x = 'a' * 90000 %}{% for i in range(9999) %}{% set y = 'bb' in x %}{% endfor %}",
    "its class": "{{ ''.__class__.__mro__ }}",
    "its class by a key": "{{ ''['__class__']['__mro__'] }}",
    "its class by a filter": "{{ ''|attr('__class__') }}",
    "its class by a map": "{{ ['']|map(attribute='__class__.__mro__')|first|length + 1 }}",
    "the names of a function": "{{ cycler.__init__.__globals__ }}",
    "the names of ours": "{{ raise_exception.__globals__.os }}",
    "a function in print": "{{ raise_exception }}",
    "a loop in print": "{% for x in [1] %}{{ loop.index }}{{ loop }}{% endfor %}",
    "a change": "{{ messages.append(1) }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
    "a part of another": "{% from 'os' import system %}",
    "another": "{% extends 'x' %}",
    "a block": "{% block a %}{% endblock %}",
    "a call block": "{% call raise_exception('x') %}{% endcall %}",
    "many brackets": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "many negations": "{{ " + "not " * 9000 + "1 }}",
    "many sums": "{{ 1" + "+1" * 20_000 + " }}",
    "many conditions": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "many loops": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "many digits": "{{ " + "9" * 60_000 + " }}",
    "half a statement": "{% for",
    "ten megabytes": "x" * 10_000_000,
    "spread arguments": "{{ dict(**messages[0]) }}",
    "chained comparisons": "{{ 1 < 2 < 3 }}",
    "its own exception": "{{ raise_exception('no ' * 1000) }}",
    "nobody": "{{ nobody.name }}",
}  # fmt: skip


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS.keys())
def test_hostile_templates_end_with_a_reason(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether when they are read or when they write; nothing else is raised, and the reason is short."""
    monkeypatch.setattr(chat_budget, "STEPS", 100_000)  # a tenth of them, for the sake of time
    with pytest.raises(ChatTemplateError) as caught:
        ChatTemplate(text).written(TALK)
    assert 5 < len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["nested loops", "a macro that doubles", "a doubled tree in print"])
def test_the_whole_budget_is_spent_soon(name: str) -> None:
    with pytest.raises(ChatTemplateError, match="too many steps"):
        ChatTemplate(ATTACKS[name]).written(TALK)


def test_nothing_depends_on_the_day() -> None:
    text = "{{ strftime_now('%1000000000d %d %b %Y %%') }}"
    assert ChatTemplate(text).written([]) == "000000000d 26 Jul 2024 %"


def test_a_long_chat_is_within_the_budget() -> None:
    talk = [{"role": role, "content": "words " * 200} for _ in range(300) for role in ("user", "assistant")]
    for text in (CHATML, HEADERS, STRICT):
        assert len(ChatTemplate(text, TOKENS).written(talk)) > 600 * 1000


@pytest.mark.parametrize(
    ("config", "file", "found"),
    [
        ({"chat_template": "a{{1}}"}, None, "a{{1}}"),
        ({"chat_template": "a"}, "b", "b"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}, None, "d"),
        ({"chat_template": {"default": "d"}}, None, "d"),
        ({"chat_template": [3, {"name": 3}]}, None, None),
        ({"chat_template": 3}, None, None),
        ([], None, None),
        (None, " ", None),
    ],
)
def test_the_template_of_a_directory(config: Any, file: str | None, found: str | None) -> None:
    assert template_in(config, file)[0] == found


def test_files_that_cannot_be_read_have_no_template() -> None:
    assert template_of(b"{", None) == (None, {}) and problem_with(b"{", None) is None
    assert template_of(b'{"chat_template": "a"}', b"b\xff")[0] == "b\ufffd"
    assert problem_with(None, b"{% include 'x' %}") == "it uses the statement include, which is not there"
    assert problem_with(None, None) is None and problem_with(None, b"{{ messages }}") is None


def test_special_tokens_are_texts_or_objects() -> None:
    said = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "unk_token": 3, "x": "y"}
    assert template_in(said, None)[1] == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    "raw",
    [3, {"template": 3}, {"template": "{%"}, {"template": "a", "tokens": 3}, {"template": "x" * (MAXIMUM_BYTES + 1)}],
)
def test_what_a_package_says_of_chats_is_checked(raw: Any) -> None:
    with pytest.raises(PackageError):
        chat_of(raw)


def test_what_a_package_says_is_read_back() -> None:
    template = ChatTemplate(CHATML, TOKENS)
    assert chat_of(template.to_dict()) == template
    assert chat_of(None) is chat_of({"template": None}) is None
