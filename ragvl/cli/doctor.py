"""`ragvl doctor`."""

from __future__ import annotations

from ragvl.cli import options
from ragvl.cli.common import command_work
from ragvl.output import print_json


def doctor(as_json: options.AsJson = False) -> None:
    """Versions, devices, and which backend each operation would use and why."""
    with command_work("doctor"):
        from ragvl.doctor import examine, print_findings

        findings = examine()
    if as_json:
        print_json(findings)
    else:
        print_findings(findings)
