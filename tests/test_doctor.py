from __future__ import annotations

import importlib.metadata

import pytest
import torch

from ragvl import _C
from ragvl.doctor import examine, machine, print_findings, versions
from ragvl.ops.backends import OPERATIONS


@pytest.fixture(autouse=True)
def _wide_and_as_installed(monkeypatch):
    monkeypatch.delenv("RAGVL_BACKEND", raising=False)
    monkeypatch.delenv("RAGVL_CPU_ISA", raising=False)


def test_versions_name_what_is_and_what_is_not_installed():
    installed = versions()
    assert installed["torch"] == importlib.metadata.version("torch")
    assert installed["faiss"].endswith(("(faiss-cpu)", "(faiss-gpu)"))
    try:
        assert installed["flash-attn"] == importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        assert installed["flash-attn"] == "not installed"


def test_machine_names_the_instruction_set_and_the_cuda_build(monkeypatch):
    assert machine()["cpu kernels"] == _C.cpu_isas()[-1]
    assert (machine()["cuda kernels"] == "not compiled") == (not _C.cuda_architectures)
    monkeypatch.setenv("RAGVL_CPU_ISA", "baseline")
    assert machine()["cpu kernels"] == "baseline"


def test_doctor_shows_every_operation_on_every_device(capsys):
    print_findings(examine())
    rows = capsys.readouterr().out.splitlines()
    for operation in OPERATIONS:
        shown = [row for row in rows if row.startswith(f"{operation}\t")]
        assert len(shown) == 1 + torch.cuda.device_count()
        assert "the fastest here" in shown[0]


def test_doctor_explains_settings_that_cannot_be_met(capsys, monkeypatch):
    monkeypatch.setenv("RAGVL_BACKEND", "cuda")
    monkeypatch.setenv("RAGVL_CPU_ISA", "[mmx]")
    print_findings(examine())
    out = capsys.readouterr().out
    assert "RAGVL_BACKEND='cuda' cannot run on cpu: it takes CUDA tensors" in out
    assert "RAGVL_CPU_ISA=[mmx] is not available on this CPU" in out


@pytest.mark.parametrize(
    ("load", "threads", "advised"), [(9, 2, True), (9, 1, False), (1, 2, False)]
)
def test_doctor_advises_one_thread_on_busy_cores(load, threads, advised, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = examine()["machine"]["load"]
    finally:
        torch.set_num_threads(before)
    assert found.startswith(f"{load:.1f} on 2 cores")
    assert ("OMP_NUM_THREADS=1" in found) == advised
