"""Limits are said once: what they may be, and as options of the command."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from typer.main import get_command

from ragvl.cli import app
from ragvl.server.run import make_prefix_cache
from ragvl.server.settings import ServerSettings

FIELDS = ServerSettings.model_fields


def test_prefixes_are_compressed_as_the_settings_say() -> None:
    assert make_prefix_cache(ServerSettings()).compression is None
    assert make_prefix_cache(ServerSettings(compression="int4")).compression == "int4"


def test_sizes_are_numbers_or_texts() -> None:
    settings = ServerSettings(max_body_bytes="2MiB", url_bytes=1000)
    assert (settings.max_body_bytes, settings.url_bytes) == (2 << 20, 1000)
    assert all(isinstance(getattr(settings, name), int) for name in FIELDS if "bytes" in name)


@pytest.mark.parametrize(
    "given",
    [
        {"max_body_bytes": "0"},
        {"max_body_bytes": "much"},
        {"max_pairs": 0},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"grace": float("inf")},
        {"timeout": 20.0, "max_timeout": 10.0},
        {"port": -1},
        {"log_format": "xml"},
        {"compression": "int2"},
        {"allow_urls": ["http://example.org/"]},
        {"no_such_limit": 1},
    ],
)
def test_what_is_no_limit_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServerSettings(**given)


def test_hosts_may_have_commas_between_them() -> None:
    assert ServerSettings(allow_urls=["a.org,b.org:81", "c.org"]).allow_urls == (
        "a.org",
        "b.org:81",
        "c.org",
    )


def test_each_is_an_option_of_the_command_with_its_default_and_words() -> None:
    declared_later = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    command = declared_later.make_context("serve", [], resilient_parsing=True).command
    options = {parameter.name: parameter for parameter in command.params}
    for name, field in FIELDS.items():
        option: Any = options[name]
        assert option.help == field.description and option.envvar == f"RAGVL_SERVE_{name.upper()}"
        assert option.rich_help_panel == ServerSettings.group(name) != ""
        if option.default is not None:
            assert str(option.default) == str(field.default)
    assert all(field.description for field in FIELDS.values())
