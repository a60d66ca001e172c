"""The documents' table of a server's limits, from its settings."""

from __future__ import annotations

from tables import Results, table

from ragvl.server.settings import ServerSettings


def serving_limits(_: Results) -> str:
    """Each setting of `ragvl serve`, its default, and what it is."""
    rows = [
        [f"`--{name.replace('_', '-')}`", _shown(field.default), field.description or ""]
        for name, field in ServerSettings.model_fields.items()
    ]
    return table(["option", "default", "what it is"], rows)


def _shown(default: object) -> str:
    match default:
        case None | ():
            return "none"
        case bool():
            return "yes" if default else "no"
        case int() if default >= 10_000:
            return f"{default:,}"
        case float():
            return f"{default:g}"
    return str(default)
