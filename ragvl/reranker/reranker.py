"""Scores (query, document) pairs by an MLLM, as a rule by its Yes and No after the prompt.

How a query travels:

    Reranker        checks what it is given (arguments.py), and passes (query, document) pairs to a
                    Scorer. That is WholePrompts where no prefix can be reused, else
    CachedPrefixes  which names each document's prefix,
    PrefixSupply    takes the prefixes from device, host or disk, or computes them, and holds as
                    many as there is room for while
    Prompts         tokenises whole prompts, of which the tokens behind the prefix are the suffix,
    ChunkRunner     packs suffixes and runs the decoder over them, attending to their prefixes, and
    Head            reads raw scores off each suffix's last token.

Back in `rank`, raw scores sort the documents; relevance is their sigmoid.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ragvl.arguments import checked_count
from ragvl.checkpoints import LOCATION, Checkpoint, find_checkpoint
from ragvl.compression import Compression
from ragvl.data.document import Document, DocumentLike
from ragvl.data.images import DocumentError
from ragvl.data.query import Query, QueryLike
from ragvl.identity import name_of
from ragvl.mllm import (
    MLLM,
    Prompt,
    UnsupportedModelError,
    checked_caption_tokens,
    company_problem,
    merge_settings,
    warn_of_mixed_rows,
)
from ragvl.prefix_cache import PictureSupply, PrefixCache, reuse_problem
from ragvl.progress import ProgressBar
from ragvl.reranker.answers import Answers, AnswerTokens, check_share, probe_prompt
from ragvl.reranker.arguments import (
    as_document,
    as_documents,
    check_on_error,
    checked_pairs,
    checked_prior,
    listed_documents,
    refuse_one_document,
)
from ragvl.reranker.cached_prefixes import CachedPrefixes
from ragvl.reranker.cross_encoder import (
    CrossEncoderDialect,
    check_keywords,
    instructed,
    take_instruction,
)
from ragvl.reranker.heads import Head, ScoreNetwork, relevance
from ragvl.reranker.lengths import NO_LIMITS, Lengths
from ragvl.reranker.presets import (
    RAGVL,
    Preset,
    preset_of_architecture,
    preset_of_training,
    resolve_preset,
)
from ragvl.reranker.prompts import Prompts, split_prompt
from ragvl.reranker.ranked import RankedDocument, ScoredPair, WarmReport, relevance_order
from ragvl.reranker.score_weights import ScoreWeights
from ragvl.reranker.scorer import OnError, Refuse, Scored, Scorer, refuse_by
from ragvl.reranker.sentence_transformers import preset_of_folder
from ragvl.reranker.templates import Template, resolve_template
from ragvl.reranker.thresholds import (
    SavedThresholds,
    Threshold,
    ThresholdError,
    check_threshold,
    resolve_threshold,
    thresholds_file,
)
from ragvl.reranker.whole_prompts import WholePrompts
from ragvl.runtime import mapped_device, warn_of_slow_products
from ragvl.torch_context import default_torch_context

logger = logging.getLogger(__name__)

_SHOW_PROGRESS_FROM = 64  # pairs


class Reranker(CrossEncoderDialect):
    """An MLLM as a reranker: prefill only, nothing is generated (RagVL, arXiv 2407.21439, 3.1).

    Whatever precedes the query in a prompt, pictures and texts, is computed once for a document and
    kept; a later query costs its own tokens only, and its scores are the same.

    Args:
        mllm: the model.
        template: a `PromptTemplate`, the name of one of `TEMPLATES`, or "auto": `caption` for a
            picture that has a caption, `plain` for one that has none, `document` for texts and for
            several parts.
        threshold: "natural" (0.5), a probability, or the name of one of `thresholds`; what `rank`
            keeps by default.
        thresholds: estimates for this model; see `ragvl calibrate`.
        head: what scores are read off: the checkpoint's `Answers`, or its `ScoreNetwork`.
        answers: short for `head=Answers(answers)`: the words for relevant and not relevant.
        prefix_cache: where documents' prefixes are kept: a `PrefixCache`; memory for one on the
            model's device, such as "8GiB" or a number of bytes; "auto" for half of a GPU's free
            memory or a quarter of a CPU's; None to keep nothing from call to call.
        deterministic: a score is bitwise the same alone, in any batch and order, cached or not. On
            a GPU it makes small batches cost as much as a full one, and on a CPU it costs nothing.
            Prompts that are scored whole run one by one, and in batches with False.
        caption_tokens: cuts a longer caption to so many tokens, with a word in the log; None, the
            default, leaves captions whole, and one that does not fit the context is an error.
        lengths: how long the checkpoint's prompts are; what goes past that is cut, with a word in
            the log.
        activation: what `predict` makes of raw scores, the name of one of `ACTIVATIONS`.

    Raises:
        ValueError: an unknown template or threshold, a cache that is no size, `caption_tokens`
            below 1, or both a head and answers.
        ThresholdError: `thresholds` are another model's.
        AnswerTokenError: the tokenizer cannot spell the answers with distinct first tokens.
        UnsupportedModelError: the model lacks what the head needs, or is of another width; or its
            weights are quantised so that `deterministic` cannot be.
    """

    def __init__(
        self,
        mllm: MLLM,
        *,
        template: Template | str = "auto",
        threshold: Threshold = "natural",
        thresholds: SavedThresholds | None = None,
        head: Answers | ScoreNetwork | None = None,
        answers: tuple[str, str] | None = None,
        prefix_cache: PrefixCache | int | str | None = "auto",
        deterministic: bool = True,
        caption_tokens: int | None = None,
        lengths: Lengths = NO_LIMITS,
        activation: str = "sigmoid",
    ) -> None:
        warn_of_slow_products(mllm.dtype, mllm.device)
        self.mllm = mllm
        self.activation = activation
        self.template = resolve_template(template).for_model(mllm.prompting)
        self.head = (_given_head(head, answers) or Answers()).of(mllm)
        self.caption_tokens = checked_caption_tokens(caption_tokens)
        self.lengths = lengths
        self._thresholds_file: Path | None = None
        if thresholds is not None:
            thresholds.check_model(self.weights, self.template.name, self.prompts_name)
            self.thresholds = thresholds
        self.threshold = resolve_threshold(threshold, thresholds)
        self._share: tuple[str, float] | None = None
        if not isinstance(prefix_cache, PrefixCache):
            prefix_cache = PrefixCache("scratch" if prefix_cache is None else prefix_cache)
        self.prefix_cache = prefix_cache
        if deterministic and (problem := company_problem(mllm.model)):
            raise UnsupportedModelError(
                "a score would depend on what is scored beside it, since the weights are "
                f"quantised: {problem}. Give deterministic=False if that will do"
            )
        if deterministic:
            warn_of_mixed_rows(mllm.model)
        self._deterministic = deterministic
        self._made: tuple[str, Scorer] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but what is made at work; the model goes by the folder that it was loaded from.

        Raises:
            TypeError: the model was not loaded with `from_pretrained`.
        """
        state = {**vars(self), "_made": None}
        state.pop("_prompts", None)
        return state

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        preset: Preset | str = "auto",
        template: Template | str | None = None,
        threshold: Threshold = "natural",
        thresholds: SavedThresholds | None = None,
        head: Answers | ScoreWeights | None = None,
        answers: tuple[str, str] | None = None,
        prefix_cache: PrefixCache | int | str | None = "auto",
        deterministic: bool = True,
        caption_tokens: int | None = None,
        **load: Any,
    ) -> Reranker:
        """Loads a reranker from a folder or the hub.

        Whatever can be wrong with the arguments is looked at before the model is loaded.

        Args:
            path: a folder in Hugging Face format, or a hub id; any image-text-to-text model, or
                adapters of one.
            device: "auto" is CUDA where it is present.
            dtype: "auto" is bfloat16 on a GPU and float32 on a CPU.
            preset: what the checkpoint was trained on: a `Preset`, the name of one of `PRESETS`, or
                "auto": the one of its architecture, or what its files say in sentence-transformers'
                format, or the template that `ragvl train` put in its configuration, and the paper's
                prompts ("ragvl") where they say nothing.
            template: see `Reranker`; the preset's by default.
            threshold: see `Reranker`.
            thresholds: see `Reranker`; by default what `ragvl calibrate` saved in the folder. Those
                of another model are an error where `threshold` names one, else not used.
            head: what scores are read off, the preset's by default: `Answers`, or by
                `ScoreWeights` a score network in the checkpoint's files.
            answers: short for `head=Answers(answers)`.
            prefix_cache: see `Reranker`.
            deterministic: see `Reranker`.
            caption_tokens: see `Reranker`.
            load: what else `MLLM.from_pretrained` takes, such as `revision`, `subfolder`,
                `adapters`, `layers` and `chat_template_kwargs`.

        Raises:
            OSError: there is no such model; see `MLLM.from_pretrained`.
            ValueError: of an argument, or of the model; see there and `Reranker`.
        """
        checked_caption_tokens(caption_tokens)
        given = _given_head(head, answers)
        check_threshold(threshold)
        device = mapped_device(device, load.pop("device_map", None))
        location = _named(load, LOCATION)
        known = preset_of_checkpoint(path, preset, **location)
        head = known.head if given is None else given
        template = resolve_template(known.template if template is None else template)
        if thresholds is None and isinstance(threshold, str) and threshold != "natural":
            thresholds = SavedThresholds.of_model(path, template.name, **location)
        threshold = resolve_threshold(threshold, thresholds)
        if prefix_cache not in (None, "auto") and not isinstance(prefix_cache, PrefixCache):
            prefix_cache = PrefixCache(prefix_cache)
        own_settings = load.pop("processor_settings", None) or {}
        settings = merge_settings(known.processor_settings, own_settings)
        kept_apart: dict[str, Any] = {}
        if isinstance(head, Answers):
            read: Answers | ScoreNetwork = head
        else:
            read = head.read(_checkpoint(path, load))
            kept_apart = {"language_head": False, "read_apart": head.among_model}
        mllm = MLLM.from_pretrained(
            path,
            device=device,
            dtype=dtype,
            processor_settings=settings,
            **{**kept_apart, **load},
        )
        made = cls(
            mllm,
            template=template,
            threshold=threshold,
            thresholds=thresholds,
            head=read,
            prefix_cache=prefix_cache,
            deterministic=deterministic,
            caption_tokens=caption_tokens,
            lengths=known.lengths,
            activation=known.activation,
        )
        if thresholds is None:
            made._thresholds_file = thresholds_file(path, **location)
        return made

    @cached_property
    def thresholds(self) -> SavedThresholds | None:
        """What was estimated for it: given, or saved in its folder; None if nothing was.

        What is saved there for another model, as in another dtype, is not used; the log says so.
        """
        path = self._thresholds_file
        if path is None or not path.exists():
            return None
        try:
            saved = SavedThresholds.load(path, self.template_name)
            if saved is not None:
                saved.check_model(self.weights, self.template_name, self.prompts_name)
        except ThresholdError as error:
            logger.warning("the saved thresholds are not used: %s", error)
            return None
        return saved

    def saved_weight(self, retriever: str) -> float:
        """How much a retriever's order counts in reranking, as was estimated for it; else 0.

        Args:
            retriever: its name; see `DocumentRetriever.name`. The weight is of `place_prior`.
        """
        return 0.0 if self.thresholds is None else self.thresholds.weight_of(retriever)

    def resolve_threshold(self, threshold: Threshold | None) -> float:
        """The relevance from which a document is kept: its own if None.

        Raises:
            ThresholdError, ValueError: see `resolve_threshold`.
        """
        if threshold is None:
            return self.threshold
        is_named = isinstance(threshold, str) and threshold != "natural"
        return resolve_threshold(threshold, self.thresholds if is_named else None)

    def rank(
        self,
        query: QueryLike,
        documents: Iterable[DocumentLike],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        prior: Sequence[float] | None = None,
        threshold: Threshold | None = None,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        progress: bool = True,
        show_progress_bar: bool | None = None,
        **others: Any,
    ) -> list[RankedDocument]:
        """Documents by relevance to `query`, the most relevant first.

        May be called as sentence-transformers' `CrossEncoder.rank`, where a text is the path of a
        picture.

        Args:
            query: a text, a picture, or a `Query` of both.
            documents: documents of any kinds, bare paths or pictures, or mappings with "image" (and
                "text", its caption) or with "text" alone; in a list, an iterator, a table's column
                or an array.
            top_k: how many to return; all by default, and past the end is fine.
            return_documents: let each result also hold what stood in `documents` (`given`).
            prior: log-odds that are added to each document's raw score for the order alone, such as
                a retriever's (`place_prior`). Scores, and what is kept, are the reranker's own.
            threshold: what `kept` means, if not the reranker's own.
            batch_size: at most so many prompts in one forward pass; as many as pay by default.
            on_error: "raise" at a document that cannot be used, or "skip" it: it comes last, with
                a score of NaN.
            progress: show a bar when there are many.
            show_progress_bar: CrossEncoder's name for `progress`.
            others: CrossEncoder's other keywords: `prompt` and `prompt_name` as in `predict`, the
                rest refused where it would change something.

        Raises:
            ValueError: an empty query or one that the template has no place for, no documents,
                `top_k` below 1, `prior` of another length or with NaN, or a keyword of
                CrossEncoder's that cannot be heeded.
            TypeError: `documents` is one document, or holds what is none.
            DocumentError: a document cannot be used, such as a picture that cannot be read, or one
                that the template has no place for; the message names it.
            PromptTooLongError: a prompt does not fit the model's context.
            FloatingPointError: a score is NaN; see `score`.
        """
        instruction = take_instruction("rank", self.template, others)
        if others:
            check_keywords("rank", others, self.mllm.device)
        asked = Query.of(instructed(query, instruction))
        given = listed_documents(documents)
        limit = self.resolve_threshold(threshold)
        count = len(given) if top_k is None else checked_count("top_k", top_k)
        candidates = as_documents(given)
        added = None if prior is None else checked_prior(prior, len(given))
        pairs = [(asked, document) for document in candidates]
        progress = progress if show_progress_bar is None else show_progress_bar
        raw = self._raw(pairs, batch_size, on_error, progress=progress)
        scores, raw_scores = relevance(raw).tolist(), raw.tolist()
        return [
            RankedDocument(
                index=i,
                document=candidates[i],
                score=scores[i],
                raw=raw_scores[i],
                kept=scores[i] >= limit,
                given=given[i] if return_documents else None,
            )
            for i in relevance_order(raw_scores, added)[:count]
        ]

    def score(
        self,
        pairs: Iterable[Sequence[Any]],
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        progress: bool = True,
        raw: bool = False,
    ) -> Tensor:
        """Relevance of each (query, document), any mix of queries and documents.

        A document's prefix is computed once, however many pairs it stands in.

        Args:
            pairs: what to score, (query, document) each; may be empty.
            batch_size: as in `rank`.
            on_error: "raise" at a document that cannot be used, a prompt that is too long or a
                score that is NaN, or "skip" it: its score is NaN, and a line of the log names it.
            progress: show a bar when there are many.
            raw: give raw scores instead: the log-odds z_yes - z_no, or what the score network gave.

        Returns:
            (n,) float32 on the CPU, in the order of `pairs`: the sigmoid of the raw scores.

        Raises:
            ValueError: an empty query or one that the template has no place for, or `batch_size`
                below 1.
            DocumentError: see `rank`.
            PromptTooLongError: a prompt does not fit the model's context; the message names the
                document.
            TypeError: `pairs` holds what is no pair of a query and a document.
            FloatingPointError: a score is NaN, from broken weights or an overflow.
        """
        scores = self._raw(checked_pairs(pairs), batch_size, on_error, progress=progress)
        return scores if raw else relevance(scores)

    @default_torch_context
    def _raw(
        self,
        pairs: Sequence[tuple[Query, Document]],
        batch_size: int | None,
        on_error: OnError,
        *,
        progress: bool,
    ) -> Tensor:
        check_on_error(on_error)
        scores = torch.full((len(pairs),), torch.nan, dtype=torch.float32)
        hidden = not progress or len(pairs) < _SHOW_PROGRESS_FROM
        with ProgressBar(total=len(pairs), desc="rerank", unit="pair", disable=hidden) as bar:

            def keep(scored: Scored) -> None:
                scores[list(scored.indices)] = scored.raw
                bar.update(len(scored.indices))

            self._score(pairs, batch_size, keep, refuse_by(on_error))
        return scores

    def score_each(
        self, pairs: Iterable[Sequence[Any]], *, batch_size: int | None = None
    ) -> list[ScoredPair | Exception]:
        """`score` where pairs come from several callers: each has its score, or its own error.

        Args:
            pairs: what to score, (query, document) each; may be empty.
            batch_size: as in `rank`.

        Returns:
            For each pair, what its prompt gave, or why it has no score: a ValueError if the
            template has no place for its query, DocumentError, PromptTooLongError or
            FloatingPointError. The other pairs' scores are what they would be without it.

        Raises:
            TypeError: `pairs` holds what is no pair of a query and a document.
            ValueError: a query is empty, or `batch_size` is below 1.
        """
        checked = checked_pairs(pairs)
        results: dict[int, ScoredPair | Exception] = {}

        def keep(scored: Scored) -> None:
            scores = relevance(scored.raw).tolist(), scored.raw.tolist()
            made = map(ScoredPair, *scores, scored.lengths, scored.cached)
            results.update(zip(scored.indices, made, strict=True))

        def refuse(places: Sequence[int], error: Exception) -> None:
            results.update(dict.fromkeys(places, error))

        self._score(checked, batch_size, keep, refuse)
        return [results[i] for i in range(len(checked))]

    @default_torch_context
    def _score(
        self,
        pairs: Sequence[tuple[Query, Document]],
        batch_size: int | None,
        keep: Callable[[Scored], None],
        refuse: Refuse,
    ) -> None:
        """Hands over all scores, and refuses the pairs that have none."""
        if batch_size is not None:
            batch_size = checked_count("batch_size", batch_size)
        usable = self._usable(pairs, refuse)
        deque(self._prompts.captions.watched(document for _, document in pairs), maxlen=0)
        chosen = [pairs[i] for i in usable]

        def refuse_chosen(places: Sequence[int], error: Exception) -> None:
            refuse([usable[place] for place in places], error)

        with self._prompts.cuts.reported():
            for scored in self._scorer.score(chosen, batch_size, refuse_chosen):
                scored = replace(scored, indices=[usable[place] for place in scored.indices])
                keep(scored)
                for i in scored.raw.isnan().nonzero()[:, 0].tolist():
                    place = scored.indices[i]
                    error = _nan_error(pairs[place][1], self.prefix_cache.compression)
                    refuse([place], error)

    def _usable(self, pairs: Sequence[tuple[Query, Document]], refuse: Refuse) -> list[int]:
        """The places of the pairs that the template can write; the others are refused."""
        usable: list[int] = []
        for i, (query, document) in enumerate(pairs):
            try:
                self._prompts.check(query, document)
            except ValueError as error:
                refuse([i], error)
            else:
                usable.append(i)
        return usable

    @default_torch_context
    def warm(
        self,
        documents: Iterable[DocumentLike],
        *,
        on_error: OnError = "raise",
        progress: bool = True,
    ) -> WarmReport:
        """Computes documents' prefixes ahead of the queries; what is cached stays.

        Where no prefix can be reused, pictures' visual tokens. On a GPU kernels are compiled and
        CUDA graphs captured as well: the first query is fast.

        Args:
            documents: documents, or bare paths or pictures, as in `rank`; taken one at a time.
            on_error: "raise" at a document that cannot be used, or "skip" it.
            progress: show a bar.

        Raises:
            TypeError: `documents` is one document, or holds what is none.
            DocumentError: see `rank`.
            PromptTooLongError: a prefix fills the model's context; the message names the document.
            ValueError: nothing that this model computes of a document could be kept.
        """
        check_on_error(on_error)
        skip = refuse_by(on_error)
        skipped: list[int] = []
        total = len(documents) if isinstance(documents, Sized) else None
        known: Counter[bool] = Counter()
        with ProgressBar(total=total, desc="warm", unit="doc", disable=not progress) as bar:

            def refuse(places: Sequence[int], error: Exception) -> None:
                skip(places, error)
                skipped.extend(places)
                bar.update(len(places))

            for _, is_known in self._warm(documents, refuse):
                known[is_known] += 1
                bar.update()
        return WarmReport(known[False], known[True], len(skipped))

    @default_torch_context
    def warm_each(
        self, documents: Sequence[DocumentLike]
    ) -> list[Literal["built", "known"] | Exception]:
        """`warm` where documents come from several callers: each has its outcome, or its error.

        Returns:
            For each document, whether its prefix was "built" or "known", or why there is none:
            DocumentError or PromptTooLongError.

        Raises:
            TypeError, ValueError: see `warm`.
        """
        results: dict[int, Literal["built", "known"] | Exception] = {}

        def refuse(places: Sequence[int], error: Exception) -> None:
            results.update(dict.fromkeys(places, error))

        for place, is_known in self._warm(documents, refuse):
            results[place] = "known" if is_known else "built"
        return [results[i] for i in range(len(documents))]

    def _warm(
        self, documents: Iterable[DocumentLike], refuse: Refuse
    ) -> Iterator[tuple[int, bool]]:
        refuse_one_document(documents)
        coming = (as_document(item, i) for i, item in enumerate(documents))
        with self._prompts.cuts.reported():
            yield from self._scorer.warm(self._prompts.captions.watched(coming), refuse)

    @default_torch_context
    def is_warm(self, document: DocumentLike, instruction: str | None = None) -> bool:
        """Whether a query about `document` would cost its own tokens only; computes nothing of it.

        Args:
            document: the document.
            instruction: the queries'.

        Raises:
            DocumentError: a picture of it cannot be read, or the template has no place for it.
        """
        checked = Document.of(document)
        self._prompts.check_document(checked)
        return self._scorer.is_warm(checked, instruction)

    @default_torch_context
    def are_warm(self, pairs: Iterable[Sequence[Any]]) -> list[bool]:
        """For each (query, document) what `is_warm` says; False of a document that it refuses.

        Raises:
            TypeError: `pairs` holds what is no pair of a query and a document.
        """
        scorer = self._scorer

        def is_warm(query: Query, document: Document) -> bool:
            try:
                self._prompts.check_document(document)
                return scorer.is_warm(document, query.instruction)
            except DocumentError:
                return False

        return [is_warm(*pair) for pair in checked_pairs(pairs)]

    @property
    def weights(self) -> str:
        """Names the model's weights in their dtype, whatever library loads them."""
        return self.mllm.weights_name

    @property
    def prompts_name(self) -> str:
        """Names its prompts and its head: templates' texts and system turns, the chat template.

        Also how much of a caption is in them.
        """
        settings = self.mllm.prompting.chat_settings, self.head.content, self.caption_tokens
        lengths = () if self.lengths == NO_LIMITS else (asdict(self.lengths),)
        return name_of("prompts", self.template.content, *settings, *lengths)

    @property
    def fingerprint(self) -> str:
        """Names all that its scores depend on, the pairs apart."""
        mllm, cache = self.mllm, self.prefix_cache
        kept = cache.compression, cache.image_tokens_of(mllm)
        return name_of(
            "reranker", mllm.fingerprint, mllm.environment_name, self.prompts_name, *kept
        )

    @property
    def template_name(self) -> str:
        """The template's name."""
        return self.template.name

    @property
    def yes_token_ids(self) -> list[int]:
        """The tokens that are read for relevant.

        Raises:
            ValueError: the reranker reads no answers.
        """
        return self._answers.yes

    @property
    def no_token_ids(self) -> list[int]:
        """The tokens that are read for not relevant; see `yes_token_ids`."""
        return self._answers.no

    @property
    def _answers(self) -> AnswerTokens:
        if not isinstance(self.head, AnswerTokens):
            raise ValueError("this reranker reads no answers: it scores by a network")
        return self.head

    @property
    @default_torch_context
    def answer_share(self) -> float:
        """How much of the next token's probability the two answers hold, on a prompt of a mill.

        Relevance is the probability of one answer against the other, and means little where the
        model would say neither. Measured once a model, and again after training.
        """
        name = self.mllm.fingerprint
        if self._share is None or self._share[0] != name:
            read = [*self.yes_token_ids, *self.no_token_ids]
            self._share = name, self.mllm.next_token_share(self._probe_prompt, read)
        return self._share[1]

    @cached_property
    def _prompts(self) -> Prompts:
        return Prompts(self.mllm.prompting, self.template, self.caption_tokens, self.lengths)

    @property
    def _probe_prompt(self) -> Prompt:
        return probe_prompt(self.mllm.prompting, self._prompts)

    def prompt(self, query: QueryLike, document: DocumentLike) -> str:
        """The whole prompt as text, chat template included, for one pair.

        Raises:
            ValueError, DocumentError: the template has no place for the query or the document.
        """
        pair = Query.of(query), Document.of(document)
        self._prompts.check(*pair)
        return self._prompts.text(*pair)

    @default_torch_context
    def split_prompt(self, query: QueryLike, document: DocumentLike) -> tuple[list[int], list[int]]:
        """The prompt's token ids, split where the query begins to matter.

        The first part is the same for every query about `document`; the second is all that a new
        query costs once the first is cached. Together they are the whole prompt.
        """
        pair = Query.of(query), Document.of(document)
        return split_prompt(self.mllm.prompting, self._prompts, *pair)

    @property
    def _scorer(self) -> Scorer:
        mllm = self.mllm
        # Prefixes that were computed together have other bits
        name = name_of("model", mllm.fingerprint, mllm.environment_name, self._deterministic)
        made = self._made
        if made is None or made[0] != name:  # the first time, or after a change of the model
            made = self._made = name, self._make_scorer(name)
        return made[1]

    def _make_scorer(self, model: str) -> Scorer:
        head = self.head.on(self.mllm)
        if isinstance(self.head, AnswerTokens):
            self._check_share(self.head)
        if problem := self._no_reuse(head):
            if (share := self.prefix_cache.image_tokens_of(self.mllm)) < 1:
                raise ValueError(
                    f"image_tokens={share} is about prefixes, and this reranker's cannot be "
                    f"reused: {problem}. Give PrefixCache(image_tokens=1)"
                )
            pictures = PictureSupply(self.mllm, self.prefix_cache, model=model)
            kept = "only visual tokens are cached"
            if pictures.problem is not None:
                kept = f"nothing is cached ({pictures.problem})"
            logger.warning("prompts are scored whole, %s: %s", kept, problem)
            return WholePrompts(
                self.mllm, self._prompts, head, pictures, deterministic=self._deterministic
            )
        trained, share = self.mllm.image_tokens, self.prefix_cache.image_tokens_of(self.mllm)
        if share != trained < 1:
            logger.warning(
                "prefixes keep %g of pictures' tokens, and the reranker was trained with %g",
                share,
                trained,
            )
        return CachedPrefixes(
            self.mllm,
            self._prompts,
            head,
            self.prefix_cache,
            model=model,
            deterministic=self._deterministic,
        )

    def _check_share(self, answers: AnswerTokens) -> None:
        prompt, prompting = self._probe_prompt, self.mllm.prompting
        if len(prompt) <= prompting.max_length:  # else no prompt fits: the documents' errors say so
            check_share(self.answer_share, answers.words(prompting), prompt, prompting)

    def _no_reuse(self, head: Head) -> str | None:
        """Why nothing can be reused from query to query, or None where it can."""
        if head.pooling == "mean":
            return "the score is read off the states of all tokens"
        if self.template.query_first:
            return "the template puts the query before the document"
        problem = reuse_problem(self.mllm)
        return problem and f"{self.mllm.architecture}: {problem}"


H = TypeVar("H", ScoreNetwork, ScoreWeights)


def _given_head(head: Answers | H | None, answers: tuple[str, str] | None) -> Answers | H | None:
    """The head that was given, in whichever way."""
    if head is not None and answers is not None:
        raise ValueError("both head= and answers= say what scores are read off: give one")
    return head if answers is None else Answers(answers)


def preset_of_checkpoint(
    path: str | Path, preset: Preset | str = "auto", **location: Any
) -> Preset:
    """The preset that a name means, or "auto": that a checkpoint's files describe.

    Args:
        path: a folder or a hub id.
        preset: a preset, or its name.
        location: the revision and the like; see `MLLM.from_pretrained`.

    Raises:
        OSError: there is no such model.
        UnsupportedModelError: its files describe a reranker that is not known.
        ValueError: there is no preset of that name.
    """
    if preset != "auto":
        return resolve_preset(preset)
    checkpoint = find_checkpoint(path, **location)
    return (
        preset_of_architecture(checkpoint.folder)
        or preset_of_folder(checkpoint.modules_folder)
        or preset_of_training(checkpoint.folder)
        or RAGVL
    )


def _checkpoint(path: str | Path, load: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint that `load` is about to load."""
    return find_checkpoint(path, **_named(load, LOCATION))


def _named(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of `values` that have these names."""
    return {name: values[name] for name in names if name in values}


def _nan_error(document: Document, compression: Compression | None) -> FloatingPointError:
    beyond = ""
    if compression == "int4":
        beyond = ", or keys or values are beyond 65504, the most that compression='int4' holds"
    return FloatingPointError(
        f"the relevance of {document.name} is NaN: the weights hold NaN, or activations overflow "
        f"in this dtype (try dtype='bfloat16' or 'float32'){beyond}"
    )
