"""All GPU benchmarks in one call: order, limits, failures, what a second call does."""

from __future__ import annotations

import contextlib
import json
import sys
import tarfile
import time
from pathlib import Path

import gpu_all
import pytest
import typer
from gpu_all import Part, run_in_order
from typer.testing import CliRunner


def part(name: str, program: str, seconds: float = 60, least: float = 0) -> Part:
    return Part(name, (sys.executable, "-c", program), seconds, least)


def writing(folder: Path, name: str) -> Part:
    path = folder / f"{name}.json"
    return part(name, f"open({str(path)!r}, 'w').write('{{}}')")


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_all, "BUILD", tmp_path / "build")


@pytest.mark.slow
def test_whatever_happens_to_one_part_the_next_is_run(tmp_path: Path) -> None:
    bundle = tmp_path / "out.tar"
    outcomes = run_in_order(
        [
            part("raises", "print('about to'); raise SystemExit('no such kernel')"),
            part("crashes", "import os; os.abort()"),
            part("hangs", "import time; print('begun', flush=True); time.sleep(600)", seconds=3),
            writing(tmp_path, "works"),
        ],
        tmp_path,
        seconds=600,
        bundle=bundle,
    )
    assert [(o.name, o.result) for o in outcomes] == [
        ("raises", "failed"),
        ("crashes", "failed"),
        ("hangs", "ended at its limit"),
        ("works", "done"),
    ]
    assert outcomes[0].log == "about to\nno such kernel"
    assert outcomes[2].log in ("begun", "")  # a busy machine may not begin it within its limit
    summary = json.loads((tmp_path / "gpu_all.json").read_text())
    assert [entry["result"] for entry in summary["parts"]] == [o.result for o in outcomes]
    with tarfile.open(bundle) as tar:
        assert {"gpu_all.json", "works.json", "raises.log", "hangs.log"} <= set(tar.getnames())


def test_what_a_part_leaves_running_is_ended(tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    program = (
        "import subprocess, sys, pathlib\n"
        f"process = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(process.pid))"
    )
    (outcome,) = run_in_order([part("leaves", program)], tmp_path, seconds=600)
    assert outcome.result == "done"
    child_runs = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    for _ in range(600):  # it has been killed, and goes when the system gets round to it
        with contextlib.suppress(OSError):
            if "State:\tZ" not in child_runs.read_text():
                time.sleep(0.1)
                continue
        return
    pytest.fail("the part's child still runs")


def test_a_second_call_takes_up_what_is_missing(tmp_path: Path) -> None:
    chosen = [writing(tmp_path, "a"), part("b", "raise SystemExit(1)"), writing(tmp_path, "c")]
    first = run_in_order(chosen, tmp_path, seconds=600)
    assert [outcome.result for outcome in first] == ["done", "failed", "done"]
    chosen[1] = writing(tmp_path, "b")
    second = run_in_order(chosen, tmp_path, seconds=600, again=["c"])
    assert [outcome.result for outcome in second] == ["measured before", "done", "done"]


def test_nothing_is_begun_without_time_for_it(tmp_path: Path) -> None:
    chosen = [part("long", "", least=700), writing(tmp_path, "short")]
    outcomes = run_in_order(chosen, tmp_path, seconds=600)
    assert [outcome.result for outcome in outcomes] == ["no time left", "done"]


def test_a_part_plans_with_less_than_its_limit(tmp_path: Path) -> None:
    program = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    command = (sys.executable, "-c", program, str(tmp_path / "planned"), "{seconds}")
    run_in_order([Part("plans", command, 100, least=0)], tmp_path, seconds=600)
    assert float((tmp_path / "planned").read_text()) == 85


def test_the_order_is_that_of_importance() -> None:
    names = [chosen.name for chosen in gpu_all.parts(on_gpu=True)]
    assert names[:5] == [
        "build",
        "gpu_tests_ops",
        "gpu_tests_sizes_internvl2-1b",
        "gpu_rerank_internvl2-1b_256",
        "gpu_ops",
    ]
    assert len(set(names)) == len(names)


def test_an_unknown_part_is_refused() -> None:
    outcome = CliRunner().invoke(_app(), ["--device", "cpu", "--again", "nothing"])
    assert outcome.exit_code == 2
    assert "unknown: nothing" in outcome.output


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(gpu_all.main)
    return app
