"""`ragvl search` and `ragvl ask`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragvl.cli import options
from ragvl.cli.common import (
    check_cache,
    check_writable,
    command_work,
    import_models,
    parse_threshold,
    parse_weight,
)
from ragvl.cli.documents import CacheUse
from ragvl.cli.groups import RerankerOptions, RetrieverOptions, takes
from ragvl.messages import shown
from ragvl.output import print_json, say

if TYPE_CHECKING:
    from ragvl.cli.found import Found
    from ragvl.cli.source_index import SourceIndex
    from ragvl.data.query import Query
    from ragvl.retriever import Where

_Index = Annotated[
    str,
    typer.Argument(
        help="An index that `ragvl index` wrote: its folder, or its address in Milvus; or a folder "
        "of pictures, or another source of `ragvl index`, which is indexed once and followed."
    ),
]


@dataclass(frozen=True)
class OptionalReranker(RerankerOptions):
    """A reranker that may be left out."""

    model: Annotated[
        str,
        typer.Option("--reranker", help="A hub id or a folder; without, the retriever's order."),
    ] = ""


@dataclass(frozen=True)
class NamedReranker(RerankerOptions):
    """A reranker, beside other models."""

    model: Annotated[str, typer.Option("--reranker", help="A hub id or a folder.")]


@dataclass(frozen=True)
class SearchOptions:
    """How an index is searched, what is kept of it, and where that is shown."""

    candidates: options.Candidates = 20
    retriever_weight: options.RetrieverWeight = None
    threshold: Annotated[
        str, typer.Option(help="From what relevance a document is kept: a number, or a saved name.")
    ] = "natural"
    template: Annotated[
        str | None, typer.Option(help="The reranker's prompt, other than the preset's.")
    ] = None
    caption_tokens: options.CaptionTokens = None
    captions: options.Captions = None
    cache: Annotated[
        Path | None, typer.Option(help="A folder of prefixes that `ragvl warm` filled, or to fill.")
    ] = None
    compression: options.Compressed = None
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with what was found, and its pictures.")
    ] = None
    containing: Annotated[
        str | None,
        typer.Option(help="Search only what has this in its caption or text, in whatever case."),
    ] = None
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Search only what has this tag; given several times, all of them."),
    ] = None

    def check(self, index: str) -> None:
        """Refuses at once what needs no look into the index, before anything heavy is imported."""
        check_writable(self.html)
        check_cache(self.cache, self.compression)
        if "://" not in index and "#" not in index and not Path(index).exists():
            raise FileNotFoundError(f"there is no index {shown(index)}: `ragvl index` makes one")

    def where(self) -> Where | None:
        """Which documents are searched; None of all."""
        from ragvl.retriever import Where

        if self.containing is None and not self.tag:
            return None
        return Where(self.containing, self.tag or ())


@takes(RetrieverOptions, OptionalReranker, SearchOptions)
def search(
    encoders: RetrieverOptions,
    reranker: OptionalReranker,
    how: SearchOptions,
    index: _Index,
    question: Annotated[
        str, typer.Argument(help="The question; '' where --query-image is all there is.")
    ],
    query_image: Annotated[
        str | None, typer.Option(help="The question's picture: a file, or a data: URL.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many to print.")] = 10,
    as_json: options.AsJson = False,
) -> None:
    """Find the documents of an index that fit a question: retrieve, then rerank.

    An index remembers its encoders; --encoder and --text-encoder name them where they were moved.
    A folder of pictures is indexed when it is first searched, by the encoders that are named then;
    afterwards only what has changed is. That index is in ~/.cache/ragvl, or XDG_CACHE_HOME.
    """
    with command_work("search"):
        how.check(index)
        asked = _query(question, query_image)
        found, use, kept = _find(asked, encoders, reranker, how, index)

        from ragvl.cli.found import print_found, write_page

        if how.html is not None:
            write_page(found, how.html)
    if use is not None:
        use.say()
    if as_json:
        print_json({**found.as_json(top_k), **_figures(use, kept)})
        return
    print_found(found.documents[:top_k])
    if found.threshold is None:
        say("in the retriever's order: name a reranker with --reranker", err=True)


@takes(RetrieverOptions, NamedReranker, SearchOptions)
def ask(
    encoders: RetrieverOptions,
    reranker: NamedReranker,
    how: SearchOptions,
    index: _Index,
    question: Annotated[str, typer.Argument(help="The question.")],
    generator: Annotated[str, typer.Option(help="What answers: a hub id or a folder.")],
    top_k: Annotated[
        int, typer.Option(min=1, help="How many documents the generator is given at most.")
    ] = 2,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of the answer.")] = 32,
    as_json: options.AsJson = False,
) -> None:
    """Answer a question from an index: retrieve, rerank, and generate from what is kept.

    With nothing kept, the answer is from the question alone, and that is said.
    """
    with command_work("ask"):
        how.check(index)
        asked = _query(question, None)

        import_models()
        from ragvl.generator import Generator
        from ragvl.mllm import check_reader

        check_reader(generator)
        found, use, kept = _find(asked, encoders, reranker, how, index)

        from ragvl.cli.found import Answered, print_found, write_page

        evidence = [one for one in found.documents[:top_k] if one.is_kept]
        writer = Generator.from_pretrained(
            generator,
            device=reranker.device,
            dtype=reranker.dtype,
            caption_tokens=how.caption_tokens,
            date=reranker.date,
        )
        documents = [one.document for one in evidence]
        text = writer.answer(question, documents, max_new_tokens=max_new_tokens)
        answer = Answered(text, evidence)
        if how.html is not None:
            write_page(found, how.html, answer)
    if use is not None:
        use.say()
    if as_json:
        told = {"answer": answer.text, "evidence": [one.id for one in answer.evidence]}
        print_json({**told, **found.as_json(len(found.documents)), **_figures(use, kept)})
        return
    say(answer.text)
    if answer.evidence:
        print_found(answer.evidence)
    else:
        say(
            f"none of {len(found.documents)} documents has a relevance of {found.threshold:.3g}: "
            "answered from the question alone",
            err=True,
        )


def _query(question: str, picture: str | None) -> Query:
    from ragvl.data.query import Query

    asked = Query(question or None, picture)
    for one in asked.pictures:
        one.check_header()
    return asked


def _find(
    asked: Query,
    encoders: RetrieverOptions,
    reranker: RerankerOptions,
    how: SearchOptions,
    index: str,
) -> tuple[Found, CacheUse | None, SourceIndex | None]:
    """What was found, after a look at all that can be wrong before a model is loaded.

    A document that the reranker cannot use, such as a picture that is gone, comes last.
    """
    import_models()
    from ragvl.cli.found import Found
    from ragvl.cli.source_index import SourceIndex
    from ragvl.prefix_cache import PrefixCache
    from ragvl.reranker import place_prior, saved_fusions
    from ragvl.retriever import FusedRetriever, is_saved_index

    limit = parse_threshold(how.threshold)
    weight = parse_weight(how.retriever_weight)
    where = how.where()
    source = None if is_saved_index(index) else SourceIndex(Path(index), how.captions)
    if source is None and how.captions is not None:
        raise ValueError(f"--captions is of documents to index, and {shown(index)} is an index")
    if source is None:
        encoders.check_index(index)
    if reranker.model:
        reranker.check()
    elif weight is not None:
        raise ValueError("--retriever-weight is of reranking: name a reranker with --reranker")
    estimates = []
    if reranker.model and encoders.fusion is None:
        estimates = saved_fusions(reranker.model, how.template, **reranker.location)
    if source is None:
        retriever = encoders.open_index(index, device=reranker.device)
    else:
        retriever = source.open(encoders, device=reranker.device)
        index = str(source.folder)
    if isinstance(retriever, FusedRetriever):
        before = retriever.fusion.name
        if retriever.take_estimate(estimates):
            say(f"fusion {retriever.fusion.name}, as estimated, in place of {before}", err=True)
    retrieved = retriever.retrieve(asked, how.candidates, where=where)
    if where is not None and not retrieved:
        raise ValueError(f"no document in {shown(index)} has what --containing and --tag ask for")
    if not reranker.model:
        return Found.of(asked, index, len(retriever), retrieved, None, None), None, source
    scorer = reranker.load(
        template=how.template,
        threshold=limit,
        caption_tokens=how.caption_tokens,
        prefix_cache=None
        if how.cache is None
        else PrefixCache("scratch", folder=how.cache, compression=how.compression),
    )
    documents = [one.document for one in retrieved]
    use = None
    if how.cache is not None:
        use = CacheUse(how.cache, scorer, [(asked, one) for one in documents])
    if weight is None:
        weight = scorer.saved_weight(retriever.name)
        if weight:
            told = f"the retriever's order counts, with a weight of {weight:.3g}, as estimated"
            say(told, err=True)
    if scorer.thresholds is not None and where is None:  # else how many there are is not known
        names = scorer.thresholds.named(scorer.threshold)
        scorer.thresholds.warn_of_another_search(len(retriever), names=names, weight=weight)
    prior = place_prior(len(retrieved), weight)
    ranked = scorer.rank(asked, documents, on_error="skip", prior=prior)
    found = Found.of(asked, index, len(retriever), retrieved, ranked, scorer.threshold, weight)
    return found, use, source


def _figures(use: CacheUse | None, source: SourceIndex | None) -> dict[str, Any]:
    """What became of the caches, as JSON has it."""
    indexed = {} if source is None else source.figures()
    return indexed if use is None else {**indexed, "cache": use.figures()}
