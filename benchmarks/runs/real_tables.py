"""Tables of the real world: its sets and retriever, and what was measured, `real_<set>.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from real.layout import SETS, SPLITS
from runs.tables import EVIDENCE, percent_between
from tables import NOT_MEASURED, Results, table, unmeasured

from ragvl.evaluation.result import EvaluationResult, Figure, PoolResult, from_json
from ragvl.evaluation.tables import found_by_order, interval, percent, retrieval_remarks, signed

_ORDERS = ("chance", "picture", "caption", "fused", "reranker alone", "reranked", "ceiling")
_RERANKERS = {"reranker": "real", "image_tokens": "trained", "image_tokens_control": "control"}
_MEASURES = ("recall@1", "recall@2", "recall@5", "recall@10", "recall@20", "mrr")


def real_sets(results: Results) -> str:
    """How many questions and pictures the real sets have, by split."""
    made = results["real_sets"]
    rows = [
        [
            f"`{name}`",
            *(f"{of[split][what]:,}" for split in SPLITS for what in ("questions", "pictures")),
        ]
        for name, of in made["sets"].items()
    ]
    pairs = ", ".join(f"{count:,} of {source}" for source, count in made["pairs"].items())
    header = [f"{split}: {what}" for split in SPLITS for what in ("questions", "pictures")]
    return table(["set", *header], rows, f"Pairs of picture and text of the train splits: {pairs}.")


def real_retriever(results: Results) -> str:
    """What training adds to the real world's dual encoder."""
    made = results["real_retriever"]
    rows = [
        ["zero-shot: classes by their names", percent(made["zero_shot"])],
        ["projection trained", percent(made["trained"])],
    ]
    for part, name in {"unseen": "pairs that are held out", "val": "stamps of val"}.items():
        if part in made:
            rows.append([f"of {name} alone: before the tower is", percent(made[f"{part}_first"])])
            rows.append([f"of {name} alone: tower trained", percent(made[part])])
    return table(
        ["dual encoder", "found first"],
        rows,
        f"Percent of the texts of {made['held_out']:,} held-out pictures whose own picture is the "
        f"most similar of all these; trained on {made['pairs']:,} pairs. The weight of what was "
        "trained is chosen on the same pictures.",
    )


def real(results: Results) -> str:
    """Of each set of real pictures: recall@1 of every order, and what reranking gains."""
    header = ["set", "questions", "pictures", *_ORDERS, "gain by reranking", "retriever's weight"]
    rows = []
    for name in SETS:
        result = _evaluation(results, name)
        if result is None:
            rows.append([name, *[NOT_MEASURED] * (len(header) - 1)])
            continue
        pool = _pool(result)
        # Where the retriever's order does not count, the reranker's is its own
        orders = {"reranker alone": pool.reranked, **found_by_order(pool)}
        rows.append(
            [
                *(name, f"{result.num_questions:,}", f"{pool.num_documents:,}"),
                *(percent_between(_of(orders, order, "recall@1")) for order in _ORDERS),
                _change(pool.gain["recall@1"]),
                f"{result.models.retriever_weight or 0:.3g}",
            ]
        )
    return table(
        header,
        rows,
        "Gold documents that are first, percent with 95 % intervals; the gain in points, question "
        "by question. The ceiling is what the best order of the candidates would have. The weight "
        'is how much the retriever\'s order counts in "reranked", estimated on val.',
    )


def real_set(name: str, results: Results) -> str:
    """Of one set: where each order has the gold documents, what was kept, and the answers."""
    header = ["order", *_MEASURES]
    result = _evaluation(results, name)
    if result is None:
        return table(header, [["any", *[NOT_MEASURED] * len(_MEASURES)]])
    pool = _pool(result)
    orders = found_by_order(pool)
    rows = [
        [order, *(percent_between(figures.get(measure)) for measure in _MEASURES)]
        for order, figures in orders.items()
    ]
    rows.append(["gain by reranking", *(_change(pool.gain[measure]) for measure in _MEASURES)])
    settings = result.settings
    notes = [
        f"{result.num_questions:,} questions, {pool.num_documents:,} documents, "
        f"{settings.num_candidates} candidates."
    ]
    remarks = retrieval_remarks(pool, settings.num_candidates)
    notes += [f"{line[0].upper()}{line[1:]}." for line in remarks]
    return "\n\n".join([table(header, rows, " ".join(notes)), _kept(result, pool)])


def _kept(result: EvaluationResult, pool: PoolResult) -> str:
    """What was kept for the generator, and how many answers are right from it."""
    rows = []
    for name in dict.fromkeys([*pool.kept, *pool.answers]):
        limit, kept = result.thresholds.get(name), pool.kept.get(name)
        measures = pool.answers[name].measures if name in pool.answers else {}
        rows.append(
            [
                EVIDENCE.get(name, name),
                "" if limit is None else f"{limit:.3f}",
                *(
                    "" if kept is None else percent_between(kept[measure])
                    for measure in ("precision", "recall", "f1")
                ),
                percent_between(next(iter(measures.values()), None)),
            ]
        )
    return table(
        ["kept", "relevance from", "precision", "recall", "F1", "answers right"],
        rows,
        f"At most {result.settings.top_k} documents are kept.",
    )


def _evaluation(results: Results, name: str) -> EvaluationResult | None:
    found = f"real_{name}"
    return from_json(EvaluationResult, results[found]) if found in results else None


def _pool(result: EvaluationResult) -> PoolResult:
    return result.pools[result.first_pool]


def _of(orders: Mapping[str, Mapping[str, Figure]], order: str, measure: str) -> Figure | None:
    return orders.get(order, {}).get(measure)


def _change(gain: Figure) -> str:
    ends = interval(gain, "+")
    return f"{signed(gain)} ({ends})" if ends else signed(gain)


def known_things(results: Results) -> str:
    """Of `blind`: how many things are found whose names the tower was taught, and of the others."""
    header = ["a thing's name", "questions", "such as", "zero-shot", "trained"]
    result = results.get("real_known_things")
    if result is None:
        return unmeasured(header, 1)
    rows = [
        [
            _closeness(row["most"], row["least"]),
            f"{row['questions']:,}",
            ", ".join(row["things"]),
            percent(row["zero_shot"]),
            percent(row["trained"]),
        ]
        for row in result["rows"]
    ]
    return table(
        header,
        rows,
        f"Percent of questions of which a right picture is first of {result['pictures']:,}, by "
        "pictures alone. How close a name is to the closest of ImageNet's is their cosine by the "
        "text encoder.",
    )


def _closeness(most: float | None, least: float | None) -> str:
    if most is None:
        return f"is a class's, or nearly ({least} or more)"
    return f"below {most}" if least is None else f"{least} to {most}"


def image_tokens(results: Results) -> str:
    """Of some real sets: what prefixes with a quarter of a picture's tokens cost."""
    header = [
        "set",
        "reranker",
        "tokens",
        "numbers",
        "bytes of a document",
        "recall@1",
        "mrr",
        "F1",
    ]
    result = results.get("image_tokens_real")
    if result is None:
        return unmeasured(header, 4)
    whole = {}
    rows = []
    for row in result["rows"]:
        size = row["bytes_per_document"] / whole.setdefault(row["set"], row["bytes_per_document"])
        rows.append(
            [
                row["set"],
                _RERANKERS[row["reranker"]],
                "all" if row["share"] == 1 else f"1/{1 / row['share']:g}",
                row["compression"] or "exact",
                f"{100 * size:.0f} %",
                *(percent_between(Figure(**row[name])) for name in ("recall@1", "mrr", "f1")),
            ]
        )
    rows.sort(key=lambda row: row[0])
    (questions,) = {row["questions"] for row in result["rows"]}
    return table(
        header,
        rows,
        f"{questions} questions of each set, {result['candidates']} candidates each, in bfloat16; "
        "percent with 95 % intervals. `trained` is the real reranker after "
        f"{result['training_steps']} steps more with a quarter of the tokens, `control` after as "
        "many with all.",
    )


TABLES: dict[str, Callable[[Results], str]] = {
    "real": real,
    "real_sets": real_sets,
    "real_retriever": real_retriever,
    "real_known_things": known_things,
    "image_tokens_real": image_tokens,
    **{f"real_{name}": partial(real_set, name) for name in SETS},
}
