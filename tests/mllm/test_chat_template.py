"""What a chat template writes is fixed once: date, variables, and how it treats a text."""

from __future__ import annotations

import pickle
from datetime import date, datetime

import pytest

from ragvl.mllm import UnsupportedModelError
from ragvl.mllm.chat_template import DEFAULT_DATE, ChatTemplate, resolve_date

AROUND = (
    "{%% macro own(part) %%}{{ part.text }}{%% endmacro %%}"
    "{%% for message in messages %%}<{{ message.role }}>"
    "{%% for part in message.content %%}%s{%% endfor %%}<end>{%% endfor %%}"
)
TEXT = "Ab  <b>&amp; 'q' \"r\"\\ {{ x }}\n\n\tÉ"


def says(text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def template(body: str = "{{ part.text }}", **kwargs: object) -> ChatTemplate:
    return ChatTemplate(AROUND % body, {}, kwargs.pop("kwargs", {}), kwargs.pop("date", None))


@pytest.mark.parametrize(
    ("body", "treatment"),
    [
        ("{{ part.text }}", "verbatim"),
        ("{{ part['text'] + ' ' }}", "verbatim"),
        ("{{ '\n' + part['text'] }}", "verbatim"),
        ("{{ own(part) }}", "verbatim"),
        ("{% set x %}{{ part.text }}{% endset %}{{ x }}", "verbatim"),
        ("{% if part.text %}{{ part.text }}{% endif %}", "verbatim"),
        ("{% if part.text is string %}{{ part.text }}{% endif %}", "verbatim"),
        ("{{ part.text | trim }}", "trims"),
        ("{{ part.text.strip() }}", "trims"),
        ("{{ own(part) | trim }}", "trims"),
        ("{{ part.text.strip('<>') }}", "rewrites"),
        ("{{ part.text | replace('&', 'and') }}", "rewrites"),
        ("{{ part.text | replace('no such text', '') }}", "rewrites"),
        ("{{ part.text | upper }}", "rewrites"),
        ("{{ part.text | e }}", "rewrites"),
        ("{{ part.text | tojson }}", "rewrites"),
        ("{{ part.text.split('</think>')[-1] }}", "rewrites"),
        ("{{ part.text[:1000] }}", "rewrites"),
        ("{% if 'x' in part.text %}x{% endif %}{{ part.text }}", "rewrites"),
        ("{% if part.text == 'x' %}x{% endif %}{{ part.text }}", "rewrites"),
        ("{% if part.text | length > 999 %}x{% endif %}{{ part.text }}", "rewrites"),
        ("{% if own(part).startswith('x') %}x{% endif %}{{ part.text }}", "rewrites"),
        ("{% if ('' ~ part.text).startswith('x') %}x{% endif %}{{ part.text }}", "rewrites"),
        ("{% if ('%s' % part.text).startswith('x') %}x{% endif %}{{ part.text }}", "rewrites"),
        ("{{ part.text }}{{ part.text }}", "rewrites"),
        ("{% if part.text | wordcount > 50 %}x{% endif %}{{ part.text }}", "rewrites"),
        ("{{ 'Q: {}'.replace('{}', part.text) | trim }}", "rewrites"),
    ],
)
def test_what_a_template_does_with_a_text_is_seen(body: str, treatment: str) -> None:
    assert template(body).treatment(says, TEXT) == treatment


def test_the_clock_stands_still() -> None:
    body = "{{ strftime_now('%d %b %Y, %A, %H:%M') }} {{ part.text }}"
    assert template(body).render(says("x"), add_generation_prompt=True) == (
        "<user>26 Jul 2024, Friday, 00:00 x<end>"
    )
    for day in ("2026-11-28", date(2026, 11, 28), datetime(2026, 11, 28, 12, 30)):
        written = template(body, date=day).render(says("x"), add_generation_prompt=True)
        assert written == "<user>28 Nov 2026, Saturday, 00:00 x<end>"
    assert resolve_date(None) == DEFAULT_DATE


@pytest.mark.parametrize(
    ("body", "depends"),
    [
        ("{{ part.text }}", False),
        ("{% if false %}{{ strftime_now('%Y') }}{% endif %}{{ part.text }}", False),
        ("{{ strftime_now('%d') }}{{ part.text }}", True),
        ("{% macro today() %}{{ strftime_now('%y') }}{% endmacro %}{{ today() }}", True),
        ("{% if strftime_now('%m') == '02' %}winter{% endif %}{{ part.text }}", True),
    ],
)
@pytest.mark.parametrize("day", [None, "2001-02-03", "2001-07-03"])
def test_whether_the_date_matters_is_seen(body: str, depends: bool, day: str | None) -> None:
    assert template(body, date=day).depends_on_date(says("x")) == depends


@pytest.mark.parametrize("day", ["yesterday", "2026-13-01", 20261128])
def test_what_is_no_date_is_refused(day: object) -> None:
    with pytest.raises(ValueError, match=r"date='.*': expected one such as '2026-11-28'"):
        template(date=day)


def test_variables_are_plain_data_that_the_template_reads() -> None:
    body = "{{ part.text }}{{ tone }}{% if not day is defined %}{% set day = 'x' %}{% endif %}"
    body += "{{ day }}"
    written = template(body, kwargs={"tone": "!", "day": "Mon"})
    assert written.render(says("x"), add_generation_prompt=True) == "<user>x!Mon<end>"
    with pytest.raises(ValueError, match="reads no 'thinking'; it reads day, tone"):
        template(body, kwargs={"thinking": False})
    with pytest.raises(ValueError, match="must be plain data: Object of type function"):
        template(body, kwargs={"tone": lambda: "!"})


def test_an_answer_is_to_come_at_once_unless_a_caller_says_otherwise() -> None:
    body = "{{ part.text }}{% if enable_thinking is not defined or enable_thinking %}...{% endif %}"
    assert template(body).render(says("x"), add_generation_prompt=True) == "<user>x<end>"
    thinking = template(body, kwargs={"enable_thinking": True})
    assert thinking.render(says("x"), add_generation_prompt=True) == "<user>x...<end>"


@pytest.mark.parametrize("body", ["{{ ['a', 'b'] | random }}", "{{ lipsum() }}"])
def test_chance_is_refused_wherever_it_is_met(body: str) -> None:
    with pytest.raises(UnsupportedModelError, match="writes something else each time"):
        template(body).render(says("x"), add_generation_prompt=True)
    never = template("{% if message.role == 'tool' %}" + body + "{% endif %}{{ part.text }}")
    assert never.render(says("x"), add_generation_prompt=True) == "<user>x<end>"


def test_a_template_that_is_not_valid_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="not valid: unexpected 'end of template'"):
        ChatTemplate("{% if", {}, {}, None)


def test_a_refusal_by_the_template_says_why() -> None:
    with pytest.raises(ValueError, match="refuses the prompt: no system turns here"):
        template("{{ raise_exception('no system turns here') }}").render(
            says("x"), add_generation_prompt=True
        )


def test_it_is_pickled_by_its_text() -> None:
    body = "{{ strftime_now('%d') }}{{ tone }}{{ part.text }}"
    one = template(body, kwargs={"tone": "!"}, date="2026-11-28")
    other = pickle.loads(pickle.dumps(one))
    for each in (one, other):
        assert each.render(says("x"), add_generation_prompt=True) == "<user>28!x<end>"
