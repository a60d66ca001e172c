from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ragvl.ops import BackendUnavailableError
from ragvl.ops.backends import OPERATIONS, choose

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_backend_from_outside(monkeypatch):
    monkeypatch.delenv("RAGVL_BACKEND", raising=False)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_auto_takes_the_compiled_kernel_on_a_cpu(operation):
    assert choose(operation, "auto", CPU) == ("cpu", "the fastest here")


def test_auto_says_what_it_passed_over():
    name, why = choose("relevance_head", "auto", CPU, torch.float64)
    assert name == "reference"
    assert why.startswith("no cpu: it takes float32")


def test_auto_on_a_device_without_kernels():
    assert choose("relevance_head", "auto", torch.device("meta"))[0] == "reference"


@pytest.mark.gpu
def test_auto_takes_the_cuda_kernel_on_a_gpu():
    assert choose("relevance_head", "auto", torch.device("cuda"))[0] == "cuda"


def test_a_name_is_obeyed():
    assert choose("relevance_head", "reference", CPU)[0] == "reference"


def test_the_environment_replaces_auto_only(monkeypatch):
    monkeypatch.setenv("RAGVL_BACKEND", "reference")
    assert choose("relevance_head", "auto", CPU) == ("reference", "asked for by RAGVL_BACKEND")
    assert choose("relevance_head", "cpu", CPU) == ("cpu", "asked for by backend")


def test_an_empty_environment_variable_is_none(monkeypatch):
    monkeypatch.setenv("RAGVL_BACKEND", "")
    assert choose("relevance_head", "auto", CPU)[0] == "cpu"


def test_the_environment_is_refused_like_an_argument(monkeypatch):
    monkeypatch.setenv("RAGVL_BACKEND", "cuda")
    with pytest.raises(BackendUnavailableError, match="RAGVL_BACKEND='cuda' cannot run on cpu"):
        choose("relevance_head", "auto", CPU)
    monkeypatch.setenv("RAGVL_BACKEND", "fast")
    with pytest.raises(ValueError, match="RAGVL_BACKEND='fast': expected one of auto, reference"):
        choose("relevance_head", "auto", CPU)


def test_triton_runs_on_a_cpu_only_interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendUnavailableError, match=r"takes CUDA tensors .*TRITON_INTERPRET=1"):
        choose("relevance_head", "triton", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("relevance_head", "triton", CPU)[0] == "triton"


def test_a_backend_that_an_operation_lacks(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "relevance_head", ("reference",))
    with pytest.raises(BackendUnavailableError, match="relevance_head has only reference"):
        choose("relevance_head", "cpu", CPU)


# In a process of its own, whose imports of two optional modules fail as if they were not installed.
_WITHOUT_OPTIONAL_MODULES = """
import sys
sys.modules["ragvl._C"] = sys.modules["triton"] = None
import torch
from ragvl.ops import BackendUnavailableError, relevance_head
arguments = torch.ones(1, 4), torch.zeros(1, dtype=torch.int64), None, torch.eye(2, 4)
assert relevance_head(*arguments)[1].item() == 0.5
for backend, advice in (("cpu", "pip install ."), ("triton", "ragvl[triton]")):
    try:
        relevance_head(*arguments, backend=backend)
    except BackendUnavailableError as error:
        assert advice in str(error), error
    else:
        raise AssertionError(f"{backend} ran")
from ragvl.doctor import examine, print_findings
print_findings(examine())
"""


@pytest.mark.slow
def test_without_the_extension_and_without_triton(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("COLUMNS", "200")
    run = subprocess.run(
        [sys.executable, "-c", _WITHOUT_OPTIONAL_MODULES], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "no cpu: ragvl._C did not import" in run.stdout
