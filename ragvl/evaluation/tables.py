"""An evaluation's figures as tables for a terminal, and as words."""

from __future__ import annotations

from ragvl.evaluation.answering import RETRIEVED
from ragvl.evaluation.result import (
    Comparison,
    EstimatedOn,
    EvaluationResult,
    Figure,
    Figures,
    PoolResult,
)
from ragvl.messages import shown
from ragvl.output import print_table, say
from ragvl.retriever.fusion import FUSED

_HEADS = {"precision": "prec.", "f1": "F1", "ndcg@10": "nDCG@10", "mrr": "MRR"}


def print_figures(result: EvaluationResult) -> None:
    """Prints tables that fit a terminal of eighty columns, without intervals."""
    pools = result.pools
    first = pools[result.first_pool]
    measures = answer_measures(first)
    if first.reranked:
        names = [_HEADS.get(name, name.replace("recall", "R")) for name in first.reranked]
        rows = [
            [pool, order, *map(percent, figures.values())]
            for pool, of_pool in pools.items()
            for order, figures in found_by_order(of_pool).items()
        ]
        print_table(["pool", "order", *names], rows, title="Documents found, %", numbers=names)
        for name, of_pool in pools.items():
            gain = of_pool.gain["recall@1"]
            say(f"{name} pool: reranking moves recall@1 by {_change(gain)} points")
    for name, of_pool in pools.items():
        for line in retrieval_remarks(of_pool, result.settings.num_candidates, result.estimated_on):
            say(f"{name} pool: {line}")
    if first.kept or measures:
        names = ["threshold", "prec.", "recall", "F1", *(f"answers, {m}" for m in measures)]
        rows = [[pool, *row] for pool in pools for row in _kept_rows(result, pools[pool])]
        title = "Documents kept and answers, %"
        print_table(["pool", "kept", *names], rows, title=title, numbers=names)
    if result.models.fusion is not None:
        say(f"both orders are fused by {result.models.fusion}")
    if result.models.retriever_weight is not None:
        weight = result.models.retriever_weight
        say(f"the retriever's order counts in reranking, with a weight of {weight:.3g}")
    sizes = ", ".join(f"{pool}: {of_pool.num_documents:,}" for pool, of_pool in pools.items())
    say(f"documents in the pool: {sizes}")
    if result.median_ms:
        text = ", ".join(f"{stage} {ms.value:.1f}" for stage, ms in result.median_ms.items())
        say(f"ms a question, median: {text}")
    if result.compared is not None:
        _print_comparison(result.compared)


def found_by_order(pool: PoolResult) -> dict[str, Figures]:
    """Figures of each order of a pool's documents, by the order's name, as tables have them."""
    orders = {
        **pool.alone,
        FUSED if pool.alone else RETRIEVED: pool.retrieved,
        "chance": pool.chance,
        "reranker alone": pool.reranker_alone,
        "reranked": pool.reranked,
        "ceiling": pool.ceiling,
    }
    return {order: figures for order, figures in orders.items() if figures}


def retrieval_remarks(
    pool: PoolResult, num_candidates: int, estimated_on: EstimatedOn | None = None
) -> list[str]:
    """What a reader of a pool's table must know of its retrieval, in sentences.

    An order is no better than chance where the interval of no figure lies above a random order's.
    """
    remarks = []
    if estimated_on is not None and "num_documents" in pool.estimated_otherwise:
        remarks.append(
            f"estimates are from {shown(estimated_on.data)}, where a question was searched among "
            f"{estimated_on.num_documents:,} documents, and here among "
            f"{pool.searched_documents:,}: estimate among about as many"
        )
    if not pool.ceiling:
        return remarks
    widest = _widest(pool.ceiling, num_candidates)
    remarks += [
        f"{percent(pool.ceiling[widest])} % of the gold documents are among the {num_candidates} "
        "candidates, which is the ceiling of what reranking can find"
    ]
    own = FUSED if pool.alone else RETRIEVED
    for order, figures in {**pool.alone, own: pool.retrieved}.items():
        bounded = [name for name, figure in figures.items() if figure.low is not None]
        if not pool.chance or not bounded:
            continue
        if not any(_lies_above(figures[name], pool.chance[name].value) for name in bounded):
            remarks.append(
                f"the order {order} is no better than chance: {widest} {percent(figures[widest])} "
                f"({interval(figures[widest])}), where a random order has "
                f"{percent(pool.chance[widest])}"
            )
    for order, figures in pool.alone.items():
        if _lies_above(figures[widest], pool.retrieved[widest].high):
            remarks.append(
                f"the order {order} finds more alone than fused: leave the other encoder out, or "
                "have the share of the orders estimated on a dev split (`ragvl calibrate --fusion "
                "estimate`)"
            )
    return remarks


def _widest(figures: Figures, num_candidates: int) -> str:
    """The name of recall at the largest number of documents that were retrieved."""
    recall = {int(name.partition("@")[2]): name for name in figures if name.startswith("recall@")}
    return recall[max((k for k in recall if k <= num_candidates), default=min(recall))]


def _lies_above(figure: Figure, value: float | None) -> bool:
    """Whether a figure's interval lies above a value."""
    return figure.low is not None and value is not None and figure.low > value


def answer_measures(pool: PoolResult) -> list[str]:
    """Of a pool, the names of the measures of its answers; none where no answer is known."""
    return next((list(answers.measures) for answers in pool.answers.values()), [])


def percent(figure: Figure | float) -> str:
    """A share in percent; a dash where it would divide by nothing."""
    value = figure.value if isinstance(figure, Figure) else figure
    return "–" if value is None else f"{100 * value:.1f}"


def signed(figure: Figure) -> str:
    """A difference in points, with its sign."""
    return "–" if figure.value is None else f"{100 * figure.value:+.1f}"


def interval(figure: Figure, sign: str = "") -> str:
    """A figure's interval in percent, "+" for a difference's; empty where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{100 * figure.low:{sign}.1f} to {100 * figure.high:{sign}.1f}"


def _change(difference: Figure) -> str:
    """A difference in points with its interval."""
    ends = interval(difference, "+")
    return signed(difference) + (f" (95 % interval {ends})" if ends else "")


def _print_comparison(compared: Comparison) -> None:
    rows = [
        [
            *(pool, name, percent(row.here), percent(row.there)),
            *(signed(row.change), interval(row.change, "+")),
        ]
        for pool, figures in compared.pools.items()
        for name, row in figures.items()
    ]
    title = f"Against {compared.data} ({compared.num_questions:,} questions), %"
    if not rows:
        say(f"{title}: no figure that both have")
        return
    numbers = ["here", "there", "change", "95 % interval"]
    print_table(["pool", "figure", *numbers], rows, title=title, numbers=numbers)


def _kept_rows(result: EvaluationResult, pool: PoolResult) -> list[list[str]]:
    """Of a pool, a row for each selection of documents: name, threshold, figures, answers."""
    measures = answer_measures(pool)
    rows = []
    for name in dict.fromkeys([*pool.kept, *(pool.answers if measures else ())]):
        limit = result.thresholds.get(name)
        kept = [percent(figure) for figure in pool.kept.get(name, {}).values()]
        answers = [percent(pool.answers[name].measures[measure]) for measure in measures]
        shown = "" if limit is None else f"{limit:.3f}"
        rows.append([name, shown, *(kept or [""] * 3), *answers])
    return rows
