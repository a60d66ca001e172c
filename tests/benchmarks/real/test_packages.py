"""Packages are fetched by pip, checked, and asked for by name where they are not to be had."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from real.layout import Layout
from real.packages import PACKAGES, MissingPackagesError, Package, fetch, path_of
from tiny_packages import write_deb, write_npm, write_wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip finds packages in."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _package(path: Path, **changes: str) -> Package:
    described = {
        "name": "leaves",
        "version": "1.0",
        "registry": "pypi",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "MIT",
        "holds": "leaves",
    }
    return Package(megabytes=0.1, **{**described, **changes})


@pytest.mark.slow
def test_package_is_fetched_once_and_its_licence_kept(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index, "leaves", {"leaves/a.txt": b"a"})
    package, layout = _package(wheel), Layout(tmp_path / "real")
    fetch(layout, [package])
    assert (layout.packages / wheel.name).read_bytes() == wheel.read_bytes()
    assert (layout.licences / "leaves" / "LICENSE").read_text() == "do as you like"
    assert [path.name for path in layout.packages.iterdir()] == [wheel.name]

    wheel.unlink()
    fetch(layout, [package])  # it is there


@pytest.mark.slow
def test_missing_packages_are_named_together(index: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "real")
    layout.packages.mkdir(parents=True)
    there = _package(write_wheel(layout.packages, "leaves", {}))
    wheel = write_wheel(index, "leaves", {})
    gone = _package(wheel, version="2.0", file="gone.whl")
    other = _package(wheel, file="other.whl", sha256="0" * 64)
    with pytest.raises(MissingPackagesError) as caught:
        fetch(layout, [gone, other, there])
    message = str(caught.value)
    assert "pip download --quiet --no-deps leaves==2.0" in message
    assert f"put gone.whl into {layout.packages}" in message
    assert "has another sha256 than 0000" in message
    assert (layout.licences / "leaves").exists()
    assert [path.name for path in layout.packages.iterdir()] == [there.file]


@pytest.mark.parametrize("name", ["leaves", "@forest/leaves"])
def test_package_of_npm_is_asked_for_by_its_address(name: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "real")
    layout.packages.mkdir(parents=True)
    package = _package(
        write_npm(layout.packages / "leaves.tgz", {"package/LICENSE": b"as you like"}),
        registry="npm",
        name=name,
    )
    package = replace(package, licence_files=("package/LICENSE",))
    address = f"https://registry.npmjs.org/{name}/-/leaves-1.0.tgz"
    assert package.command[-3:] == ["--output", "leaves.tgz", address]
    fetch(layout, [package])
    assert (layout.licences / name / "LICENSE").read_text() == "as you like"


def test_another_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "real")
    layout.packages.mkdir(parents=True)
    wheel = write_wheel(layout.packages, "leaves", {})
    package = _package(wheel)
    wheel.write_bytes(b"put here by hand")
    with pytest.raises(MissingPackagesError, match="is another file"):
        fetch(layout, [package])
    assert wheel.read_bytes() == b"put here by hand"


def test_file_put_there_by_hand_needs_no_client(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "real")
    layout.packages.mkdir(parents=True)
    deb = write_deb(layout.packages / "a_1_all.deb", {"usr/share/doc/a/copyright": b"GPL-2"})
    fetch(layout, [_package(deb, registry="debian", name="a")])
    assert (layout.licences / "a" / "copyright").read_text() == "GPL-2"


def test_path_of_what_was_not_fetched_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingPackagesError, match=r"apt-get download gcompris-qt-data=3\.1-2"):
        path_of("gcompris-qt-data", Layout(tmp_path))
    file = next(package.file for package in PACKAGES if package.name == "gcompris-qt-data")
    (tmp_path / "packages").mkdir()
    write_deb(tmp_path / "packages" / file, {"usr/share/a": b"put here by hand"})
    with pytest.raises(MissingPackagesError, match="is another file"):
        path_of("gcompris-qt-data", Layout(tmp_path))
    with pytest.raises(KeyError):
        path_of("unknown", Layout(tmp_path))


def test_pinned_packages_are_told_apart() -> None:
    assert len({package.name for package in PACKAGES}) == len(PACKAGES)
    assert len({package.file for package in PACKAGES}) == len(PACKAGES)
    assert all(len(bytes.fromhex(package.sha256)) == 32 for package in PACKAGES)
