"""Tables of what the runs here, and `ragvl overhead`, write into benchmarks/results."""

from __future__ import annotations

from collections.abc import Sequence

from tables import NOT_MEASURED, Results, mib, table, unmeasured

from ragvl.ablation.result import AblationResult
from ragvl.ablation.table import tables as ablation_tables
from ragvl.data.questions import Pool
from ragvl.evaluation.metrics import difference
from ragvl.evaluation.result import EvaluationResult, Figure, Figures, PoolResult, from_json
from ragvl.evaluation.tables import interval, percent, signed

_RECALLS = tuple(f"recall@{k}" for k in (1, 2, 5, 10, 20))
_POOLS: tuple[Pool, ...] = ("full", "gold")
_WORLDS = ("places", "charts")
_TEMPLATE_MEASURES = ("recall@1", "mrr", "kept: precision", "recall", "F1")
EVIDENCE = {
    "retrieved": "the retriever's first",
    "gold": "(gold pictures)",
    "none": "(no picture)",
}


def demo(results: Results) -> str:
    """What reranking does to the demo's questions, by pool, in percent."""
    result = _evaluation(results, "demo")
    rows = []
    for name in _POOLS:
        pool = result.pools[name]
        for order, kept in (("retrieved", "retrieved"), ("reranked", "natural")):
            figures = [_order(pool, order)[recall] for recall in _RECALLS]
            figures += [pool.kept[kept]["precision"], pool.kept[kept]["f1"]]
            figures.append(pool.answers[kept].measures["accuracy"])
            rows.append([name, order, *map(percent, figures)])
    full, gold = (result.pools[name].num_documents for name in _POOLS)
    settings = result.settings
    return table(
        ["pool", "order", *_RECALLS, "precision", "f1", "answers right"],
        rows,
        f"{result.num_questions} test questions; {full:,} pictures in the full pool, {gold:,} "
        f"in the gold one; {settings.num_candidates} candidates, of which the first "
        f"{settings.top_k} at or above a relevance of {result.thresholds['natural']:g} are "
        f"kept.",
    )


def documents_found(results: Results) -> str:
    """Of each drawn world, pool and order: where the gold documents are, with intervals."""
    measures = (*_RECALLS, "mrr", "ndcg@10")
    rows = [
        [
            world,
            pool,
            order,
            *_percents(_order(_evaluation(results, name).pools[pool], order), measures),
        ]
        for name, world in (("demo", "places"), ("charts", "charts"))
        for pool in _POOLS
        for order in ("retrieved", "reranked")
    ]
    return table(["world", "pool", "order", *measures], rows)


def documents_kept(results: Results) -> str:
    """What each threshold keeps of the demo's world, and how many answers are right from it."""
    result = _evaluation(results, "demo")
    rows = []
    for name, pool in result.pools.items():
        for evidence, answers in pool.answers.items():
            threshold, kept = result.thresholds.get(evidence), pool.kept.get(evidence)
            measures = ("precision", "recall", "f1")
            rows.append(
                [
                    *(name, EVIDENCE.get(evidence, evidence)),
                    "" if threshold is None else f"{threshold:.3f}",
                    *([""] * len(measures) if kept is None else _percents(kept, measures)),
                    percent_between(answers.measures["accuracy"]),
                ]
            )
    settings, estimated_on = result.settings, result.estimated_on
    assert estimated_on is not None  # the demo's thresholds were estimated
    note = (
        f"The first {settings.top_k} of {settings.num_candidates} candidates, "
        f"{result.num_questions} questions, percent with 95 % intervals; thresholds from "
        f"{estimated_on.num_questions} other questions ({estimated_on.data}) of the "
        f"{estimated_on.pool} pool: for the other one no precision is promised."
    )
    for name, why in estimated_on.refused.items():
        note += f" `{name}` was requested and refused: {why}."
    header = ["pool", "kept", "relevance from", "precision", "recall", "F1", "answers right"]
    return table(header, rows, note)


def answers_by_category(results: Results) -> str:
    """Right answers of the demo's world by category and evidence, full pool."""
    result = _evaluation(results, "demo")
    answers = result.pools["full"].answers
    columns = ("none", "retrieved", "natural", "gold")
    rows = [
        [
            f"{category} ({count})",
            *(percent_between(answers[evidence].by_category.get(category)) for evidence in columns),
        ]
        for category, count in result.categories.items()
    ]
    return table(["category", *(EVIDENCE.get(name, name) for name in columns)], rows)


def cross_domain(results: Results) -> str:
    """The models of one drawn world in another."""
    worlds = [_pool(results, name, "full") for name in ("demo", "charts")]
    compared = {
        "recall@1, retrieved": [world.retrieved["recall@1"] for world in worlds],
        "recall@1, reranked": [world.reranked["recall@1"] for world in worlds],
        "recall@20, either": [world.retrieved["recall@20"] for world in worlds],
        "F1 of what is kept": [world.kept["natural"]["f1"] for world in worlds],
    }
    for label, evidence in (
        ("from the retriever's first", "retrieved"),
        ("from what is kept", "natural"),
        ("from gold pictures", "gold"),
        ("without pictures", "none"),
    ):
        compared[f"answers right, {label}"] = [
            world.answers[evidence].measures["accuracy"] for world in worlds
        ]
    for name in worlds[0].kept:
        if name.startswith("precision") and name in worlds[1].kept:
            compared[f"precision at `{name}`"] = [world.kept[name]["precision"] for world in worlds]
    unretrieved = [_evaluation(results, f"{name}_unretrieved") for name in ("places", "charts")]
    for name in ("recall@1", "recall@20"):
        compared[f"{name}, reranking the whole gold pool"] = [
            world.pools["gold"].reranked[name] for world in unretrieved
        ]
    rows = []
    for label, (places, charts) in compared.items():
        change = difference(charts, places)
        rows.append(
            [
                label,
                percent_between(places),
                percent_between(charts),
                f"{signed(change)} ({interval(change, '+')})",
            ]
        )
    num_places, num_charts = (world.pools["gold"].num_documents for world in unretrieved)
    return table(
        ["", "places", "charts", "change"],
        rows,
        f"The last two rows are of the reranker alone: the first {unretrieved[1].num_questions} "
        f"questions, each with all {num_charts} pictures of the gold pool for candidates "
        f"(places: {num_places}); a random order has {2000 / num_charts:.1f} % of them among its "
        f"first 20.",
    )


def caption_retrieval(results: Results) -> str:
    """Pictures found by their captions, before reranking and after."""
    measures = ("recall@1", "recall@5", "recall@10")
    rows = [
        [label, *_percents(_order(_pool(results, name, "full"), order), measures)]
        for name, order, label in (
            ("captions", "retrieved", "retrieved"),
            ("captions_zero_shot", "reranked", "reranked by the demo's reranker, of questions"),
            ("captions", "reranked", "reranked by one trained on captions"),
        )
    ]
    result = _evaluation(results, "captions")
    pool = result.pools["full"]
    return table(
        ["", *measures],
        rows,
        f"{result.num_questions} captions, {pool.num_documents} pictures, "
        f"{result.settings.num_candidates} candidates: no order of them finds more than "
        f"{percent_between(pool.retrieved['recall@20'])} percent.",
    )


def templates(results: Results) -> str:
    """The demo's reranker by the template that it was trained with."""
    header = ["world", "template", *_TEMPLATE_MEASURES]
    if f"templates_{_WORLDS[0]}_caption" not in results:
        return unmeasured(header, 2)
    rows = []
    for world in _WORLDS:
        pools = {
            name: _pool(results, f"templates_{world}_{name.replace('-', '_')}", "full")
            for name in ("caption", "instruction-first")
        }
        measured = {
            name: [
                *(pool.reranked[measure] for measure in ("recall@1", "mrr")),
                *(pool.kept["natural"][measure] for measure in ("precision", "recall", "f1")),
            ]
            for name, pool in pools.items()
        }
        rows += [[world, f"`{name}`", *map(percent_between, of)] for name, of in measured.items()]
        gaps = map(difference, measured["instruction-first"], measured["caption"])
        rows.append([world, "difference", *(f"{signed(g)} ({interval(g, '+')})" for g in gaps)])
    count = _evaluation(results, f"templates_{_WORLDS[0]}_caption").num_questions
    return table(
        header,
        rows,
        f"Percent of {count} test questions with 95 % intervals, full pool: the same base, "
        "samples and recipe, trained once each; kept are the first two from even odds on.",
    )


def ablation_noise(results: Results) -> str:
    """What each kind of noise teaches the demo's generator."""
    return _ablation(results, "ablation_noise")


def ablation_low_resource(results: Results) -> str:
    """What a share of the data teaches the demo's reranker."""
    return _ablation(results, "ablation_low_resource")


def ablation_real_noise(results: Results) -> str:
    """What noise teaches a model with a pretrained language model on real pictures."""
    return _ablation(results, "ablation_real_noise")


def ablation_real_generator(results: Results) -> str:
    """Which training of the real generator does best on val."""
    return _ablation(results, "ablation_real_generator")


def _ablation(results: Results, name: str) -> str:
    if name not in results:
        return unmeasured(["arm", "gold"])
    result = from_json(AblationResult, results[name])
    seeds = f"mean of {len(result.seeds)} seeds with Student's 95 % interval"
    note = (
        f"Percent of {result.num_questions} questions of {result.test}; "
        f"{seeds if len(result.seeds) > 1 else 'one seed'}, {result.settings['max_steps']} steps "
        "if not said otherwise."
    )
    if result.noise_ratios:
        ratios = ", ".join(f"{n}: {100 * r:.0f} %" for n, r in result.noise_ratios.items() if r)
        note += f" Of the documents shown are not gold: {ratios}."
    *first, (head, *rows) = ablation_tables(result)
    return "\n\n".join([*(table(head, rows) for head, *rows in first), table(head, rows, note)])


def overhead(results: Results) -> str:
    """What reranking adds to a query, and noise to a training step."""
    result = results["overhead_cpu"]
    rows = [
        [f"{what}: {name}", f"{1 / row['speedup']['median']:.2f}x", mib(row["peak_mib"])]
        for stage, what in (("rerank", "a query"), ("train", "a training step"))
        for name, row in result.get(stage, {}).items()
    ]
    return table(
        ["method", "time", "memory"],
        rows,
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, float32; a query against "
        f"the first method, a step against plain fine-tuning.",
    )


def _evaluation(results: Results, name: str) -> EvaluationResult:
    return from_json(EvaluationResult, results[name])


def _pool(results: Results, name: str, pool: Pool) -> PoolResult:
    return _evaluation(results, name).pools[pool]


def _order(pool: PoolResult, order: str) -> Figures:
    return {"retrieved": pool.retrieved, "reranked": pool.reranked}[order]


def _percents(figures: Figures, names: Sequence[str]) -> list[str]:
    return [percent_between(figures.get(name)) for name in names]


def percent_between(figure: Figure | None) -> str:
    """Percent, with the ends of its interval."""
    if figure is None:
        return NOT_MEASURED
    ends = "" if figure.value is None else interval(figure)
    return percent(figure) + (f" ({ends})" if ends else "")


TABLES = (
    demo,
    documents_found,
    documents_kept,
    answers_by_category,
    cross_domain,
    caption_retrieval,
    templates,
    ablation_noise,
    ablation_low_resource,
    ablation_real_noise,
    ablation_real_generator,
    overhead,
)
