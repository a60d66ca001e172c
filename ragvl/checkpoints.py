"""Finds the model that a path or a hub id means, and checks its files before any is loaded."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ragvl.files import expand_user, open_regular
from ragvl.messages import quoted, reason, shown
from ragvl.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    MODULES,
    WEIGHTS,
    WEIGHTS_INDEX,
    UnsupportedModelError,
    check_settings,
    check_weights,
    module_folders,
    read_json,
    shown_list,
    weight_files,
)

# Small files of a hub repository; weights are downloaded once these have been checked
_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
# Of each of sentence-transformers' modules, which are small
_OF_MODULES = ("config.json", WEIGHTS)
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER = "tokenizer.json"
_MAX_TEMPLATE_BYTES = 1 << 24
_LIKELY_SLIP = 0.85  # of difflib's ratio, from which a name that may be a hub id is a mistyped path


# What `find_checkpoint` takes, and all that pass it on
LOCATION = ("revision", "subfolder", "cache_dir", "adapters", "trust_remote_code")


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
        """Where tokenizer and processor are: with the adapters, if they brought both."""
        own = self.adapters
        return self.folder if own is None or not _holds_processor(own) else own

    @property
    def modules_folder(self) -> Path:
        """Where sentence-transformers' modules are: with the adapters, if they brought them."""
        own = self.adapters
        return self.folder if own is None or not (own / MODULES).is_file() else own


def find_checkpoint(
    path: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    cache_dir: str | Path | None = None,
    adapters: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """The model that `path` means, downloaded if it is on the hub; nothing is loaded.

    A path is what is a folder, begins with ".", "/" or "~", has more than one "/", or whose first
    part is a folder; all else is a hub id, "name" or "owner/name". A folder of adapters brings the
    model that they were trained on with it, which `adapters` need not.

    Args:
        path: a folder in Hugging Face's format, or a hub id.
        revision: branch, tag or commit of a hub repository.
        subfolder: where in the folder or repository the model is.
        cache_dir: where models of the hub are kept; the hub's own cache by default.
        adapters: a folder or hub id of adapters for the model, whatever model they name.
        trust_remote_code: download the Python files of a hub repository too.

    Raises:
        FileNotFoundError: there is no such folder, hub repository or revision, or a file is missing
            in it; the message names folders of similar names.
        OSError: the hub cannot be reached or does not let this user in, or a file cannot be read.
        UnsupportedModelError: a file is damaged, or holds what is never read.
        ValueError: `revision` of a folder, or a `subfolder` that leads elsewhere.
    """
    hub = _Hub(cache_dir, trust_remote_code)
    place = _locate(path, hub, revision=revision, subfolder=subfolder)
    if revision is not None and place.repository is None:
        raise ValueError(
            f"revision={quoted(revision)} is of a repository on the hub, and {shown(place.folder)} "
            "is a folder"
        )
    if adapters is not None:
        return _with_adapters(_locate(adapters, hub), hub, base=place)
    if not (place.folder / ADAPTER_CONFIG).is_file():
        return _whole_model(place)
    if any((place.folder / weights).is_file() for weights in (WEIGHTS, WEIGHTS_INDEX)):
        raise UnsupportedModelError(
            f"{shown(place.folder)} holds both a whole model and adapters ({ADAPTER_CONFIG}), and "
            "it is not clear which is meant: move one of them out"
        )
    return _with_adapters(place, hub)


def model_folder(
    path: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path | None:
    """The folder that `path` means, or None if it is a hub id; see `find_checkpoint`.

    Raises:
        FileNotFoundError: it means a folder that is not there; the message names similar ones.
        ValueError: `subfolder` leads elsewhere.
    """
    inner = _checked_subfolder(subfolder)
    folder = Path(expand_user(path))
    if str(path) and _is_folder(folder):
        if not _is_folder(folder / inner):
            raise FileNotFoundError(
                f"there is no folder {quoted(inner)} in {shown(folder)}{_hint(folder / inner)}"
            )
        return folder / inner
    if _is_file(folder):
        raise FileNotFoundError(
            f"{shown(folder)} is a file: a model is a folder in Hugging Face's format"
        )
    if isinstance(path, Path) or _is_path(path) or _is_slip(path, revision, cache_dir):
        raise FileNotFoundError(f"there is no model folder {quoted(path)}{_hint(folder)}")
    return None


@dataclass(frozen=True)
class _Hub:
    """How models of the hub come here.

    Attributes:
        cache_dir: see `find_checkpoint`.
        code: whether the Python files of a repository come too.
    """

    cache_dir: str | Path | None
    code: bool

    def snapshot(
        self,
        repository: str,
        revision: str | None,
        patterns: Sequence[str],
        ignored: Sequence[str] = (),
    ) -> Path:
        """The folder of a repository's commit, with the files of these patterns in it."""
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                cache_dir=None if self.cache_dir is None else expand_user(self.cache_dir),
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
            )
        )


@dataclass(frozen=True)
class _Place:
    """Where files of a checkpoint are on this machine.

    Attributes:
        name: see `Checkpoint`.
        folder: the files'.
        hub: how more of them come here.
        repository: the id of the hub's repository; None of a folder.
        snapshot: the folder of the repository's commit, in which `folder` is.
    """

    name: str
    folder: Path
    hub: _Hub
    repository: str | None = None
    snapshot: Path = Path()

    def download(self, files: Sequence[str]) -> None:
        """Brings weights here that are missing in a hub model's folder.

        Raises:
            FileNotFoundError: the hub does not give them.
        """
        missing = [file for file in files if not (self.folder / file).is_file()]
        if self.repository is None or not missing:
            return
        inner = self.folder.relative_to(self.snapshot)
        try:
            names = [(inner / file).as_posix() for file in files]
            self.hub.snapshot(self.repository, self.snapshot.name, names)
        except (HfHubHTTPError, OSError) as error:
            raise FileNotFoundError(
                f"the weights of {self.name} cannot be downloaded: {_first_cause(error)}"
            ) from error
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        if offline and not all((self.folder / file).is_file() for file in missing):
            raise FileNotFoundError(
                f"{self.name} is not whole on this machine, and the hub was not asked "
                f"(HF_HUB_OFFLINE is set): {shown(self.folder)} lacks {shown_list(missing)}"
            )


def _locate(
    path: str | Path, hub: _Hub, *, revision: str | None = None, subfolder: str | None = None
) -> _Place:
    """Where a checkpoint's files are, weights apart, which are still to come."""
    where: dict[str, Any] = {"revision": revision, "subfolder": subfolder}
    folder = model_folder(path, cache_dir=hub.cache_dir, **where)
    if folder is not None:
        return _Place(os.path.abspath(folder), folder, hub)
    inner = _checked_subfolder(subfolder)
    snapshot = _download(str(path), revision, inner, hub)
    name = f"{path}/{inner}" if inner else str(path)
    return _Place(name, snapshot / inner, hub, str(path), snapshot)


def _checked_subfolder(subfolder: str | None) -> str:
    """The name of a folder in another one; empty for that itself."""
    inner = PurePosixPath(subfolder or "")
    if inner.is_absolute() or ".." in inner.parts or "\\" in str(inner) or "\0" in str(inner):
        raise ValueError(
            f"subfolder={quoted(subfolder)} is not the name of a folder in the model's"
        )
    return "" if inner == PurePosixPath() else str(inner)


def _is_path(text: str) -> bool:
    if not text or text[0] in "./~" or text.count("/") > 1:
        return True
    try:
        validate_repo_id(text)
    except HFValidationError:
        return True
    first, _, rest = text.partition("/")
    return bool(rest) and _is_folder(Path(first))


def _is_slip(text: str, revision: str | None, cache_dir: str | Path | None) -> bool:
    """Whether what may be a hub id is nearly a model folder's path, and not known as an id."""
    if revision is not None or _is_cached(text, cache_dir):
        return False
    return any(
        difflib.SequenceMatcher(None, text.lower(), str(path).lower()).ratio() >= _LIKELY_SLIP
        for path in similar_folders(Path(text))
        if _holds_model(path)
    )


def _is_cached(repo_id: str, cache_dir: str | Path | None) -> bool:
    names = (CONFIG, ADAPTER_CONFIG)
    cache = None if cache_dir is None else expand_user(cache_dir)
    return any(
        isinstance(huggingface_hub.try_to_load_from_cache(repo_id, name, cache_dir=cache), str)
        for name in names
    )


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


def _whole_model(place: _Place) -> Checkpoint:
    folder = place.folder
    if not os.path.lexists(folder / CONFIG):
        raise FileNotFoundError(
            f"{shown(folder)} holds no {CONFIG}, so it is no model folder{_models_in(folder)}"
        )
    check_settings(folder)
    if not (folder / WEIGHTS_INDEX).is_file():
        place.download([WEIGHTS])
    files = weight_files(folder)
    place.download([path.name for path in files])
    check_weights(files)
    return Checkpoint(place.name, folder)


def _models_in(folder: Path) -> str:
    """Says in which folders of `folder` there are models."""
    names = [name for name in sorted(_folders_in(folder)) if _holds_model(folder / name)]
    return f"; there are models in it: subfolder={quoted(names[0])}" if names else ""


def _with_adapters(place: _Place, hub: _Hub, base: _Place | None = None) -> Checkpoint:
    """Adapters, and the model that they are on: by default the one that they name."""
    folder = place.folder
    if not os.path.lexists(folder / ADAPTER_CONFIG):
        raise FileNotFoundError(
            f"{shown(folder)} holds no {ADAPTER_CONFIG}, so it is no folder of adapters"
        )
    check_settings(folder)
    what = f"{shown(folder)} is a folder of adapters"
    place.download([ADAPTER_WEIGHTS])
    if not os.path.lexists(folder / ADAPTER_WEIGHTS):
        raise FileNotFoundError(
            f"{what}, and holds no {ADAPTER_WEIGHTS}: adapters are read from safetensors only, "
            "since pickled ones (*.bin) can run code"
        )
    check_weights({folder / ADAPTER_WEIGHTS: None})
    if base is not None:
        return _joined(_base_model(base), place)
    settings = read_json(folder / ADAPTER_CONFIG)
    named, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(named, str) or not named:
        raise UnsupportedModelError(
            f"{what}, and its {ADAPTER_CONFIG} does not name their model as "
            "base_model_name_or_path: load the model, and give the folder as adapters="
        )
    if not _is_folder(Path(named)) and _is_folder(folder / named):
        named = str(folder / named)
    try:
        whole = _base_model(_locate(named, hub, revision=revision))
    except (OSError, UnsupportedModelError) as error:
        raise type(error)(
            f"{what} on {quoted(named)}, which cannot be used: {reason(error)}. Load the model "
            "from where it is, and give the folder as adapters=; or put the model's path into "
            f"base_model_name_or_path of its {ADAPTER_CONFIG}"
        ) from error
    return _joined(whole, place)


def _joined(base: Checkpoint, adapters: _Place) -> Checkpoint:
    """Adapters on their model.

    Raises:
        UnsupportedModelError: they bring a tokenizer that is not the model's, and no processor.
    """
    folder = adapters.folder
    if not _holds_processor(folder) and (changed := _changed_text_files(folder, base.folder)):
        raise UnsupportedModelError(
            f"{shown(folder)} has another {changed} than its model {shown(base.folder)}, and not "
            "the rest of a processor: save the whole processor into it (processor.save_pretrained),"
            " or remove its tokenizer's files if the model's own are meant"
        )
    return replace(base, name=adapters.name, adapters=folder)


def _holds_processor(folder: Path) -> bool:
    held = [(folder / name).is_file() for name in _PROCESSOR_FILES]
    return any(held) and (folder / "tokenizer_config.json").is_file()


def _changed_text_files(adapters: Path, base: Path) -> str | None:
    """What of a tokenizer lies with adapters and is not as in their model's folder."""
    if (adapters / _TOKENIZER).is_file() and _vocabulary(adapters) != _vocabulary(base):
        return "tokenizer"
    own = _chat_template(adapters)
    return "chat template" if own is not None and own != _chat_template(base) else None


def _vocabulary(folder: Path) -> dict[str, Any]:
    """A tokenizer as its file has it, without how it was last called."""
    if not (folder / _TOKENIZER).is_file():
        return {}
    called = ("truncation", "padding")
    return {name: x for name, x in read_json(folder / _TOKENIZER).items() if name not in called}


def _chat_template(folder: Path) -> object:
    if (path := folder / "chat_template.jinja").is_file():
        with open_regular(path, max_bytes=_MAX_TEMPLATE_BYTES) as file:
            return file.read().decode("utf-8", "replace")
    settings = [folder / name for name in ("chat_template.json", "tokenizer_config.json")]
    given = (read_json(path).get("chat_template") for path in settings if path.is_file())
    return next((template for template in given if template is not None), None)


def _base_model(place: _Place) -> Checkpoint:
    if (place.folder / ADAPTER_CONFIG).is_file():
        raise UnsupportedModelError(
            f"{shown(place.folder)} is a folder of adapters itself: merge those first"
        )
    return _whole_model(place)


# --- the hub ------------------------------------------------------------------------------------


def _download(repo_id: str, revision: str | None, inner: str, hub: _Hub) -> Path:
    """The folder in the hub's cache with all of a repository but its weights.

    Args:
        repo_id: the repository's.
        revision: see `find_checkpoint`.
        inner: the folder in the repository that the model is in; empty for the repository's own.
        hub: how it comes here.
    """
    before = f"{inner}/" if inner else ""
    try:
        names = (*_SMALL_FILES, *(("*.py",) if hub.code else ()))
        wanted = [before + name for name in names]
        folder = hub.snapshot(repo_id, revision, wanted, ignored=[f"{before}*/*"])
        modules = module_folders(folder / inner)
        if files := [f"{before}{name}/{file}" for name in modules for file in _OF_MODULES]:
            hub.snapshot(repo_id, folder.name, files)
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
        which = "" if revision is None else f" with the revision {revision!r}"
        kept = "" if hub.cache_dir is None else f" in {shown(hub.cache_dir)}"
        raise FileNotFoundError(
            f"there is no folder {repo_id}, no copy of a model of that name from the hub{which} on "
            f"this machine{kept}, and the hub was not asked or did not answer ({why})"
            f"{_hint(Path(repo_id))}"
        ) from error
    if not (folder / inner).is_dir():
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        why = "; the hub was not asked for it (HF_HUB_OFFLINE is set)" if offline else ""
        raise FileNotFoundError(f"there is no folder {quoted(inner)} in {repo_id}{why}")
    return folder


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)
