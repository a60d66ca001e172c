"""A checkpoint's chat template, with all fixed that shapes what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time
from functools import partial
from typing import Any, Literal, NoReturn

import jinja2
from jinja2 import meta
from transformers.processing_utils import ProcessorMixin
from transformers.utils.chat_template_utils import _compile_jinja_template

from ragvl.messages import quoted, reason, shown
from ragvl.model_files import UnsuitableSettingError, UnsupportedModelError

# What Llama 3's own templates write where they know no date
DEFAULT_DATE = date(2024, 7, 26)
# Two days without a common part: what is written alike on both depends on no day
_OTHER_DATES = (date(2001, 2, 3), DEFAULT_DATE)
_OURS = {"messages", "tools", "documents", "add_generation_prompt", "strftime_now"}

Messages = Sequence[Mapping[str, Any]]
Treatment = Literal["verbatim", "trims", "rewrites"]


class ChatTemplate:
    """What a chat template writes depends on the messages alone: date and settings are fixed.

    Hugging Face's renderer lets a template read the clock, and takes no other clock. Here the
    template runs in the same sandbox with a date of our own; what draws at random is refused.

    Args:
        text: the template.
        special_tokens: the tokenizer's, by their names, such as `bos_token`.
        kwargs: values for the template's own variables.
        date: what the template takes for today, a date or its ISO form; None is `DEFAULT_DATE`.
        at_once: an answer is to come at once: `enable_thinking` is False where the template reads
            it and it is not among `kwargs`.

    Attributes:
        text: the template.
        special_tokens: as given.
        kwargs: as given, with what is set by default.
        date: what it takes for today.

    Raises:
        UnsupportedModelError: the template is not valid.
        ValueError: a variable that the template does not read, or a date that is none.
    """

    def __init__(
        self,
        text: str,
        special_tokens: Mapping[str, str],
        kwargs: Mapping[str, Any],
        date: date | str | None,
        *,
        at_once: bool = True,
    ) -> None:
        self.text = text
        self.special_tokens = dict(special_tokens)
        self.date = resolve_date(date)
        try:
            environment = _compile_jinja_template(text).environment.overlay()
            variables = meta.find_undeclared_variables(environment.parse(text))
            environment.filters = {**environment.filters, "random": _refuse_chance}
            environment.globals = {**environment.globals, "lipsum": _refuse_chance}
            environment.concat = _concat
            self._compiled = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise UnsupportedModelError(
                f"the chat template is not valid: {reason(error)}"
            ) from None
        self._variables = variables - _OURS
        self._at_once = at_once
        self._given = _checked(kwargs, self._variables)
        self.kwargs = dict(self._given)
        if at_once and "enable_thinking" in variables:
            self.kwargs.setdefault("enable_thinking", False)

    def __reduce__(self) -> tuple[Any, ...]:
        """A compiled template cannot be pickled; it is compiled again."""
        again = partial(ChatTemplate, at_once=self._at_once)
        return again, (self.text, self.special_tokens, self._given, self.date)

    @property
    def source(self) -> str:
        """All that it can write of its own."""
        return f"{self.text}{self.special_tokens}{self.kwargs}"

    def with_defaults(self, kwargs: Mapping[str, Any]) -> ChatTemplate:
        """The template as `kwargs` set it up, as far as it reads them and was not given others."""
        known = {name: value for name, value in kwargs.items() if name in self._variables}
        given = {**known, **self._given}
        return ChatTemplate(self.text, self.special_tokens, given, self.date, at_once=False)

    def render(
        self, messages: Messages, *, add_generation_prompt: bool, on: date | None = None
    ) -> str:
        """The conversation as text.

        Args:
            messages: in Hugging Face's form.
            add_generation_prompt: end with the beginning of an answer.
            on: another date than `date`.

        Raises:
            ValueError: the template refuses the messages.
        """
        today = datetime.combine(on or self.date, time())
        values = {**self.special_tokens, **self.kwargs, "strftime_now": today.strftime}
        try:
            written = self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **values,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses the prompt: {reason(error)}") from error
        return _plain(written)

    def depends_on_date(self, messages: Messages) -> bool:
        """Whether the conversation reads otherwise on another day."""
        written = {
            self.render(messages, add_generation_prompt=True, on=day)
            for day in (self.date, *_OTHER_DATES)
        }
        return len(written) > 1

    def treatment(
        self,
        messages: Callable[[str], Messages],
        text: str,
        *,
        add_generation_prompt: bool = True,
    ) -> Treatment:
        """What the template does with a text in the messages.

        "verbatim": it writes it down, whatever it says. "trims": it takes the white space off its
        ends before. "rewrites": anything else, including a look at what it says.

        Args:
            messages: puts a text into a conversation.
            text: one that shows what is done to it, without white space at its ends.
            add_generation_prompt: as of `render`.
        """

        def write(text: str) -> str:
            return self.render(messages(text), add_generation_prompt=add_generation_prompt)

        log = _Log()
        written = write(_Watched(text, log))
        if log.others or log.unwritten or written.count(text) != 1:
            return "rewrites"
        before, _, after = written.partition(text)
        # Not all is seen by watching, such as a count of words, or a trim of what was put together
        others = ["a", text * 20] if log.trimmed else ["a", text * 20, f"\n {text} \n"]
        for other in others:
            written = write(other)
            if written != f"{before}{other}{after}":
                return "rewrites"
        return "trims" if log.trimmed else "verbatim"


def _checked(kwargs: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """A copy of `kwargs`, as plain data.

    Raises:
        ValueError: a value is not plain data, or a name is not known.
    """
    for name in kwargs:
        if name not in known:
            raise UnsuitableSettingError(
                f"chat_template_kwargs: the chat template reads no {quoted(name)}; it reads "
                f"{shown(', '.join(sorted(known))) or 'nothing that can be set'}"
            )
    try:
        return json.loads(json.dumps(dict(kwargs)))
    except (TypeError, ValueError) as error:
        raise UnsuitableSettingError(
            f"chat_template_kwargs must be plain data: {reason(error)}"
        ) from None


def template_text(processor: ProcessorMixin) -> str | None:
    """The chat template of a processor or of its tokenizer; None where there is none.

    Raises:
        UnsupportedModelError: there are several, and none is the default.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    if isinstance(template, Mapping):
        if "default" not in template:
            raise UnsupportedModelError(
                "none of the checkpoint's chat templates is called 'default': "
                f"{shown(', '.join(template))}"
            )
        template = template["default"]
    return template or None


def resolve_date(value: date | str | None) -> date:
    """The date that `value` means; None is `DEFAULT_DATE`.

    Raises:
        ValueError: a text that is no date.
    """
    if value is None:
        return DEFAULT_DATE
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"date={quoted(value)}: expected one such as '2026-11-28'") from None


def _refuse_chance(*_: object, **__: object) -> NoReturn:
    raise UnsupportedModelError(
        "the chat template writes something else each time: it draws at random"
    )


# --- watching what a template does with a text --------------------------------------------------


class _Log:
    """What happened to a watched text.

    Attributes:
        trimmed: white space was taken off its ends.
        others: what else was done to it.
        unwritten: copies of it that were made and have not reached the output.
    """

    def __init__(self) -> None:
        self.trimmed = False
        self.others: set[str] = set()
        self.unwritten: dict[int, _Watched] = {}


class _Watched(str):
    """A text that logs what is done to it, and passes its watch on to what is made of it.

    Jinja asks `str()` for a copy of what it writes and joins the copies with the environment's
    `concat`, so a copy that is joined elsewhere shows. Every method of `str` that is not here is
    logged: see below.
    """

    log: _Log

    def __new__(cls, text: str, log: _Log) -> _Watched:
        self = super().__new__(cls, text)
        self.log = log
        return self

    def __bool__(self) -> bool:
        return True  # no prompt is empty, so that is no look at what it says

    def __str__(self) -> str:
        copy = _Watched(_plain(self), self.log)
        self.log.unwritten[id(copy)] = copy
        return copy

    def __add__(self, other: str) -> str:
        return _concat((self, other))

    def __radd__(self, other: str) -> str:
        return _concat((other, self))

    def strip(self, characters: str | None = None) -> _Watched:
        return self._stripped("strip", characters)

    def lstrip(self, characters: str | None = None) -> _Watched:
        return self._stripped("lstrip", characters)

    def rstrip(self, characters: str | None = None) -> _Watched:
        return self._stripped("rstrip", characters)

    def _stripped(self, method: str, characters: str | None) -> _Watched:
        self.log.trimmed = True
        if characters is not None and not characters.isspace():
            self.log.others.add(method)
        return _Watched(getattr(_plain(self), method)(characters), self.log)


def _log_method(name: str) -> Callable[..., Any]:
    def logged(self: _Watched, *args: Any, **kwargs: Any) -> Any:
        self.log.others.add(name)
        return getattr(_plain(self), name)(*args, **kwargs)

    return logged


# Beside what Python needs of any object; comparing, hashing and formatting are a look at the text
_LOOKS = {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__format__"}
for _name in (set(dir(str)) - set(dir(object)) | _LOOKS) - set(vars(_Watched)):
    setattr(_Watched, _name, _log_method(_name))


def _plain(text: str) -> str:
    """A copy of a text that nobody watches."""
    return "".join((text, ""))


def _concat(parts: Iterable[str]) -> str:
    """Joins what a template writes, as Jinja does."""
    kept = list(parts)
    whole = "".join(kept)
    watched = [part for part in kept if isinstance(part, _Watched)]
    for part in watched:
        part.log.unwritten.pop(id(part), None)
    return _Watched(whole, watched[0].log) if watched else whole
