"""Shows the client's methods in the API reference: they are made of the functions in calls.py."""

from __future__ import annotations

from typing import Any

import griffe


class ClientMethods(griffe.Extension):
    """Puts a function in the place of `name = _blocking(calls.name)` in a class."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Once all of ragvl has been read."""
        for client in (pkg["client.client.Client"], pkg["client.client.AsyncClient"]):
            for name, member in list(client.members.items()):
                if str(getattr(member, "value", "")).startswith(("_blocking(", "_awaited(")):
                    client.set_member(name, _method(pkg[f"client.calls.{name}"], member))


def _method(call: griffe.Function, made: griffe.Attribute) -> griffe.Function:
    """The method that a client has of a call: it returns what the call is answered with."""
    method = griffe.Function(
        call.name,
        parameters=griffe.Parameters(griffe.Parameter("self"), *call.parameters),
        returns=call.returns.slice,  # of Call[...]
        docstring=call.docstring,
        lineno=made.lineno,
        endlineno=made.endlineno,
    )
    if str(made.value).startswith("_awaited("):
        method.labels.add("async")
    return method
