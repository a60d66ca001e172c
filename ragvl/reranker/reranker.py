"""Scores (query, document) pairs by the MLLM's Yes/No logits at the prompt's last position."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from sys import maxsize
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ragvl.data.document import Document, DocumentLike
from ragvl.data.images import ImageError
from ragvl.mllm import MLLM, ImageInputs, Prompt, PromptTooLongError, common_prefix_length
from ragvl.ops import relevance_head
from ragvl.reranker.templates import CAPTION, PLAIN, TEMPLATES, PromptTemplate
from ragvl.reranker.thresholds import Threshold, resolve_threshold

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]

_WINDOW = 256  # pairs are prepared and sorted by length this many at a time
# On a CPU a larger batch saves nothing and leaves the caches; measured on 44 M parameters.
_CPU_BATCH_TOKENS = 1024
_GPU_BATCH_SIZE = 32
_SHOW_PROGRESS_FROM = 64  # pairs
_PREPARE_THREADS = 4


@dataclass(frozen=True)
class RankedDocument:
    """A document after reranking.

    Attributes:
        index: its place in the list that was given.
        document: the document.
        score: relevance, the probability of Yes against No; NaN if it was skipped.
        kept: whether the score reaches the threshold.
    """

    index: int
    document: Document
    score: float
    kept: bool

    def __getitem__(self, key: str) -> Any:
        """The keys of sentence-transformers' `CrossEncoder.rank`: corpus_id, score."""
        if key == "corpus_id":
            return self.index
        if key == "score":
            return self.score
        raise KeyError(f"{key!r}; a ranked document has the keys 'corpus_id' and 'score'")


class Reranker:
    """An MLLM as a reranker: prefill only, nothing is generated (RagVL, arXiv 2407.21439, 3.1).

    Args:
        mllm: the model.
        template: a `PromptTemplate`, the name of one of `TEMPLATES`, or "auto": `caption` for a
            document that has a caption, `plain` for one that has none.
        threshold: "natural" (0.5) or a probability; what `rank` keeps unless told otherwise.
        answers: the words for relevant and not relevant that the checkpoint was trained to say.

    Raises:
        ValueError: an unknown template or threshold.
        AnswerTokenError: the tokenizer cannot spell `answers` with distinct first tokens.
    """

    def __init__(
        self,
        mllm: MLLM,
        *,
        template: PromptTemplate | str = "auto",
        threshold: Threshold = "natural",
        answers: tuple[str, str] = ("Yes", "No"),
    ) -> None:
        if isinstance(template, str) and template != "auto" and template not in TEMPLATES:
            known = ", ".join(["auto", *TEMPLATES])
            raise ValueError(f"unknown template {template!r}; known: {known}")
        self.mllm = mllm
        self.template = TEMPLATES.get(template) if isinstance(template, str) else template
        self.threshold = resolve_threshold(threshold)
        self.yes_token_ids, self.no_token_ids = mllm.answer_token_ids(*answers)
        self._head_rows, self._head_bias = mllm.head_rows(self.yes_token_ids + self.no_token_ids)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        template: PromptTemplate | str = "auto",
        threshold: Threshold = "natural",
        answers: tuple[str, str] = ("Yes", "No"),
        **load: Any,
    ) -> Reranker:
        """Loads a reranker from a folder or the hub.

        Args:
            path: a folder in Hugging Face format, or a hub id; any image-text-to-text model.
            device: "auto" is CUDA where it is present.
            dtype: "auto" is bfloat16 on a GPU and float32 on a CPU.
            template: see `Reranker`.
            threshold: see `Reranker`.
            answers: see `Reranker`.
            load: what else `MLLM.from_pretrained` takes, such as `revision`.
        """
        mllm = MLLM.from_pretrained(path, device=device, dtype=dtype, **load)
        return cls(mllm, template=template, threshold=threshold, answers=answers)

    def rank(
        self,
        query: str,
        documents: Sequence[DocumentLike],
        *,
        top_k: int | None = None,
        threshold: Threshold | None = None,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        progress: bool = True,
    ) -> list[RankedDocument]:
        """Documents by relevance to `query`, the most relevant first.

        Args:
            query: the question.
            documents: documents, or bare paths or pictures.
            top_k: how many to return; all by default, and past the end is fine.
            threshold: what `kept` means, if not the reranker's own.
            batch_size: prompts in one forward pass. By default 32 on a GPU, and on a CPU as many
                as have about 1,024 tokens together.
            on_error: "raise" at a picture that cannot be read, or "skip" it: it comes last, with
                a score of NaN.
            progress: show a bar when there are many.

        Raises:
            ValueError: an empty query, no documents, or `top_k` below 1.
            ImageError: a picture cannot be read; the message names the document.
        """
        if not documents:
            raise ValueError("documents is empty: there is nothing to rank")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: it must be at least 1, or None for all")
        limit = self.threshold if threshold is None else resolve_threshold(threshold)
        candidates = [Document.of(document) for document in documents]
        scores = self.score(
            [(query, document) for document in candidates],
            batch_size=batch_size,
            on_error=on_error,
            progress=progress,
        ).tolist()
        # stable, so that equal scores keep the retriever's order; NaN (skipped) goes last
        order = sorted(range(len(scores)), key=lambda i: (np.isnan(scores[i]), -scores[i]))
        return [
            RankedDocument(
                index=i, document=candidates[i], score=scores[i], kept=scores[i] >= limit
            )
            for i in order[:top_k]
        ]

    def score(
        self,
        pairs: Sequence[tuple[str, DocumentLike]],
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        progress: bool = True,
    ) -> Tensor:
        """Relevance of each (query, document), any mix of queries and documents.

        A document that stands in several pairs as the same object is read and preprocessed once.

        Args:
            pairs: what to score; may be empty.
            batch_size: as in `rank`.
            on_error: "raise" at a picture that cannot be read or a prompt that is too long, or
                "skip" it: its score is NaN.
            progress: show a bar when there are many.

        Returns:
            (n,) float32 on the CPU, in the order of `pairs`: sigmoid(z_yes - z_no).

        Raises:
            ValueError: an empty query, `batch_size` below 1, or a document without the caption
                that the template needs.
            ImageError: a picture cannot be read; the message names the document.
            PromptTooLongError: a prompt does not fit the model's context.
            FloatingPointError: a score is NaN, from broken weights or an overflow.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: it must be at least 1")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: expected 'raise' or 'skip'")
        checked = [(_checked_query(query), Document.of(document)) for query, document in pairs]
        scores = torch.full((len(checked),), torch.nan)
        hidden = not progress or len(checked) < _SHOW_PROGRESS_FROM
        with tqdm(total=len(checked), desc="rerank", unit="pair", disable=hidden) as bar:
            for window in self._prepare(checked, on_error):
                # prompts of like length share a batch, so that little of it is padding
                window.sort(key=lambda entry: len(entry[1]))
                for batch in self._batches(window, batch_size):
                    indices, prompts = zip(*batch, strict=True)
                    scores[list(indices)] = self._relevance(prompts)
                    bar.update(len(indices))
                    _check_finite(scores, indices, checked)
        return scores

    def predict(
        self,
        sentences: Sequence[tuple[str, DocumentLike]],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> np.ndarray:
        """`score` under the name and types of sentence-transformers' `CrossEncoder.predict`."""
        return self.score(sentences, batch_size=batch_size, progress=show_progress_bar).numpy()

    def prompt(self, query: str, document: DocumentLike) -> str:
        """The whole prompt as text, chat template included, for one pair."""
        document = Document.of(document)
        return self._render(query, document)

    def split_prompt(self, query: str, document: DocumentLike) -> tuple[list[int], list[int]]:
        """The prompt's token ids, split where the query begins to matter.

        The first part is the same for every query about `document`; the second is all that a new
        query costs once the first is cached. Together they are the whole prompt.
        """
        document = Document.of(document)
        image = self._load_image(document)
        whole = self._encode(query, document, image).input_ids
        # Prompts of two queries without a common character share what every query's prompt shares.
        # Token ids of whole prompts: a merge across the boundary costs a token, never correctness.
        first, second = (self._encode(probe, document, image).input_ids for probe in ("a", "1"))
        shared = first[: common_prefix_length(first, second)]
        length = common_prefix_length(whole, shared)
        return whole[:length], whole[length:]

    def _batches(
        self, window: Sequence[tuple[int, Prompt]], batch_size: int | None
    ) -> Iterator[list[tuple[int, Prompt]]]:
        """`window`, shortest prompt first, cut into batches."""
        on_cpu = self.mllm.device.type == "cpu"
        max_tokens = _CPU_BATCH_TOKENS if batch_size is None and on_cpu else maxsize
        max_size = batch_size or (maxsize if on_cpu else _GPU_BATCH_SIZE)
        batch: list[tuple[int, Prompt]] = []
        for entry in window:
            size = len(batch) + 1
            if batch and (size > max_size or size * len(entry[1]) > max_tokens):
                yield batch
                batch = []
            batch.append(entry)
        if batch:
            yield batch

    def _prepare(
        self, pairs: Sequence[tuple[str, Document]], on_error: OnError
    ) -> Iterator[list[tuple[int, Prompt]]]:
        """Windows of (index of the pair, its prompt); pictures are prepared one window ahead.

        Pairs are taken document by document, so that each picture is prepared once and held
        for no longer than its own pairs are at work.
        """
        first_seen: dict[int, int] = {}
        for _, document in pairs:
            first_seen.setdefault(id(document), len(first_seen))
        order = sorted(range(len(pairs)), key=lambda i: first_seen[id(pairs[i][1])])
        windows = [order[i : i + _WINDOW] for i in range(0, len(order), _WINDOW)]
        pending: dict[int, Future[ImageInputs]] = {}
        with ThreadPoolExecutor(_PREPARE_THREADS) as pool:

            def submit(window: Sequence[int]) -> None:
                for i in window:
                    document = pairs[i][1]
                    if id(document) not in pending:
                        pending[id(document)] = pool.submit(self._load_image, document)

            try:
                for number, window in enumerate(windows):
                    submit(window)
                    ahead = windows[number + 1] if number + 1 < len(windows) else []
                    submit(ahead)
                    prompts = [
                        (i, self._prompt_or_none(i, *pairs[i], pending[id(pairs[i][1])], on_error))
                        for i in window
                    ]
                    needed = {id(pairs[i][1]) for i in ahead}
                    pending = {key: future for key, future in pending.items() if key in needed}
                    yield [(i, prompt) for i, prompt in prompts if prompt is not None]
            finally:
                for future in pending.values():
                    future.cancel()

    def _load_image(self, document: Document) -> ImageInputs:
        image = document.load()
        try:
            return self.mllm.encode_image(image)
        except ValueError as error:  # some processors refuse extreme shapes
            raise ImageError(f"{document.name}: {error}") from error

    def _prompt_or_none(
        self,
        index: int,
        query: str,
        document: Document,
        image: Future[ImageInputs],
        on_error: OnError,
    ) -> Prompt | None:
        try:
            prompt = self._encode(query, document, image.result())
            if len(prompt) > self.mllm.max_length:
                raise PromptTooLongError(index, len(prompt), self.mllm.max_length)
        except (ImageError, PromptTooLongError) as error:
            if on_error == "raise":
                raise
            logger.warning("skipped %s: %s", document.name, error)
            return None
        return prompt

    def _encode(self, query: str, document: Document, image: ImageInputs) -> Prompt:
        return self.mllm.encode_prompt(self._render(query, document), [image])

    def _render(self, query: str, document: Document) -> str:
        template = self.template or (PLAIN if document.caption is None else CAPTION)
        fields = {"query": query}
        if template.needs_caption:
            if document.caption is None:
                raise ValueError(
                    f"{document.name} has no caption and template {template.name!r} needs one; "
                    "give it one, or use template='auto'"
                )
            fields["caption"] = document.caption
        return self.mllm.render(template.text, **fields)

    @torch.inference_mode()
    def _relevance(self, prompts: Sequence[Prompt]) -> Tensor:
        batch = self.mllm.collate(prompts)
        hidden = self.mllm.hidden_states(batch)
        size, length, width = hidden.shape
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=hidden.device)
        norm = self.mllm.final_norm
        _, relevance = relevance_head(
            hidden.reshape(size * length, width),
            torch.arange(size, device=hidden.device) * length + lengths - 1,
            norm.weight,
            self._head_rows,
            num_yes=len(self.yes_token_ids),
            eps=norm.eps,
            norm=norm.kind,
            norm_bias=norm.bias,
            head_bias=self._head_bias,
            softcap=self.mllm.softcap,
        )
        return relevance.cpu()


def _checked_query(query: str) -> str:
    if not isinstance(query, str):
        raise TypeError(f"a query must be a string, not {type(query).__name__}")
    if not query.strip():
        raise ValueError("the query is empty")
    return query


def _check_finite(
    scores: Tensor, indices: Sequence[int], pairs: Sequence[tuple[str, Document]]
) -> None:
    for i in indices:
        if torch.isnan(scores[i]):
            raise FloatingPointError(
                f"the relevance of {pairs[i][1].name} is NaN: the weights hold NaN, or "
                "activations overflow in this dtype (try dtype='bfloat16' or 'float32')"
            )
