"""Captions, texts and questions as unit vectors, by a text encoder of sentence-transformers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ragvl.checkpoints import find_checkpoint, model_folder
from ragvl.data.document import Document, DocumentLike
from ragvl.data.images import DocumentError
from ragvl.data.query import QueryLike
from ragvl.forks import fork_safe
from ragvl.identity import config_content, name_of, tokenizer_content
from ragvl.messages import reason, shown
from ragvl.model_files import (
    CONFIG,
    MODULES,
    WEIGHTS,
    UnsupportedModelError,
    module_folders,
    read_json,
)
from ragvl.progress import ProgressBar
from ragvl.retriever.encoding import (
    batches,
    check_finite,
    checked_queries,
    checked_texts,
    origin_of,
    text_of,
)
from ragvl.runtime import resolve_device, resolve_dtype, warn_of_slow_products
from ragvl.torch_context import default_torch_context
from ragvl.weights import model_tensors, weights_name

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_SETTINGS = "config_sentence_transformers.json"
_KIND = "SentenceTransformer"  # its model_type; cross encoders and sparse encoders have others
_PICKLE = "pytorch_model.bin"
_PROBE = "Which 3 caf\u00e9s does the picture show?"
_BATCHES_AT_ONCE = 16  # which sentence-transformers sorts by length


class TextEncoder:
    """Reads captions and texts, and questions about them; it looks at no picture.

    What the checkpoint's files say of prompts for queries and documents, lengths, pooling and
    further layers is done by sentence-transformers. Encoding is thread-safe.

    Args:
        model: the encoder; it is moved, and put in eval mode.
        device: "auto", "cpu", "cuda", ...
        dtype: "auto", "float32", "bfloat16", ...

    Attributes:
        dim: length of the vectors.
        fingerprint: names the weights as given, before `dtype` is applied, and every setting.
        origin: see `Encoder`.

    Raises:
        UnsupportedModelError: it gives no vector of a text, or its tokenizer cannot be named.
        ValueError: a setting is not valid.
        FloatingPointError: it gives NaN or infinite vectors.
    """

    reads_pictures = False

    @default_torch_context
    def __init__(
        self,
        model: SentenceTransformer,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        self.device = resolve_device(device)
        self.origin: Mapping[str, str] = {}
        self.fingerprint = _fingerprint(model)
        resolved = resolve_dtype(dtype, self.device)
        warn_of_slow_products(resolved, self.device)
        self.model = model.to(self.device, resolved).eval()
        self._lock = fork_safe(threading.Lock())  # a tokenizer keeps a call's padding
        try:
            self.dim: int = self.encode_texts([_PROBE]).shape[1]
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise UnsupportedModelError(f"it gives no vector of a text: {reason(error)}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = fork_safe(threading.Lock())

    @classmethod
    @default_torch_context
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        subfolder: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> TextEncoder:
        """Loads a folder or hub id in sentence-transformers' format; weights from safetensors only.

        `revision`, `subfolder` and `cache_dir` are as of `MLLM.from_pretrained`.

        Raises:
            ImportError: sentence-transformers is not installed.
            OSError: there is no such checkpoint, or a file of it is missing or cannot be read.
            UnsupportedModelError: a file is damaged, or it is no text encoder.
            ValueError: a setting is not valid.
        """
        resolved = resolve_device(device)
        resolve_dtype(dtype, resolved)
        where: dict[str, Any] = {"subfolder": subfolder, "cache_dir": cache_dir}
        folder = _find(path, revision=revision, **where)
        try:
            model = _sentence_transformer()(
                str(folder),
                device=str(resolved),
                local_files_only=True,
                model_kwargs={"dtype": "auto", "use_safetensors": True},
            )
            encoder = cls(model, device=device, dtype=dtype)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError) as error:
            raise UnsupportedModelError(f"{shown(folder)}: {reason(error)}") from error
        encoder.origin = origin_of(path, revision=revision, **where)
        return encoder

    @property
    def dtype(self) -> str:
        """What it computes in."""
        return str(self.model.dtype)

    def check_document(self, document: Document) -> None:
        """Sees whether a document can be encoded.

        Raises:
            DocumentError: it has neither caption nor text; the message names it.
        """
        if not text_of(document).strip():
            raise DocumentError(
                f"{document.name}: it has no caption and no text, which is all that a text encoder "
                "reads"
            )

    @default_torch_context
    def encode_documents(
        self, documents: Sequence[DocumentLike], *, batch_size: int = 32, progress: bool = True
    ) -> np.ndarray:
        """Unit vectors of documents: of their captions, or else their texts.

        Args:
            documents: documents.
            batch_size: texts per forward pass; it changes the speed, not the vectors.
            progress: show a progress bar when it takes more than a second.

        Returns:
            (n, dim) float32.

        Raises:
            DocumentError: a document has neither caption nor text; the message names it.
            TypeError: an item is no document.
            ValueError: `batch_size` is below 1.
            FloatingPointError: a vector is not finite.
        """
        every = [Document.of(document) for document in documents]
        for document in every:
            self.check_document(document)
        return self._encode(
            [text_of(document) for document in every],
            self.model.encode_document,
            batch_size=batch_size,
            progress=progress,
        )

    @default_torch_context
    def encode_queries(self, queries: Sequence[QueryLike]) -> np.ndarray:
        """Unit vectors of queries: of their texts.

        Returns:
            (n, dim) float32.

        Raises:
            TypeError: `queries` is one query, or an item is none.
            ValueError: a query is empty, or a picture alone.
            FloatingPointError: a vector is not finite.
        """
        texts = []
        for i, query in enumerate(checked_queries(queries)):
            if query.text is None:
                raise ValueError(f"queries[{i}]: {query.name} has no text for a text encoder")
            texts.append(query.text)
        return self._encode(texts, self.model.encode_query)

    @default_torch_context
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Unit vectors of texts, without a prompt of documents or queries.

        Returns:
            (n, dim) float32.

        Raises:
            TypeError: `texts` is a single string, or an item is not a string.
            ValueError: a text is empty, or `batch_size` is below 1.
            FloatingPointError: a vector is not finite.
        """
        return self._encode(checked_texts(texts), self.model.encode, batch_size=batch_size)

    def _encode(
        self,
        texts: Sequence[str],
        encode: Callable[..., Any],
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> np.ndarray:
        parts = []
        bar = ProgressBar(
            total=len(texts), desc="encode", unit="text", delay=1.0, disable=not progress
        )
        # Checked here, before the larger batches are made of it
        next(batches(texts, batch_size), None)
        with bar:
            for _, batch in batches(texts, _BATCHES_AT_ONCE * batch_size):
                with self._lock:
                    vectors = encode(
                        list(batch),
                        batch_size=batch_size,
                        show_progress_bar=False,
                        convert_to_tensor=True,
                    )
                parts.append(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy())
                bar.update(len(batch))
        if not parts:
            return np.empty((0, self.dim), np.float32)
        every = np.concatenate(parts)
        for row, text in zip(every, texts, strict=True):
            check_finite(row, f"the text {text!r}")
        return every


def check_text_encoder(path: str | Path, **location: Any) -> None:
    """Sees whether `path` means a text encoder; nothing is loaded.

    `location` is the revision and the like; it and errors are as of `TextEncoder.from_pretrained`.
    """
    _find(path, **location)


def _find(path: str | Path, **where: Any) -> Path:
    """The folder of a text encoder's files."""
    _sentence_transformer()
    local = model_folder(path, **where)
    if local is None or os.path.lexists(local / CONFIG) or not os.path.lexists(local / MODULES):
        checkpoint = find_checkpoint(path, **where)
        if checkpoint.adapters is not None:
            raise UnsupportedModelError(
                f"{shown(path)} is a folder of adapters: merge them into their model first, with "
                "PEFT's merge_and_unload()"
            )
        folder = checkpoint.folder
    else:  # each of its modules is in a folder of its own
        folder = local
    module_folders(folder)
    if not os.path.lexists(folder / MODULES):
        raise UnsupportedModelError(
            f"{shown(folder)} is no text encoder in sentence-transformers' format: it has no "
            f"{MODULES}"
        )
    settings = read_json(folder / _SETTINGS) if os.path.lexists(folder / _SETTINGS) else {}
    if (kind := settings.get("model_type", _KIND)) != _KIND:
        raise UnsupportedModelError(
            f"{shown(folder)} is a {shown(kind)} of sentence-transformers, and no text encoder"
        )
    for pickled in folder.rglob(_PICKLE):
        if not (pickled.parent / WEIGHTS).is_file():
            raise UnsupportedModelError(
                f"{shown(pickled)}: pickled weights can run code and are never read: save the "
                "model again as safetensors"
            )
    return folder


def _sentence_transformer() -> type[SentenceTransformer]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "a text encoder needs sentence-transformers: pip install 'ragvl[text]'"
        ) from error
    return SentenceTransformer


def _fingerprint(model: SentenceTransformer) -> str:
    saved, _ = model_tensors(model)
    transformer = model.transformers_model
    modules = [[type(module).__name__, _module_settings(module)] for module in model.children()]
    return name_of(
        "text encoder",
        weights_name(saved),
        {} if transformer is None else config_content(transformer.config),
        _tokenizer_content(model.tokenizer),
        json.dumps(modules, sort_keys=True, default=str),
        dict(model.prompts),
        model.default_prompt_name,
        model.truncate_dim,
    )


def _module_settings(module: torch.nn.Module) -> dict[str, Any]:
    read = getattr(module, "get_config_dict", None)
    return {} if read is None else read()


def _tokenizer_content(tokenizer: Any) -> str:
    if hasattr(tokenizer, "backend_tokenizer"):
        return tokenizer_content(tokenizer)
    if hasattr(tokenizer, "to_str"):  # one of the tokenizers package, as of static embeddings
        content: str = tokenizer.to_str()
        return content
    raise UnsupportedModelError(
        f"its tokenizer is a {type(tokenizer).__name__}, of which ragvl cannot say whether it is "
        "the same another day: use one with a tokenizer.json"
    )
