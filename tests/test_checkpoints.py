from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import save_checkpoint
from tiny_models import into_cache

from ragvl import Generator, Reranker
from ragvl.checkpoints import find_checkpoint, model_folder, similar_folders
from ragvl.mllm import MLLM
from ragvl.model_files import UnsupportedModelError
from ragvl.retriever import DualEncoder

LOADERS = {
    "reranker": Reranker.from_pretrained,
    "generator": Generator.from_pretrained,
    "encoder": DualEncoder.from_pretrained,
}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch) -> Path:
    """The working folder, and a cache of the hub, that no test shares."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def folder(tiny_model, scratch) -> Path:
    return shutil.copytree(tiny_model("llava"), scratch / "runs" / "reranker")


# --- which folder a path means ------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize(
    "path", ["runs/reranked", "Runs/reranker", "rnus/reranker", "./runs/reranked", "runs/rerank er"]
)
@pytest.mark.usefixtures("folder")
def test_a_slip_in_a_path_is_named_with_what_was_meant(path, loader):
    with pytest.raises(
        FileNotFoundError, match=r"no model folder .*did you mean (\./)?runs/reranker\?"
    ):
        loader(path)


@pytest.mark.parametrize(
    "path",
    ["", "a\0b", "x" * 5000, "owner/name/more", "a b", "~/no-such", "~nobody-here/m", "~\0/m"],
)
def test_what_can_be_no_hub_id_is_a_path(path):
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        find_checkpoint(path)


@pytest.mark.usefixtures("folder")
def test_a_file_is_no_folder():
    with pytest.raises(FileNotFoundError, match="is a file: a model is a folder"):
        find_checkpoint("runs/reranker/config.json")


def test_hub_ids_are_told_from_paths(folder):
    (folder.parent.parent / "Qwen").mkdir()
    assert model_folder("OpenGVLab/InternVL3-2B-hf") is None
    assert model_folder("runs/reranker") == Path("runs/reranker")
    # nearly the folder's path, but somebody who names a revision means the hub
    assert model_folder("rnus/reranker", revision="main") is None
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        model_folder("Qwen/Qwen2-VL-7B")  # its first part is a folder here


@pytest.mark.usefixtures("folder")
def test_similar_folders_hold_models_first(scratch):
    (scratch / "runs" / "rerankee").mkdir()
    similar = similar_folders(Path("runs/reranke"))
    assert similar == [Path("runs/reranker"), Path("runs/rerankee")]
    assert similar_folders(Path("/no/such/thing/at/all")) == []


# --- the hub ------------------------------------------------------------------------------------


def test_a_cached_hub_model_loads_without_network(folder, scratch):
    into_cache(folder, "owner/model", scratch / "hub")
    mllm = MLLM.from_pretrained("owner/model", device="cpu")
    assert mllm.architecture == "llava"
    assert mllm.model.name_or_path == "owner/model"
    # what is known as an id is one, however near a folder's path it is
    into_cache(folder, "rums/reranker", scratch / "hub")
    assert find_checkpoint("rums/reranker").name == "rums/reranker"


def test_without_network_the_error_is_one_line():
    with pytest.raises(FileNotFoundError, match=r"no copy .*HF_HUB_OFFLINE is set") as caught:
        find_checkpoint("owner/model")
    assert "\n" not in str(caught.value)


_TROUBLE = {"gone": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "down": (500, "")}


_COMMIT = "abcdef0123" * 4


class _Hub(BaseHTTPRequestHandler):
    """A hub that has one model, here/model, and one code of trouble for each other owner."""

    folder: Path  # of the model
    sent: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/here/model/tree/"):
            files = sorted(path for path in self.folder.rglob("*") if path.is_file())
            self.answer(json.dumps([self.entry(file) for file in files]))
        elif path.startswith("/api/models/here/model"):
            self.answer(json.dumps({"id": "here/model", "sha": _COMMIT, "siblings": []}))
        elif path.startswith(f"/here/model/resolve/{_COMMIT}/"):
            name = path.removeprefix(f"/here/model/resolve/{_COMMIT}/")
            self.answer((self.folder / name).read_bytes())
            if self.command == "GET":
                self.sent.append(name)
        else:
            status, code = _TROUBLE.get(path.split("/")[3], (404, "RevisionNotFound"))
            self.answer(b"", status=status, **{"X-Error-Code": code})

    def entry(self, file: Path) -> dict[str, object]:
        path = str(file.relative_to(self.folder))
        name = hashlib.sha1(path.encode()).hexdigest()
        return {"type": "file", "path": path, "size": file.stat().st_size, "oid": name}

    def answer(self, body: str | bytes, status: int = 200, **headers: str) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        file = self.path.rpartition(f"{_COMMIT}/")[2]
        name = hashlib.sha1(file.encode()).hexdigest()
        usual = {"Content-Length": str(len(body)), "ETag": f'"{name}"', "X-Repo-Commit": _COMMIT}
        for header, value in {**usual, **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_a_hub_model_is_downloaded_without_what_is_not_read(folder, monkeypatch):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "mine.py").write_text("raise SystemExit")
    monkeypatch.setattr(_Hub, "folder", folder, raising=False)
    monkeypatch.setattr(_Hub, "sent", [])
    mllm = MLLM.from_pretrained("here/model", device="cpu")
    assert mllm.model.name_or_path == "here/model"
    assert _Hub.sent[-1] == "model.safetensors", "after the settings have been checked"
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= set(_Hub.sent)
    assert not {"pytorch_model.bin", "mine.py"} & set(_Hub.sent)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert MLLM.from_pretrained("here/model", device="cpu").fingerprint == mllm.fingerprint


@pytest.mark.usefixtures("hub")
def test_modules_of_a_hub_model_are_downloaded_with_it(folder, monkeypatch):
    modules = [{"path": path} for path in ("", "1_Dense", "../2_Dense", "3/Dense", None)]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Dense", "4_Dense"):
        (folder / name).mkdir()
        for file in ("config.json", "model.safetensors", "pytorch_model.bin"):
            (folder / name / file).write_text("{}")
    monkeypatch.setattr(_Hub, "folder", folder, raising=False)
    monkeypatch.setattr(_Hub, "sent", [])
    found = find_checkpoint("here/model").folder
    assert {file for file in _Hub.sent if "/" in file} == {
        "1_Dense/config.json",
        "1_Dense/model.safetensors",
    }
    assert (found / "1_Dense" / "config.json").read_text() == "{}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_checkpoint("here/model").folder == found


@pytest.mark.usefixtures("hub")
def test_weights_of_a_damaged_hub_model_are_not_downloaded(folder, monkeypatch):
    (folder / "tokenizer.json").write_text("{")
    monkeypatch.setattr(_Hub, "folder", folder, raising=False)
    monkeypatch.setattr(_Hub, "sent", [])
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json holds no JSON"):
        MLLM.from_pretrained("here/model", device="cpu")
    assert "model.safetensors" not in _Hub.sent


@pytest.mark.parametrize(
    ("repo_id", "message"),
    [
        ("gone/model", "neither a folder gone/model nor a model of that name on the hub"),
        ("gated/model", "gated/model is gated: ask for access"),
        ("down/model", r"did not answer \(no word from it"),
        ("old/model", "has no revision 'main'"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_refuses_is_one_line(repo_id, message):
    with pytest.raises(OSError, match=message) as caught:
        find_checkpoint(repo_id, revision="main")
    assert "\n" not in str(caught.value)


# --- where in a repository, and in which cache ---------------------------------------------------


@pytest.mark.parametrize("loader", [Reranker.from_pretrained, DualEncoder.from_pretrained])
@pytest.mark.parametrize("path", ["runs", "owner/model"])
@pytest.mark.usefixtures("folder")
def test_a_model_is_found_in_a_subfolder_of_another_cache(path, loader, scratch, encoder_folder):
    if loader == DualEncoder.from_pretrained:
        shutil.copytree(encoder_folder, scratch / "runs" / "deep" / "model")
        subfolder = "deep/model"
    else:
        subfolder = "reranker"
    into_cache(scratch / "runs", "owner/model", scratch / "mine", "v1")
    whole = loader(scratch / "runs" / subfolder, device="cpu")
    revision = None if path == "runs" else "v1"
    found = loader(
        path, device="cpu", revision=revision, subfolder=subfolder, cache_dir=scratch / "mine"
    )
    assert found.fingerprint == whole.fingerprint


@pytest.fixture
def encoder_folder(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("encoder"), "clip")


def test_a_model_of_another_cache_goes_to_another_process(folder, scratch, monkeypatch):
    into_cache(folder.parent, "owner/model", scratch / "mine")
    mllm = MLLM.from_pretrained("owner/model", device="cpu", subfolder="reranker", cache_dir="mine")
    assert mllm.model.name_or_path == "owner/model/reranker"
    sent = pickle.dumps(mllm)
    monkeypatch.chdir("/")
    assert pickle.loads(sent).fingerprint == mllm.fingerprint


def test_a_revision_and_a_cache_that_are_not_here_are_named(folder, scratch):
    into_cache(folder, "owner/model", scratch / "mine", "v1")
    with pytest.raises(FileNotFoundError, match=r"revision 'v2' .* in .*mine.*HF_HUB_OFFLINE"):
        find_checkpoint("owner/model", revision="v2", cache_dir=scratch / "mine")
    with pytest.raises(FileNotFoundError, match="no copy of a model of that name"):
        find_checkpoint("owner/model", revision="v1")


def test_a_subfolder_that_is_not_there_is_named(folder, scratch):
    into_cache(folder, "owner/model", scratch / "hub")
    with pytest.raises(FileNotFoundError, match=r"no folder 'rerank' in runs.*mean runs/reranker"):
        find_checkpoint("runs", subfolder="rerank")
    with pytest.raises(FileNotFoundError, match=r"no folder 'a' in owner/model; .*OFFLINE is set"):
        find_checkpoint("owner/model", subfolder="a")
    with pytest.raises(FileNotFoundError, match=r"models in it: subfolder='reranker'"):
        find_checkpoint("runs")


@pytest.mark.parametrize("subfolder", ["..", "/tmp", "a/../../b", "a\\b", "a\0b"])
@pytest.mark.parametrize("path", ["runs", "owner/model"])
@pytest.mark.usefixtures("folder")
def test_a_subfolder_does_not_lead_elsewhere(path, subfolder):
    with pytest.raises(ValueError, match="is not the name of a folder in the model's"):
        find_checkpoint(path, subfolder=subfolder)


@pytest.mark.usefixtures("folder")
def test_a_folder_has_no_revisions():
    with pytest.raises(ValueError, match="revision='v1' is of a repository on the hub"):
        find_checkpoint("runs/reranker", revision="v1")


def test_offline_a_shard_that_was_not_downloaded_is_named(sharded, scratch):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    into_cache(sharded, "owner/model", scratch / "hub")
    with pytest.raises(FileNotFoundError, match=r"HF_HUB_OFFLINE.* lacks .*00002\.safetensors"):
        find_checkpoint("owner/model")


@pytest.mark.usefixtures("hub")
def test_of_a_subfolder_nothing_beside_it_is_downloaded(folder, monkeypatch):
    (folder.parent / "config.json").write_text("{")
    (folder / "4_Other").mkdir()
    (folder / "4_Other" / "config.json").write_text("{")
    monkeypatch.setattr(_Hub, "folder", folder.parent, raising=False)
    monkeypatch.setattr(_Hub, "sent", [])
    found = find_checkpoint("here/model", subfolder="reranker", cache_dir="mine")
    assert Path("mine").resolve() in found.folder.resolve().parents
    assert "reranker/tokenizer.json" in _Hub.sent
    assert _Hub.sent[-1] == "reranker/model.safetensors"
    assert {Path(name).parent for name in _Hub.sent} == {Path("reranker")}


# --- damaged files ------------------------------------------------------------------------------


def overwrite(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(**values: object) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return work


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def reshape(path: Path) -> None:
    weights = load_file(path)
    (name,) = [name for name in weights if "lm_head" in name]
    weights[name] = weights[name][:, :-1].contiguous()
    save_file(weights, path, {"format": "pt"})


def forged_header(path: Path) -> None:
    header = json.dumps(
        {"lm_head.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    )
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())


_JSON_DAMAGE = {
    "empty": overwrite(b""),
    "cut": truncate,
    "no JSON": overwrite(b"\x80\x04\x95."),
    "a list": overwrite(b"[1]"),
    "deep": overwrite(b'{"a":' * 100_000),
    "a pipe": pipe,
    "a dangling link": dangling,
}
_DAMAGE = [
    *((name, damage) for name in ("config.json", "tokenizer.json") for damage in _JSON_DAMAGE),
    *((name, "cut") for name in ("processor_config.json", "tokenizer_config.json")),
    ("generation_config.json", "a list"),
]


@pytest.mark.parametrize(("name", "damage"), _DAMAGE)
def test_damaged_settings_are_named(name, damage, folder):
    _JSON_DAMAGE[damage](folder / name)
    with pytest.raises((OSError, UnsupportedModelError)) as caught:
        MLLM.from_pretrained(folder, device="cpu")
    assert str(folder / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", overwrite(b""), r"model\.safetensors is no whole safetensors file"),
        ("model.safetensors", truncate, r"model\.safetensors is no whole safetensors file"),
        ("model.safetensors", forged_header, r"model\.safetensors is no whole safetensors file"),
        ("model.safetensors", pipe, "it is a pipe"),
        ("model.safetensors", dangling, r"model\.safetensors"),
        ("model.safetensors", reshape, r"another shape than config\.json says, as lm_head\.weight"),
        ("config.json", change(model_type="mine"), r"config\.json: its configuration cannot be"),
        ("config.json", change(model_type=None), r"config\.json: its configuration cannot be"),
        ("config.json", change(text_config=7), r"config\.json: its configuration cannot be"),
        ("config.json", change(text_config={"hidden_size": "x"}), r"config\.json: its configurat"),
        ("config.json", change(transformers_weights="../model.safetensors"), r"names the weights"),
        ("config.json", change(transformers_weights="pytorch_model.bin"), "names the weights file"),
        ("config.json", change(transformers_weights=7), "names the weights file"),
        ("tokenizer.json", change(model=None), "its processor cannot be loaded"),
        ("processor_config.json", change(processor_class="x"), "LlavaProcessor"),
        ("processor_config.json", change(image_processor=7), "its processor cannot be loaded"),
    ],
)
def test_damaged_files_are_named_in_one_line(name, damage, message, folder):
    damage(folder / name)
    if message == "LlavaProcessor":  # the configuration says which it is
        processor = MLLM.from_pretrained(folder, device="cpu").prompting.processor
        assert type(processor).__name__ == message
        return
    with pytest.raises((OSError, UnsupportedModelError), match=message) as caught:
        MLLM.from_pretrained(folder, device="cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


# --- sharded weights ----------------------------------------------------------------------------


@pytest.fixture
def sharded(folder) -> Path:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_load(sharded):
    assert MLLM.from_pretrained(sharded, device="cpu").architecture == "llava"


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"00002\.safetensors is missing"):
        MLLM.from_pretrained(sharded, device="cpu")


def test_a_shard_without_its_weights_is_named(sharded):
    save_file({"x": torch.ones(1)}, sharded / "model-00002-of-00002.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"00002\.safetensors lacks \d+ weights that"):
        MLLM.from_pretrained(sharded, device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors",
        "/tmp/other.safetensors",
        "a/b.safetensors",
        "w.bin",
        "..",
        "",
        7,
        None,
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(name, sharded):
    torch.save({"lm_head.weight": torch.ones(1)}, sharded / "w.bin")
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match=r"index\.json names the weights file"):
        MLLM.from_pretrained(sharded, device="cpu")


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map_is_refused(weight_map, sharded):
    change(weight_map=weight_map)(sharded / "model.safetensors.index.json")
    with pytest.raises(UnsupportedModelError, match=r"index\.json has no weight_map"):
        MLLM.from_pretrained(sharded, device="cpu")
