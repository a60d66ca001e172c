"""What it costs to keep a share of pictures' tokens, by how they are chosen, and trained for it.

On the demo's world, with the tiny reranker that comes along: figures of a ranking of what its
retriever finds, and how far scores differ from those of whole prefixes. `unlike` is ragvl's choice
(`PrefixCache(image_tokens=...)`); what it is compared with is here alone.

    python benchmarks/bench_image_tokens.py train --work runs/image_tokens
    python benchmarks/bench_image_tokens.py train --work runs/image_tokens --share 1  # the control
    python benchmarks/bench_image_tokens.py measure --work runs/image_tokens

What it saves is measured on a larger model of random weights, of pictures of 576 tokens:

    python benchmarks/bench_image_tokens.py speed  # about ten minutes on two CPU cores
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest.mock import patch

import torch
import typer
from bench_prefix_cache import bytes_held, compare_warm
from common import save
from gpu import goal
from models import write_model
from shapes import SHAPES
from tables import Results, goals, times, unmeasured
from tables import table as markdown
from torch import Tensor
from workload import fitting_questions, write_documents

from ragvl import PrefixCache, Reranker
from ragvl.data.document import Document
from ragvl.data.query import Query
from ragvl.data.questions import Question
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.demo.run import NUM_PLACES, WORLD_SEED
from ragvl.evaluation.metrics import Figure, ranking_figures, selection_figures
from ragvl.mllm import MLLM, Prefilled, Prompt
from ragvl.mllm import decoder as decoder_module
from ragvl.ops.int8_linear import slow_products_problem
from ragvl.prefix_cache.building import PrefixBuilder
from ragvl.prefix_cache.image_tokens import kept_tokens
from ragvl.reranker import cached_prefixes
from ragvl.reranker.heads import relevance
from ragvl.retriever import DualEncoder, ReciprocalRank
from ragvl.retriever import search_fused as search
from ragvl.training.command import run
from ragvl.training.ranking import index_documents, ranking_samples, write_ranking

SHARES = (0.5, 0.25, 0.125)
TRAINED = 0.25
ASSETS = files("ragvl") / "assets"
SHIPPED = str(ASSETS / "tiny-reranker")
FIGURES = ("recall@1", "recall@2", "f1")
# Of a picture's tokens, and how numbers are kept; the smallest last
SETTINGS = tuple((share, numbers) for share in (1.0, TRAINED) for numbers in (None, "int8", "int4"))
_SUFFIX_TOKENS = 30
_TRAINING_PLACES = 800
_CANDIDATES = 20
app = typer.Typer(no_args_is_help=True)
Work = Annotated[Path, typer.Option(help="Where rerankers are trained, and the worlds are.")]


# --- choices ------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """One layer of a whole prefix of T tokens: (1, H or G, T, D) each.

    Attributes:
        query: queries.
        scale: what scores are multiplied by.
        keys: keys.
        values: values.
    """

    query: Tensor
    scale: float
    keys: Tensor
    values: Tensor


class Chosen(NamedTuple):
    """What is kept of a prefix.

    Attributes:
        places: of each layer, the picture's tokens that are kept, from its first: (L, count).
        values: of each layer, those of all of the prefix's tokens.
    """

    places: Tensor
    values: Sequence[Tensor]


class Prefix(NamedTuple):
    """A whole prefix with one picture, whose tokens are one after the other.

    Attributes:
        ids: its tokens.
        first: the picture's first.
        size: how many the picture has.
        layers: what was computed.
    """

    ids: Sequence[int]
    first: int
    size: int
    layers: Sequence[Layer]

    def with_values(self, places: Tensor) -> Chosen:
        """These places in all layers or in each, and values as they were computed."""
        every = places.expand(len(self.layers), -1)
        return Chosen(every, [layer.values for layer in self.layers])

    def unlike(self, layers: Sequence[Layer], count: int) -> Tensor:
        """(count,): ragvl's choice by the keys of some layers."""
        own = range(self.first, self.first + self.size)
        keys = [layer.keys[0][:, own] for layer in layers]
        return kept_tokens([0] * self.size, 0, [self.size], keys, count / self.size)


def random(prefix: Prefix, count: int) -> Chosen:
    """By chance, of each document another."""
    generator = torch.Generator().manual_seed(sum(prefix.ids))
    return prefix.with_values(torch.randperm(prefix.size, generator=generator)[:count])


def evenly(prefix: Prefix, count: int) -> Chosen:
    """Every so many."""
    step = prefix.size / count
    return prefix.with_values(torch.tensor([round((i + 0.5) * step - 0.5) for i in range(count)]))


def attended(prefix: Prefix, count: int) -> Chosen:
    """What the text behind the picture pays the most attention to, over layers and heads."""
    length = len(prefix.ids)
    rows = torch.arange(prefix.first + prefix.size, length)
    unseen = torch.arange(length) > rows[:, None]
    paid = torch.zeros(length)
    for query, scale, keys, _ in prefix.layers:
        scores = scale * query[0][:, rows] @ keys[0][:, :length].mT
        paid += scores.masked_fill(unseen, -torch.inf).softmax(-1).sum((0, 1))
    own = paid[prefix.first : prefix.first + prefix.size]
    return prefix.with_values(own.argsort(descending=True, stable=True)[:count])


def merged(prefix: Prefix, count: int) -> Chosen:
    """ragvl's choice; each token gets the mean of the values of those nearest to it."""
    own = range(prefix.first, prefix.first + prefix.size)
    keys = torch.cat([x.keys[0][:, own].transpose(0, 1).flatten(1) for x in prefix.layers], 1)
    places = prefix.unlike(prefix.layers, count)
    nearest = torch.cdist(keys, keys[places]).argmin(1)
    values = []
    for layer in prefix.layers:
        changed = layer.values.clone()
        for number, place in enumerate(places.tolist()):
            group = prefix.first + (nearest == number).nonzero()[:, 0]
            changed[:, :, prefix.first + place] = layer.values[:, :, group].mean(2)
        values.append(changed)
    return Chosen(places.expand(len(values), -1), values)


def by_layer(prefix: Prefix, count: int) -> Chosen:
    """As ragvl chooses, of each layer by its own keys."""
    each = [prefix.unlike([layer], count) for layer in prefix.layers]
    return prefix.with_values(torch.stack(each))


CHOICES: dict[str, Callable[[Prefix, int], Chosen] | None] = {
    "unlike": None,  # ragvl's own
    "unlike, by layer": by_layer,
    "unlike, merged": merged,
    "evenly": evenly,
    "attended": attended,
    "random": random,
}


# --- measuring ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Questions with what the demo's retriever finds for them.

    Attributes:
        questions: the questions.
        found: ids of each one's candidates.
        pairs: what is scored, question by question.
    """

    questions: Sequence[Question]
    found: Sequence[Sequence[str]]
    pairs: Sequence[tuple[Query, Document]]

    @classmethod
    def drawn(cls, folder: Path, count: int, num_places: int = NUM_PLACES) -> Pairs:
        """Of the demo's test world."""
        write_world(folder, Places(), counts={"test": num_places}, seed=WORLD_SEED)
        source = WebQA(folder, split="test")
        encoder = DualEncoder.from_pretrained(str(ASSETS / "tiny-retriever"), device="cpu")
        views = index_documents(source, {"picture": encoder})
        asked = source.questions[:count]
        hits = search(views, ReciprocalRank(), [one.query for one in asked], _CANDIDATES)
        found = [[id for id, _ in one] for one in hits]
        documents = {id: source.document(id) for ids in found for id in ids}
        pairs = [
            (q.query, documents[id]) for q, ids in zip(asked, found, strict=True) for id in ids
        ]
        return cls(asked, found, pairs)

    def figures(self, raw: Tensor) -> dict[str, dict[str, float | None]]:
        """Of raw scores: the ranking, and the two documents that are kept from even odds on."""
        gold = [question.gold for question in self.questions]
        ranked, kept = [], []
        for ids, row in zip(self.found, raw.view(len(gold), -1), strict=True):
            order = row.argsort(descending=True, stable=True).tolist()
            ranked.append([ids[i] for i in order])
            kept.append([ids[i] for i in order[:2] if row[i] >= 0])
        figures = ranking_figures(ranked, gold, recall_at=(1, 2))
        figures["f1"] = selection_figures(kept, gold)["f1"]
        return {name: _plain(figures[name]) for name in FIGURES}


def _plain(figure: Figure) -> dict[str, float | None]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}


class Cases:
    """One reranker, whose whole prefixes are computed once for all cases.

    Args:
        pairs: what is scored.
        folder: the reranker.
        name: what to call it.
    """

    def __init__(self, pairs: Pairs, folder: str, name: str) -> None:
        self._pairs, self._name = pairs, name
        self._mllm = MLLM.from_pretrained(folder, device="cpu", dtype="float32")
        self._known: dict[object, tuple[list[Layer], Prefilled]] = {}
        self._pictures: dict[str, Any] = {}
        self._whole: Tensor | None = None

    def row(
        self, share: float = 1.0, choice: str = "unlike", compression: Any = None
    ) -> dict[str, Any]:
        """What a cache of these settings costs."""
        cache = PrefixCache("1GiB", image_tokens=share, compression=compression)
        with self._computed_once(CHOICES[choice]):
            reranker = Reranker(self._mllm, prefix_cache=cache)
            raw = reranker.score(self._pairs.pairs, raw=True, progress=False)
        if self._whole is None:
            self._whole = raw
        difference = (relevance(raw) - relevance(self._whole)).abs()
        row = {
            "reranker": self._name,
            "share": share,
            "choice": choice,
            "compression": compression,
            "bytes_per_document": cache.statistics()["device"].bytes / len(cache),
            "mean_score_difference": difference.mean().item(),
            "max_score_difference": difference.max().item(),
            **self._pairs.figures(raw),
        }
        typer.echo(str(row))
        return row

    @contextlib.contextmanager
    def _computed_once(self, choose: Callable[[Prefix, int], Chosen] | None) -> Iterator[None]:
        """Whole prefixes are those of the first time, of which `choose` says what is kept."""
        whole = MLLM.prefill
        encode = cached_prefixes.encode_picture

        def layers_of(prefix: Prompt) -> tuple[list[Layer], Prefilled]:
            key = tuple(prefix.input_ids), tuple(id(image) for image in prefix.images)
            if key not in self._known:
                queries: list[tuple[Tensor, float]] = []
                held: list[tuple[Tensor, Tensor]] = []
                with _noting_queries(queries):
                    (done,) = whole(self._mllm, [prefix], lambda _, *layer: held.append(layer))
                layers = [Layer(*q, *kv) for q, kv in zip(queries, held, strict=True)]
                self._known[key] = layers, done
            return self._known[key]

        def prefill(
            mllm: MLLM, prefixes: Sequence[Prompt], write: Any, features: Any = None
        ) -> list[Prefilled]:
            if len(prefixes) > 1 or not prefixes[0].images:
                return whole(mllm, prefixes, write, features)
            layers, done = layers_of(prefixes[0])
            for place, layer in enumerate(layers):
                write(place, layer.keys, layer.values)
            return [done]

        def prefill_fewer(
            builder: Any, prompt: Prompt, pages: Sequence[int], sizes: Sequence[int], _: Any
        ) -> Prefilled:
            assert choose is not None
            ids, token = prompt.input_ids, self._mllm.prompting.image_token_id
            layers, done = layers_of(prompt)
            prefix = Prefix(ids, ids.index(token), sizes[0], layers)
            chosen = choose(prefix, sizes[0] - builder.num_dropped(sizes))
            text = torch.tensor([i for i, id in enumerate(ids) if id != token])
            write = builder._pool.writer([pages], [len(ids) - builder.num_dropped(sizes)])
            for place, (layer, own) in enumerate(zip(layers, chosen.places, strict=True)):
                kept = torch.cat([text, own + prefix.first]).sort().values
                values = chosen.values[place].index_select(2, kept)
                write(place, layer.keys.index_select(2, kept), values)
            return done

        def encode_picture(prompting: Any, picture: Any) -> Any:
            digest = picture.digest()
            if digest not in self._pictures:
                self._pictures[digest] = encode(prompting, picture)
            return self._pictures[digest]

        with contextlib.ExitStack() as stack:
            stack.enter_context(patch.object(MLLM, "prefill", prefill))
            stack.enter_context(patch.object(cached_prefixes, "encode_picture", encode_picture))
            if choose is not None:
                stack.enter_context(patch.object(PrefixBuilder, "_prefill_fewer", prefill_fewer))
            yield


@contextlib.contextmanager
def _noting_queries(queries: list[tuple[Tensor, float]]) -> Iterator[None]:
    """Has a prefill compute all queries, and notes them with the scale of their scores."""
    prefill = decoder_module._Prefill
    attend = prefill.attend

    def noting(run: Any, module: Any, query: Tensor, *others: Any) -> Any:
        queries.append((query, others[-1]["scaling"]))
        return attend(run, module, query, *others)

    with patch.object(prefill, "attend", noting), patch.object(prefill, "skips_queries", False):
        yield


def measured(pairs: Pairs, trained: str, control: str) -> dict[str, Any]:
    """Every choice, what was trained for fewer tokens, and what was trained as long with all."""
    common: list[dict[str, Any]] = [
        {"share": share, "compression": compression} for share, compression in SETTINGS
    ]
    own = Cases(pairs, trained, "trained")
    of_trained = [own.row(**settings) for settings in common]
    del own  # its prefixes take a gigabyte
    of_trained.append(Cases(pairs, control, "control").row(1.0, compression=None))
    shipped = Cases(pairs, SHIPPED, "shipped")
    rows = [shipped.row(**settings) for settings in common]
    rows += [
        shipped.row(share, choice)
        for choice in CHOICES
        for share in SHARES
        if (share, choice) != (TRAINED, "unlike")
    ]
    rows.sort(key=_order)
    return {
        "questions": len(pairs.questions),
        "candidates": _CANDIDATES,
        "rows": [*rows, *of_trained],
    }


def _order(row: dict[str, Any]) -> tuple[object, ...]:
    """More tokens first, then as choices are listed, exact numbers before compressed ones."""
    return -row["share"], [*CHOICES].index(row["choice"]), row["compression"] or ""


@app.command()
def train(
    work: Work,
    steps: Annotated[int, typer.Option(help="Of 64 prompts each.")] = 200,
    share: Annotated[float, typer.Option(help="Of pictures' tokens.")] = TRAINED,
) -> None:
    """Trains the shipped reranker on: with a share of pictures' tokens, or as before with 1."""
    world, ranking = work / "world", work / "ranking.jsonl"
    if not ranking.exists():
        counts = {"train": _TRAINING_PLACES}
        write_world(world, Places(), counts=counts, questions_each=12, seed=WORLD_SEED)
        source = WebQA(world, split="train")
        encoder = DualEncoder.from_pretrained(str(ASSETS / "tiny-retriever"), device="cpu")
        views = index_documents(source, {"picture": encoder})
        write_ranking(ranking_samples(source, views, labelled_share=0.5), ranking)
    run(
        "reranker",
        [
            f"--model={SHIPPED}",
            f"--data={world}",
            f"--ranking={ranking}",
            f"--output_dir={work / f'trained_{share:g}'}",
            "--config=tiny-reranker",
            "--learning_rate=5e-5",
            f"--max_steps={steps}",
            f"--image_tokens={share}",
            "--eval_strategy=no",
            "--disable_tqdm=true",
            "--save_steps=1000",
            "--logging_steps=10",
            "--resume_from_checkpoint=last",
        ],
        report=typer.echo,
    )


@app.command()
def measure(
    work: Work, questions: Annotated[int, typer.Option(help="Only the first so many.")] = 200
) -> None:
    """Measures every choice, and what was trained; writes benchmarks/results/image_tokens.json."""
    pairs = Pairs.drawn(work / "test", questions)
    trained = work / f"trained_{TRAINED:g}"
    state = json.loads((trained / "trainer_state.json").read_text())
    result = measured(pairs, str(trained), str(work / "trained_1"))
    result["training_steps"] = state["global_step"]
    typer.echo(f"wrote {save('image_tokens', result, torch.device('cpu'))}")


# --- speed --------------------------------------------------------------------------------------

# The model's; int8 where the CPU multiplies it. Bytes are those of the last.
DTYPES = ("float32", *([] if slow_products_problem() else ["int8"]), "bfloat16")


def measured_speed(model: str, image_tokens: int, *, documents: int, rounds: int) -> dict[str, Any]:
    """Bytes of a document and the speed of a warm call, all tokens and a quarter of them.

    Args:
        model: a name in `SHAPES`.
        image_tokens: what a picture becomes, a square number.
        documents: candidates of a query.
        rounds: samples of each setting, a question each.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = write_model(folder / "model", SHAPES[model], image_tokens=image_tokens)
        candidates = write_documents(folder, documents)
        speeds: dict[str, dict[str, Any]] = {}
        for dtype in DTYPES:
            mllm = MLLM.from_pretrained(folder / "model", device="cpu", dtype=dtype, layers="fused")
            plain = Reranker(mllm, prefix_cache=None)
            questions = fitting_questions(plain, candidates[0], rounds + 3, _SUFFIX_TOKENS)
            rerankers = {
                (share, compression): Reranker(
                    mllm, prefix_cache=PrefixCache(image_tokens=share, compression=compression)
                )
                for share, compression in SETTINGS
            }
            named = {str(setting): reranker for setting, reranker in rerankers.items()}
            compared = compare_warm(named, candidates, questions, rounds)
            speeds[dtype] = {name: figures["speed"] for name, figures in compared.items()}
        prefix, suffix = plain.split_prompt(questions[0], candidates[0])
        per_token = mllm.kv_layout.bytes_per_token() / mllm.dtype.itemsize * 2  # in bfloat16
        whole = len(prefix) * per_token * documents
        rows = [
            {
                "share": setting[0],
                "compression": setting[1],
                "smaller_than_bfloat16": whole / bytes_held(reranker),
                "speed": {dtype: speeds[dtype][str(setting)] for dtype in DTYPES},
            }
            for setting, reranker in rerankers.items()
        ]
    smallest = rows[-1]
    size = smallest["smaller_than_bfloat16"]
    return {
        "model": model,
        "parameters": parameters,
        "image_tokens": image_tokens,
        "candidates": documents,
        "suffix_tokens": len(suffix),
        "rounds": rounds,
        "rows": rows,
        "goals": [
            goal("1/4, int4", "smaller than bfloat16", size, at_least=14),
            *(
                goal("1/4, int4", f"speed, warm, {dtype}", speed["median"], at_least=1.3)
                for dtype, speed in smallest["speed"].items()
            ),
        ],
    }


@app.command()
def speed(
    model: Annotated[str, typer.Option(help=f"Of {', '.join(SHAPES)}.")] = "mid",
    image_tokens: Annotated[int, typer.Option(help="What a picture becomes, a square.")] = 576,
    documents: Annotated[int, typer.Option(help="Candidates of a query.")] = 20,
    rounds: Annotated[int, typer.Option(min=2, max=15)] = 9,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; results/.")] = None,
) -> None:
    """Measures bytes and warm calls at 576 image tokens; writes image_tokens_speed_cpu.json."""
    result = measured_speed(model, image_tokens, documents=documents, rounds=rounds)
    for row in result["rows"]:
        typer.echo(str(row))
    typer.echo(f"wrote {save('image_tokens_speed_cpu', result, torch.device('cpu'), out)}")


# --- tables -------------------------------------------------------------------------------------


def image_tokens_table(results: Results) -> str:
    """Bytes, errors and figures of each way to make prefixes smaller."""
    result = results["image_tokens"]
    rows = result["rows"]
    whole = {row["reranker"]: row for row in rows if row["share"] == 1 and not row["compression"]}
    header = ["reranker", "tokens", "chosen", "numbers", "bytes of a document"]
    header += ["mean difference of a score", "largest", "recall@1", "recall@2", "F1"]
    cells = []
    for row in rows:
        size = row["bytes_per_document"] / whole[row["reranker"]]["bytes_per_document"]
        cells.append(
            [
                row["reranker"],
                _share(row["share"]),
                "" if row["share"] == 1 else row["choice"],
                row["compression"] or "exact",
                f"{100 * size:.0f} %",
                f"{row['mean_score_difference']:.1e}",
                f"{row['max_score_difference']:.1e}",
                *(f"{100 * row[name]['value']:.1f} %" for name in FIGURES),
            ]
        )
    low, high = (100 * whole["shipped"]["recall@1"][end] for end in ("low", "high"))
    return markdown(
        header,
        cells,
        f"The demo's world: {result['questions']} questions, {result['candidates']} candidates "
        "each, pictures of 36 tokens, pages of 16 (in int4 32). Differences are from the same "
        f"reranker's whole prefixes. The first recall@1 lies within {low:.1f} and {high:.1f} % "
        f"(95 %). `trained` is the shipped one after {result['training_steps']} steps of 64 "
        "prompts with 1/4 of the tokens, `control` after as many with all.",
    )


def speed_table(results: Results) -> str:
    """How much smaller and faster fewer tokens and compression make known documents."""
    header = ["tokens", "numbers", "smaller than bfloat16"]
    result = results.get("image_tokens_speed_cpu")
    if result is None:
        return unmeasured([*header, "speed, warm"], 2)
    dtypes = list(result["rows"][0]["speed"])
    header += [f"speed, warm, {dtype}" for dtype in dtypes]
    rows = [
        [
            _share(row["share"]),
            row["compression"] or "exact",
            f"{row['smaller_than_bfloat16']:.1f}x",
            *(times(row["speed"][dtype]) for dtype in dtypes),
        ]
        for row in result["rows"]
    ]
    note = (
        f"{result['machine']['device']}: a LLaVA of {result['parameters'] / 1e6:.0f} M random "
        f"weights, {result['candidates']} candidates of {result['image_tokens']} image tokens, "
        f"{result['suffix_tokens']} tokens after the prefix. Bytes are of whole pages, the exact "
        "ones in bfloat16. Speed is over all tokens, exact, in the same dtype: median (lowest to "
        f'highest) of {result["rounds"]} rounds in one run, with `layers="fused"`.'
    )
    return "\n\n".join([markdown(header, rows, note), goals([result])])


def _share(share: float) -> str:
    return "all" if share == 1 else f"1/{1 / share:g}"


if __name__ == "__main__":
    app()
