from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import ragvl
from ragvl import _C
from ragvl.ops.backends import CPU_IN_PYTORCH, OPERATIONS

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_extension_imports_without_torch():
    code = "import sys, ragvl._C as c; print(c.cpu_isa(), 'torch' in sys.modules)"
    assert run(sys.executable, "-c", code).split() == [_C.cpu_isa(), "False"]


@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf")
def test_the_extension_links_against_neither_torch_nor_cuda():
    lines = run("readelf", "--dynamic", _C.__file__).splitlines()
    needed = [line.rsplit("[")[-1].rstrip("]") for line in lines if "(NEEDED)" in line]
    assert any(name.startswith("libc.so") for name in needed)
    assert [name for name in needed if name.startswith(("libtorch", "libc10", "libcud"))] == []


def test_the_instruction_sets_of_this_cpu():
    isas = _C.cpu_isas()
    known = ["baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"]
    assert isas == known[: len(isas)]
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    assert ("avx512" in isas) == ({"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= set(flags))
    for previous, isa in pairwise(known[2:]):
        own = {"amx_tile", "amx_int8", "amx_bf16"} if isa == "amx" else {isa}
        assert (isa in isas) == (previous in isas and own <= set(flags))


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_cuda_is_compiled_where_nvcc_is():
    assert _C.cuda_architectures
    for operation, backends in OPERATIONS.items():
        if "cuda" in backends:
            assert hasattr(_C, f"{operation}_cuda")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_has_one_name_everywhere(operation):
    stems = {
        "reference": [f"ragvl/ops/{operation}.py"],
        "cpu": [f"csrc/{operation}.h", f"csrc/{operation}.cpp"],
        "triton": [f"kernels/{operation}.py"],
        "cuda": [f"csrc/{operation}.h", f"csrc/{operation}.cu"],
    }
    if operation in CPU_IN_PYTORCH:
        stems["cpu"] = []
    expected = [path for backend in OPERATIONS[operation] for path in stems[backend]]
    expected += [f"tests/ops/test_{operation}.py", f"benchmarks/bench_{operation}.py"]
    assert [path for path in expected if not (ROOT / path).exists()] == []


def imports(module: Path) -> set[str]:
    """What of ragvl's top level a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and not node.level:
            whole = node.module == "ragvl"
            names = [f"ragvl.{n.name}" for n in node.names] if whole else [str(node.module)]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ragvl.")}
    return found


@pytest.mark.slow
def test_imports_run_one_way():
    """As docs/architecture.md says; what it does not name is at the bottom."""
    text = " ".join((ROOT / "docs" / "architecture.md").read_text().split())
    (chain,) = re.findall(r"`(cli -> demo[^`]*)`", text)
    layers = [layer.split(", ") for layer in chain.split(" -> ")]
    height = {name: place for place, layer in enumerate(reversed(layers), 1) for name in layer}
    known = {path.stem for path in (ROOT / "ragvl").iterdir()} | {"kernels", "_C"}
    assert height.keys() <= known
    wrong = []
    for path in (ROOT / "ragvl").rglob("*.py"):
        own = path.relative_to(ROOT / "ragvl").parts[0].removesuffix(".py")
        for other in imports(path) - {own} if own != "__init__" else ():
            # At the bottom, in no order
            if height.get(other, 0) >= max(1, height.get(own, 0)):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert wrong == []


def test_importing_ragvl_loads_nothing_heavy():
    code = "import sys, ragvl; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run(sys.executable, "-c", code).split()}
    assert loaded.isdisjoint({"torch", "transformers", "faiss", "numpy", "PIL", "pydantic"})


def test_kernels_do_not_shadow_the_package_of_that_name():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    where = "import importlib.util as u; print(u.find_spec('ragvl.kernels.relevance_head').origin)"
    assert Path(run(sys.executable, "-c", where).strip()).name == "relevance_head.py"


def test_a_container_gets_all_that_the_package_is_built_from():
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["scikit-build"]["wheel"]["packages"].values()
    named = {*packages, *project["project"]["license-files"], project["project"]["readme"]}
    built = named | {"csrc", "CMakeLists.txt", "pyproject.toml", "constraints.txt"}
    assert built == set(kept)
    assert [name for name in kept if not (ROOT / name).exists()] == []


def test_a_container_is_built_with_extras_that_there_are():
    extras = re.search(r"^ARG EXTRAS=(\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "serve" in extras[1].split(",")
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def yaml_of(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_public_ci_runs_what_ci_runs():
    jobs = yaml_of(".github/workflows/ci.yml")["jobs"].values()
    steps = [step.get("run", "") for job in jobs for step in job["steps"]]
    ours = re.findall(r"^make \S+$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert ours
    assert set(ours) <= set(steps)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {step.removeprefix("make ") for step in steps if step} <= set(targets)


def test_wheels_and_tests_are_for_the_same_pythons():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheels = re.findall(r"cp3(\d+)-", project["tool"]["cibuildwheel"]["build"])
    matrix = yaml_of(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert [f"3.{minor}" for minor in wheels] == matrix["python"]
    assert project["project"]["requires-python"] == f">={matrix['python'][0]}"


def test_what_is_pinned_takes_the_first_python_that_is_promised():
    """Debian's Python is 3.11.2; pip says no more than that the pins are in conflict."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first = f"{project['requires-python'].removeprefix('>=')}.0"
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    installed = {one.name: one for one in importlib.metadata.distributions()}
    needs = {
        name: installed[name].metadata["Requires-Python"] for name in pinned if name in installed
    }
    assert len(needs) > 100
    refusing = {
        name: need for name, need in needs.items() if need and first not in SpecifierSet(need)
    }
    assert not refusing


def test_one_version_everywhere():
    version = importlib.metadata.version("ragvl")
    assert ragvl.__version__ == version
    assert yaml_of("CITATION.cff")["version"] == version
