"""What the documents have curl ask a server is answered."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from server.live import LiveServer, MakeServices, live
from shell_lines import shell_lines

from ragvl.server.stages import Stages

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = "http://127.0.0.1:8000"


def asked(path: Path) -> Iterator[list[str]]:
    """The words of each call of curl in a document."""
    for block in re.findall(r"^```bash\n(.*?)^```$", path.read_text(), re.M | re.S):
        yield from (words for words in shell_lines(block) if words[:1] == ["curl"])


@pytest.fixture(scope="module")
def server(demo: Stages, make_services: MakeServices) -> Iterator[LiveServer]:
    """A server that has all there is."""
    services = make_services(
        reranker=demo.reranker, retriever=demo.retriever, generator=demo.generator
    )
    with live(services) as running:
        yield running


COMMANDS = [
    pytest.param(words, id=f"{path.name}-{number}")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
    for number, words in enumerate(asked(path))
]


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_of_the_documents(words: list[str], server: LiveServer) -> None:
    here = [word.replace(DEFAULT, server.url) for word in words]
    assert here != words, "what is not asked of a server with the default address is not tested"
    done = subprocess.run(
        [*here, "--silent", "--show-error", "--fail-with-body", "--max-time", "20"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer
    # The first thing that a reader asks has an answer that makes sense
    assert all(one["kept"] for one in answer.get("results", [])[:1])
