"""Pictures and texts as unit vectors of one space, by a CLIP-style dual encoder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor

# From its own module: at the top level transformers 5.17 hides it where torchvision is absent.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ragvl.checkpoints import find_checkpoint
from ragvl.data.document import Document, DocumentLike
from ragvl.data.images import ImageError, count_kept_pixels
from ragvl.data.picture import Picture
from ragvl.data.query import QueryLike
from ragvl.forks import fork_safe
from ragvl.identity import config_content, name_of, tokenizer_content
from ragvl.messages import quoted, reason, shown
from ragvl.mllm.loading import load_weights, naming
from ragvl.mllm.processors import plain_image_processor, plain_tokenizer
from ragvl.model_files import CONFIG, UnsupportedModelError
from ragvl.progress import ProgressBar
from ragvl.retriever.encoding import (
    batches,
    check_content,
    check_finite,
    checked_queries,
    checked_texts,
    origin_of,
    text_of,
    unit,
)
from ragvl.runtime import resolve_device, resolve_dtype, warn_of_slow_products
from ragvl.torch_context import default_torch_context
from ragvl.weights import Watch, model_tensors, weights_name
from ragvl.workers import Workers, ahead

_BATCHES_AHEAD = 2  # pictures are decoded this many batches ahead of the model
_PROBE_PICTURE = Image.new("RGB", (64, 48), (200, 120, 40))
_PROBE = "Which 3 caf\u00e9s does the picture show?"


class DualEncoder:
    """A model of the CLIP or SigLIP family: two towers into one space.

    Encoding is thread-safe.

    Args:
        model: has `get_image_features` and `get_text_features`; it is moved, and put in eval mode.
        image_processor: turns a picture into the model's inputs.
        tokenizer: turns a text into the model's inputs.
        device: "auto", "cpu", "cuda", ...
        dtype: "auto", "float32", "bfloat16", ...

    Attributes:
        dim: length of the vectors.
        origin: see `Encoder`.

    Raises:
        ValueError: the model is not a dual encoder, or a setting is not valid.
        FloatingPointError: it gives NaN or infinite vectors.
    """

    reads_pictures = True

    @default_torch_context
    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        _check_towers(model, model.config.model_type)
        plain_image_processor(image_processor)
        plain_tokenizer(tokenizer)
        tokenizer.truncation_side = "right"
        # So that what fails later is a picture
        image_processor(_PROBE_PICTURE, return_tensors="pt")
        saved, _ = model_tensors(model)
        self._weights_name = weights_name(saved)
        self.device = resolve_device(device)
        resolved = resolve_dtype(dtype, self.device)
        warn_of_slow_products(resolved, self.device)
        self.model = model.to(self.device, resolved).eval()
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.origin: Mapping[str, str] = {}
        self._watch = Watch(self.model)
        self._fingerprint: str | None = None
        # SigLIP reads a text at the last of a fixed number of positions, padding included.
        self._padding = "max_length" if model.config.model_type.startswith("siglip") else "longest"
        if self._padding == "longest":  # on the left it would move a text by its batch's longest
            tokenizer.padding_side = "right"
        self._max_length = _num_positions(model)
        self._tokenizer_lock = fork_safe(threading.Lock())  # it keeps a call's padding
        self.dim = self.encode_texts([_PROBE]).shape[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name != "_tokenizer_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._tokenizer_lock = fork_safe(threading.Lock())

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
        trust_remote_code: bool = False,
    ) -> DualEncoder:
        """Loads a folder or hub id; the weights from safetensors only.

        `revision`, `subfolder` and `cache_dir` are as of `MLLM.from_pretrained`.

        Raises:
            OSError: there is no such checkpoint, or a file of it is missing or cannot be read.
            UnsupportedModelError: a file is damaged, or it is not a dual encoder or lacks weights.
            ValueError: a setting is not valid.
        """
        resolve_dtype(dtype, resolve_device(device))
        folder = _find(
            path,
            revision=revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
        )
        code: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        # The PIL processors even where torchvision is installed: it resizes a little differently,
        # and an index must not depend on what else was installed when it was built.
        with naming(folder, "image processor"):
            image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **code)
        with naming(folder, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder, **code)
        model = load_weights(AutoModel, folder, dtype="auto", **code)
        with naming(folder, "model or processor"):
            encoder = cls(model, image_processor, tokenizer, device=device, dtype=dtype)
        encoder.origin = origin_of(
            path, revision=revision, subfolder=subfolder, cache_dir=cache_dir
        )
        return encoder

    @property
    def dtype(self) -> str:
        """What it computes in."""
        return str(self.model.dtype)

    @property
    def fingerprint(self) -> str:
        """Names the weights as given, before `dtype` is applied, and every setting.

        Vectors of encoders with the same fingerprint can be compared. Weights that were changed
        since are noticed (see `Watch`), and named as they are.
        """
        if self._watch.look():
            self._weights_name = self._watch.name
            self._fingerprint = None
        if self._fingerprint is None:
            self._fingerprint = name_of(
                "dual encoder",
                self._weights_name,
                config_content(self.model.config),
                self.image_processor.to_json_string(),
                tokenizer_content(self.tokenizer),
            )
        return self._fingerprint

    def check_document(self, document: Document) -> None:
        """Sees whether a document can be encoded; its pictures are decoded.

        Raises:
            DocumentError: it is empty, or a picture cannot be used; the message names it.
        """
        check_content(document)
        for picture in document.pictures:
            picture.load()

    @default_torch_context
    def encode_documents(
        self, documents: Sequence[DocumentLike], *, batch_size: int = 32, progress: bool = True
    ) -> np.ndarray:
        """L2-normalised vectors of documents: of their pictures, or else of their texts.

        A document of several pictures has the direction of their vectors' sum. Captions, and texts
        beside pictures, are not read. Pictures are decoded in threads ahead of the model.

        Args:
            documents: documents, or bare pictures.
            batch_size: pictures per forward pass; it changes the speed, not the vectors.
            progress: show a progress bar when it takes more than a second.

        Returns:
            (n, dim) float32.

        Raises:
            DocumentError: a document is empty, or a picture cannot be used; the message names it.
            TypeError: an item is neither a document nor a picture.
            ValueError: `batch_size` is below 1.
            FloatingPointError: a vector is not finite.
        """
        every = [Document.of(document) for document in documents]
        for document in every:
            check_content(document)
        pictures = [picture for document in every for picture in document.pictures]
        of_pictures = iter(self.encode_pictures(pictures, batch_size=batch_size, progress=progress))
        texts = [text_of(one) for one in every if not one.pictures]
        of_texts = iter(self.encode_texts(texts))
        vectors = np.empty((len(every), self.dim), dtype=np.float32)
        for row, document in zip(vectors, every, strict=True):
            own = [next(of_pictures) for _ in document.pictures] or [next(of_texts)]
            row[:] = own[0] if len(own) == 1 else unit(np.sum(own, axis=0), document.name)
        return vectors

    @default_torch_context
    def encode_queries(self, queries: Sequence[QueryLike]) -> np.ndarray:
        """L2-normalised vectors of queries: of a text, a picture, or the sum of both.

        Returns:
            (n, dim) float32.

        Raises:
            TypeError: `queries` is one query, or an item is none.
            ValueError: a query is empty.
            ImageError: a picture cannot be used.
            FloatingPointError: a vector is not finite.
        """
        every = checked_queries(queries)
        of_texts = iter(self.encode_texts([q.text for q in every if q.text is not None]))
        pictures = [picture for query in every for picture in query.pictures]
        of_pictures = iter(self.encode_pictures(pictures, progress=False))
        vectors = np.empty((len(every), self.dim), dtype=np.float32)
        for row, query in zip(vectors, every, strict=True):
            own = [next(of_pictures) for _ in query.pictures]
            own += [] if query.text is None else [next(of_texts)]
            row[:] = own[0] if len(own) == 1 else unit(np.sum(own, axis=0), query.name)
        return vectors

    @default_torch_context
    def encode_pictures(
        self, pictures: Sequence[Picture], *, batch_size: int = 32, progress: bool = True
    ) -> np.ndarray:
        """L2-normalised vectors of pictures; see `encode_documents`.

        Returns:
            (n, dim) float32.
        """
        vectors = np.empty((len(pictures), self.dim), dtype=np.float32)
        bar = ProgressBar(
            total=len(pictures), desc="encode", unit="image", delay=1.0, disable=not progress
        )
        with bar, Workers() as workers:
            submitted = (workers.submit(partial(self._prepare, one)) for one in pictures)
            prepared = ahead(submitted, _BATCHES_AHEAD * batch_size)
            for start, batch in batches(pictures, batch_size):
                inputs = [next(prepared).result() for _ in batch]
                features = self._forward(
                    self.model.get_image_features,
                    {name: torch.cat([item[name] for item in inputs]) for name in inputs[0]},
                )
                for row, picture in zip(features, batch, strict=True):
                    check_finite(row, picture.name)
                vectors[start : start + len(batch)] = features
                bar.update(len(batch))
        return vectors

    @default_torch_context
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> np.ndarray:
        """L2-normalised vectors of texts; a text is cut at the length that the model reads.

        Returns:
            (n, dim) float32.

        Raises:
            TypeError: `texts` is a single string, or an item is not a string.
            ValueError: a text is empty, or `batch_size` is below 1.
            FloatingPointError: a vector is not finite.
        """
        texts = checked_texts(texts)
        parts = []
        for _, batch in batches(texts, batch_size):
            with self._tokenizer_lock:
                inputs = self.tokenizer(
                    list(batch),
                    padding=self._padding,
                    truncation=True,
                    max_length=self._max_length,
                    return_tensors="pt",
                )
            parts.append(self._forward(self.model.get_text_features, dict(inputs)))
        vectors = np.concatenate(parts) if parts else np.empty((0, self.dim), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            check_finite(row, f"the text {text!r}")
        return vectors

    def _prepare(self, picture: Picture) -> dict[str, Tensor]:
        with picture.decoded(kept_pixels=lambda: self._kept_pixels) as image:
            try:
                return self._process(image)
            except ValueError as error:  # some processors refuse extreme shapes
                raise ImageError(f"{picture.name}: {reason(error)}") from error

    @cached_property
    def _kept_pixels(self) -> int | None:
        return count_kept_pixels(self._process)

    def _process(self, image: Image.Image) -> dict[str, Tensor]:
        return dict(self.image_processor(image, return_tensors="pt"))

    @torch.inference_mode()
    def _forward(self, tower: Callable[..., object], inputs: dict[str, Tensor]) -> np.ndarray:
        dtype = self.model.dtype
        on_device = {
            name: tensor.to(self.device, dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }
        features: Tensor = tower(**on_device).pooler_output  # type: ignore[attr-defined]
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def check_encoder(path: str | Path, **location: Any) -> None:
    """Sees whether `path` means a dual encoder; nothing is loaded.

    `location` is the revision and the like; it and errors are as of `DualEncoder.from_pretrained`.
    """
    _find(path, trust_remote_code=False, **location)


def _find(path: str | Path, *, trust_remote_code: bool, **where: Any) -> Path:
    """The folder of a dual encoder's files."""
    checkpoint = find_checkpoint(path, trust_remote_code=trust_remote_code, **where)
    if checkpoint.adapters is not None:
        raise UnsupportedModelError(
            f"{shown(path)} is a folder of adapters: merge them into their model first, with "
            "PEFT's merge_and_unload()"
        )
    with naming(checkpoint.folder / CONFIG, "configuration"):
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
        if type(config) in MODEL_MAPPING:  # other code comes with the checkpoint
            _check_towers(MODEL_MAPPING[type(config)], config.model_type)
    return checkpoint.folder


def _check_towers(model: object, kind: str) -> None:
    for method in ("get_image_features", "get_text_features"):
        if not hasattr(model, method):
            raise UnsupportedModelError(
                f"a {quoted(kind)} model has no {method}(), so it is not a dual encoder; use "
                "a model of the CLIP or SigLIP family"
            )


def _num_positions(model: PreTrainedModel) -> int:
    """How many tokens of a text the model reads; a tokenizer's limit may be another's."""
    positions: int = model.config.get_text_config().max_position_embeddings
    for name, module in model.named_modules():
        # RoBERTa's kind counts positions from after its padding's
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return positions - padding - 1
    return positions
