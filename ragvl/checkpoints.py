"""Finds the model that a path or a hub id means, and checks its files before any is loaded."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ragvl.files import expand_user
from ragvl.messages import quoted, reason, shown
from ragvl.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    WEIGHTS,
    WEIGHTS_INDEX,
    UnsupportedModelError,
    check_settings,
    check_weights,
    module_folders,
    read_json,
    weight_files,
)

# Small files of a hub repository; weights are downloaded once these have been checked
_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
# Of each of sentence-transformers' modules, which are small
_OF_MODULES = ("config.json", WEIGHTS)
_LIKELY_SLIP = 0.85  # of difflib's ratio, from which a name that may be a hub id is a mistyped path


@dataclass(frozen=True)
class Checkpoint:
    """A model whose files are on this machine and have been checked.

    Attributes:
        name: the hub id, or the folder's absolute path.
        folder: the model's configuration and weights.
        adapters: the folder of adapters that belong on it, or None.
    """

    name: str
    folder: Path
    adapters: Path | None = None

    @property
    def processor_folder(self) -> Path:
        """Where tokenizer and processor are: with the adapters, if they brought them."""
        own = self.adapters is not None and (self.adapters / "tokenizer_config.json").is_file()
        return self.adapters if own and self.adapters is not None else self.folder


def find_checkpoint(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """The model that `path` means, downloaded if it is on the hub; nothing is loaded.

    A path is what is a folder, begins with ".", "/" or "~", has more than one "/", or whose first
    part is a folder; all else is a hub id, "name" or "owner/name". A folder of adapters brings the
    model that they were trained on with it.

    Args:
        path: a folder in Hugging Face's format, or a hub id.
        revision: branch, tag or commit of a hub repository.
        trust_remote_code: download the Python files of a hub repository too.

    Raises:
        FileNotFoundError: there is no such folder, hub repository or revision, or a file is missing
            in it; the message names folders of similar names.
        OSError: the hub cannot be reached or does not let this user in, or a file cannot be read.
        UnsupportedModelError: a file is damaged, or holds what is never read.
    """
    name, folder = _locate(path, revision, trust_remote_code)
    if not (folder / ADAPTER_CONFIG).is_file():
        return _whole_model(name, folder)
    if any((folder / weights).is_file() for weights in (WEIGHTS, WEIGHTS_INDEX)):
        raise UnsupportedModelError(
            f"{shown(folder)} holds both a whole model and adapters ({ADAPTER_CONFIG}), and it is "
            "not clear which is meant: move one of them out"
        )
    return _with_adapters(name, folder, trust_remote_code)


def model_folder(path: str | Path, *, revision: str | None = None) -> Path | None:
    """The folder that `path` means, or None if it is a hub id; see `find_checkpoint`.

    Raises:
        FileNotFoundError: it means a folder that is not there; the message names similar ones.
    """
    folder = Path(expand_user(path))
    if str(path) and _is_folder(folder):
        return folder
    if _is_file(folder):
        raise FileNotFoundError(
            f"{shown(folder)} is a file: a model is a folder in Hugging Face's format"
        )
    if isinstance(path, Path) or _is_path(path) or _is_slip(path, revision):
        raise FileNotFoundError(f"there is no model folder {quoted(path)}{_hint(folder)}")
    return None


def _locate(path: str | Path, revision: str | None, trust_remote_code: bool) -> tuple[str, Path]:
    """A checkpoint's name and its folder on this machine."""
    folder = model_folder(path, revision=revision)
    if folder is None:
        return str(path), _download(str(path), revision, trust_remote_code)
    return os.path.abspath(folder), folder


def _is_path(text: str) -> bool:
    if not text or text[0] in "./~" or text.count("/") > 1:
        return True
    try:
        validate_repo_id(text)
    except HFValidationError:
        return True
    first, _, rest = text.partition("/")
    return bool(rest) and _is_folder(Path(first))


def _is_slip(text: str, revision: str | None) -> bool:
    """Whether what may be a hub id is nearly a model folder's path, and not known as an id."""
    if revision is not None or _is_cached(text):
        return False
    return any(
        difflib.SequenceMatcher(None, text.lower(), str(path).lower()).ratio() >= _LIKELY_SLIP
        for path in similar_folders(Path(text))
        if _holds_model(path)
    )


def _is_cached(repo_id: str) -> bool:
    names = (CONFIG, ADAPTER_CONFIG)
    return any(isinstance(huggingface_hub.try_to_load_from_cache(repo_id, n), str) for n in names)


def similar_folders(path: Path) -> list[Path]:
    """Folders whose path is close to `path`, at most three, models first."""
    if path.parent == path:
        return [path] if _is_folder(path) else []
    parents = [path.parent] if _is_folder(path.parent) else similar_folders(path.parent)
    similar = []
    for parent in parents:
        by_lower = {name.lower(): name for name in _folders_in(parent)}
        close = difflib.get_close_matches(path.name.lower(), by_lower, n=3)
        similar += [parent / by_lower[name] for name in close]
    return sorted(similar, key=lambda folder: not _holds_model(folder))[:3]


def _folders_in(parent: Path) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long a name, a zero byte
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _hint(path: Path) -> str:
    close = similar_folders(path) if path.name else []
    return f"; did you mean {shown(' or '.join(map(str, close)))}?" if close else ""


# --- a folder -----------------------------------------------------------------------------------


def _whole_model(name: str, folder: Path) -> Checkpoint:
    if not os.path.lexists(folder / CONFIG):
        raise FileNotFoundError(f"{shown(folder)} holds no {CONFIG}, so it is no model folder")
    check_settings(folder)
    if _is_snapshot(name, folder) and not (folder / WEIGHTS_INDEX).is_file():
        _download_weights(name, folder, [WEIGHTS])
    files = weight_files(folder)
    if _is_snapshot(name, folder):
        _download_weights(name, folder, [path.name for path in files])
    check_weights(files)
    return Checkpoint(name, folder)


def _with_adapters(name: str, folder: Path, trust_remote_code: bool) -> Checkpoint:
    """Adapters, and the model that they name as their base."""
    check_settings(folder)
    what = f"{shown(folder)} is a folder of adapters"
    if _is_snapshot(name, folder):
        _download_weights(name, folder, [ADAPTER_WEIGHTS])
    if not os.path.lexists(folder / ADAPTER_WEIGHTS):
        raise FileNotFoundError(
            f"{what}, and holds no {ADAPTER_WEIGHTS}: adapters are read from safetensors only, "
            "since pickled ones (*.bin) can run code"
        )
    check_weights({folder / ADAPTER_WEIGHTS: None})
    settings = read_json(folder / ADAPTER_CONFIG)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base:
        raise UnsupportedModelError(
            f"{what}, and its {ADAPTER_CONFIG} does not name their model as base_model_name_or_path"
        )
    if not _is_folder(Path(base)) and _is_folder(folder / base):
        base = str(folder / base)
    try:
        base_name, base_folder = _locate(base, revision, trust_remote_code)
        if (base_folder / ADAPTER_CONFIG).is_file():
            raise UnsupportedModelError("it is a folder of adapters itself: merge those first")
        whole = _whole_model(base_name, base_folder)
    except (OSError, UnsupportedModelError) as error:
        raise type(error)(
            f"{what} on {quoted(base)}, which cannot be used: {reason(error)}. Put the model's "
            f"path into base_model_name_or_path of its {ADAPTER_CONFIG}"
        ) from error
    return Checkpoint(name, whole.folder, adapters=folder)


# --- the hub ------------------------------------------------------------------------------------


def _download(repo_id: str, revision: str | None, trust_remote_code: bool) -> Path:
    """The folder in the hub's cache with all of a repository but its weights."""
    code = ("*.py",) if trust_remote_code else ()
    try:
        folder = _snapshot(repo_id, revision, (*_SMALL_FILES, *code))
        if modules := [f"{name}/{file}" for name in module_folders(folder) for file in _OF_MODULES]:
            _snapshot(repo_id, folder.name, modules, ignored=())
        return folder
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} on the hub has no revision {revision!r}") from error
    except GatedRepoError as error:
        raise PermissionError(
            f"{repo_id} is gated: ask for access on its page on the hub, and log in with "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is neither a folder {repo_id} nor a model of that name on the hub (or it is "
            f"private: `hf auth login`){_hint(Path(repo_id))}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else f"no word from it: {_first_cause(error)}"
        raise FileNotFoundError(
            f"there is no folder {repo_id}, no copy of a model of that name from the hub on this "
            f"machine, and the hub was not asked or did not answer ({why}){_hint(Path(repo_id))}"
        ) from error


def _download_weights(name: str, folder: Path, files: Sequence[str]) -> None:
    if all((folder / file).is_file() for file in files):
        return
    try:
        _snapshot(name, folder.name, files)
    except (HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"the weights of {name} cannot be downloaded: {_first_cause(error)}"
        ) from error


def _snapshot(
    repo_id: str,
    revision: str | None,
    patterns: Sequence[str],
    ignored: Sequence[str] = ("*/*",),
) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
        )
    )


def _is_snapshot(name: str, folder: Path) -> bool:
    return name != os.path.abspath(folder)


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)
