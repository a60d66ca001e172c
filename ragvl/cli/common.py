"""What every command does around its work: checks before it, errors in one line, JSON after it."""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragvl.cli.options import STDOUT
from ragvl.compression import Compression
from ragvl.files import check_writable_folder
from ragvl.messages import MAX_ERROR, quoted, reason, shown
from ragvl.output import json_text, print_json, say

if TYPE_CHECKING:
    import torch

    from ragvl.blocks import MapBlocks, Works
    from ragvl.data.problems import Problems


@contextmanager
def command_work(command: str) -> Iterator[None]:
    """What comes before the result: prints go to standard error, and errors are one line."""
    with redirect_stdout(sys.stderr), one_line_errors(command):
        yield


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Ends the program with what is wrong where a person can act on it."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"ragvl {command}: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
    except ModuleNotFoundError as error:
        said = f"{error.name} is not installed: pip install 'ragvl[cpu,train,eval,serve]'"
        if "pip install" in str(error):  # which names the extra
            said = reason(error, MAX_ERROR)
        say(f"ragvl {command}: {said}", err=True)
        sys.exit(1)
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        say(f"ragvl {command}: {reason(error, MAX_ERROR)}", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        from ragvl.runtime import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        say(f"ragvl {command}: out of memory: {reason(error, MAX_ERROR)}", err=True)
        sys.exit(1)


def check_writable(*paths: str | Path | None) -> None:
    """Refuses files that could not be written after the work."""
    for path in paths:
        if path is None:
            continue
        if str(path) == STDOUT:
            raise ValueError("'-' is no name for a file, and only --json prints")
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError(f"{shown(path)} is no file that could be written")
        if not (folder := Path(path).absolute().parent).is_dir():
            raise ValueError(f"there is no folder {shown(folder)} to write into")
        if not os.access(path if os.path.exists(path) else folder, os.W_OK):
            raise ValueError(f"{shown(path)} cannot be written")


@contextmanager
def spread(works: Works, ray: str | None, device: torch.device) -> Iterator[MapBlocks]:
    """Works in this process; or with --ray on the cluster that it names, by models on `device`."""
    from ragvl.blocks import here

    if ray is None:
        yield here(works)
        return
    from ragvl.distributed.actors import actor_map
    from ragvl.distributed.session import connected

    with connected(ray or None), actor_map(works, device=device.type) as map_blocks:
        yield map_blocks


def check_ray(ray: str | None) -> None:
    """Refuses --ray where Ray is not installed.

    Raises:
        ModuleNotFoundError: it is not; the message says what to install.
    """
    if ray is not None:
        import ragvl.distributed.session  # noqa: F401


def check_cache(folder: Path | None, compression: Compression | None) -> None:
    """Refuses a folder of prefixes that could not be read and written, before any model is loaded.

    Raises:
        OSError: it, or what it would lie in, is no folder, or not one to write into.
        ValueError: there is a compression, and no folder.
    """
    if folder is not None:
        check_writable_folder(folder)
    elif compression is not None:
        raise ValueError(f"--compression {compression} is of a folder of prefixes: name --cache")


def check_settings(
    *models: str | None, device: str = "auto", dtype: str = "auto", date: str | None = None
) -> None:
    """What can be known at once, before data are read or models are looked for on the hub."""
    from ragvl.checkpoints import model_folder
    from ragvl.mllm import resolve_date, resolve_model_dtype
    from ragvl.runtime import resolve_device

    resolve_model_dtype(dtype, resolve_device(device))
    resolve_date(date)
    for path in models:
        if path is not None:
            model_folder(path)


@contextmanager
def shown_while(what: str) -> Iterator[None]:
    """A word on a terminal for as long as something takes that has no bar; gone afterwards."""
    stream = sys.stderr
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    stream.write(f"{what} ...")
    stream.flush()
    try:
        yield
    finally:
        stream.write("\r\x1b[K")
        stream.flush()


def import_models() -> None:
    """Imports what loads models, torch and transformers above all; before anything else does.

    Python's garbage collector would search what these modules hold again and again, which takes a
    fifth of the time; it waits, and leaves alone for good what they have made.
    """
    if "ragvl.reranker" in sys.modules:
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with shown_while("starting"):
            import ragvl.reranker  # noqa: F401
    finally:
        if was_enabled:
            gc.enable()
    gc.freeze()
    atexit.register(gc.unfreeze)  # what is left at the end is told to libraries that look for leaks


def hide_loading_bars() -> None:
    """Before a model is loaded: transformers shows a bar for its weights, in front of any output.

    A command does this, not the library, since it is a setting of the whole process.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def template_variables(text: str | None) -> dict[str, Any] | None:
    """Variables of a chat template, from JSON.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        values = None if text is None else json.loads(text)
    except ValueError as error:
        raise ValueError(f"--chat-template-kwargs is no JSON: {reason(error)}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError('--chat-template-kwargs must be a JSON object: {"name": value}')
    return values


def parse_threshold(text: str) -> str | float:
    """A name, or a number where it is one.

    Raises:
        ValueError: a number that can be no threshold.
    """
    from ragvl.reranker import check_threshold

    try:
        number = float(text)
    except ValueError:
        return text
    check_threshold(number)
    return number


def parse_weight(text: str | None) -> float | None:
    """How much a retriever's score counts; None where that was not said.

    Raises:
        ValueError: it is no number from 0.
    """
    from ragvl.arguments import checked_weight

    try:
        return None if text is None else checked_weight(float(text))
    except ValueError:
        raise ValueError(f"--retriever-weight {quoted(text)}: expected a number from 0") from None


def problem_figures(problems: Problems) -> dict[str, Any]:
    """What is wrong with data, as JSON has it."""
    return {
        kind: {"count": count, "first": problems.messages[kind]}
        for kind, count in problems.counts.items()
    }


def file_of_json(name: str | None) -> str | None:
    """The file that `--json` names, if it is not standard output."""
    return None if name == STDOUT else name


def json_is_out(file: str | None, figures: object) -> bool:
    """Writes JSON where `--json` says; whether that is standard output, in place of tables."""
    if file == STDOUT:
        print_json(figures)
    elif file is not None:
        Path(file).write_text(json_text(figures), encoding="utf-8")
    return file == STDOUT
