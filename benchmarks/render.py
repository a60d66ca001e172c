"""Renders the figures of benchmarks/results into the documents' tables and plots.

A document says where a table goes, and what stands between the marks is replaced:

    <!-- begin table: fast_rerank -->
    <!-- end table: fast_rerank -->

    python benchmarks/render.py           # writes README.md, docs/**/*.md and the plots in docs/
    python benchmarks/render.py --check   # changes nothing; exits 1 if one is out of date
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import architectures
import bench_bfloat16_linear
import bench_diffusion_noise
import bench_dtypes
import bench_evaluate
import bench_fast_rerank
import bench_image_tokens
import bench_int8_linear
import bench_layers
import bench_prefix_attention
import bench_prefix_bookkeeping
import bench_prefix_cache
import bench_prefix_write
import bench_ray
import bench_ray_serve
import bench_relevance_head
import bench_residual_rms_norm
import bench_rotary_embedding
import bench_serve
import bench_startup
import bench_training_step
import bench_vectors
import bench_visual_weighted_cross_entropy
import bench_vllm
import figures
import gpu_ops
import gpu_rerank
import gpu_train
import operations_table
import plan_tables
import presets_table
import readme_example
import runs.real_tables
import runs.tables
import serving_limits
import typer
import visual_weights
from common import ROOT
from plots import PLOTS
from tables import Result, Results

TABLES: dict[str, Callable[[Results], str]] = {
    "figures": figures.figures,
    "architectures": architectures.architectures_table,
    "fast_rerank": bench_fast_rerank.speed_table,
    "gpu_rerank": gpu_rerank.speed_table,
    "gpu_rerank_goals": gpu_rerank.goals_table,
    "gpu_rerank_tiers": gpu_rerank.tiers_table,
    "dtypes": bench_dtypes.dtypes_table,
    "layers": bench_layers.layers_table,
    "prefix_cache_costs": bench_prefix_cache.costs_table,
    "prefix_cache_bookkeeping": bench_prefix_bookkeeping.bookkeeping_table,
    "prefix_cache_bytes": bench_prefix_cache.bytes_table,
    "prefix_cache_tiers": bench_prefix_cache.tiers_table,
    "prefix_cache_compression": bench_prefix_cache.compression_table,
    "image_tokens": bench_image_tokens.image_tokens_table,
    "image_tokens_speed": bench_image_tokens.speed_table,
    "prefix_attention": bench_prefix_attention.table,
    "prefix_write": bench_prefix_write.table,
    "int8_linear": bench_int8_linear.table,
    "bfloat16_linear": bench_bfloat16_linear.table,
    "residual_rms_norm": bench_residual_rms_norm.table,
    "rotary_embedding": bench_rotary_embedding.table,
    "relevance_head": bench_relevance_head.table,
    "diffusion_noise": bench_diffusion_noise.table,
    "visual_weighted_cross_entropy": bench_visual_weighted_cross_entropy.table,
    "gpu_ops": gpu_ops.speed_table,
    "gpu_ops_goals": gpu_ops.goals_table,
    "visual_weights": visual_weights.visual_weights_table,
    "training_step": bench_training_step.cost_table,
    "gpu_train": gpu_train.cost_table,
    "gpu_train_goals": gpu_train.goals_table,
    "evaluate_speed": bench_evaluate.speed_table,
    "operations": operations_table.operations,
    "readme_example": readme_example.readme_example,
    "presets": presets_table.presets_table,
    "serve": bench_serve.serve_table,
    "startup": bench_startup.startup_table,
    "vllm": bench_vllm.vllm_table,
    "ray": bench_ray.speedup_table,
    "ray_serve": bench_ray_serve.ray_serve_table,
    "vectors": bench_vectors.compared_table,
    "vectors_on_disk": bench_vectors.disk_table,
    "plan_bytes": plan_tables.plan_bytes_table,
    "plan": plan_tables.plan_table,
    "serving_limits": serving_limits.serving_limits,
    **{function.__name__: function for function in runs.tables.TABLES},
    **runs.real_tables.TABLES,
}
_TABLE = re.compile(
    r"(?P<begin><!-- begin table: (?P<name>\w+) -->\n).*?(?P<end><!-- end table: (?P=name) -->)",
    re.DOTALL,
)
_MARK = re.compile(r"<!-- (?:begin|end) table: \w+ -->")


def render(text: str, results: Results) -> str:
    """`text` with every marked table filled in.

    Raises:
        ValueError: a mark without its other half, or of an unknown table.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"unknown table {name!r}; known: {', '.join(TABLES)}")
        return f"{match['begin']}{TABLES[name](results)}\n{match['end']}"

    stray = _MARK.search(_TABLE.sub("", text))
    if stray:
        raise ValueError(f"{stray[0]} has no other half")
    return _TABLE.sub(fill, text)


class _Measured(dict[str, Result]):
    """Results by name, which says what it lacks."""

    def __missing__(self, name: str) -> Result:
        raise ValueError(f"benchmarks/results/{name}.json is missing: measure it first")


def main(
    check: Annotated[bool, typer.Option(help="Change nothing; exit 1 if out of date.")] = False,
    root: Annotated[Path, typer.Option(help="The repository.")] = ROOT,
) -> None:
    """Render benchmarks/results into README.md and docs/."""

    results = _Measured(
        (path.stem, json.loads(path.read_text(encoding="utf-8")))
        for path in root.glob("benchmarks/results/*.json")
    )
    rendered = {}
    known = root / "ragvl" / "profiling" / "measured.json"
    if known.parent.is_dir():  # before the tables that are computed from it
        text = json.dumps(plan_tables.measured(results), indent=1) + "\n"
        rendered[known] = text
        if not check:
            known.write_text(text, encoding="utf-8")
            plan_tables.forget()
    for path in [*root.glob("README.md"), *sorted(root.glob("docs/**/*.md"))]:
        try:
            rendered[path] = render(path.read_text(encoding="utf-8"), results)
        except ValueError as error:
            raise SystemExit(f"{path}: {error}") from error
    for name, plot in PLOTS.items():
        drawn = plot(results)
        if drawn is not None:
            rendered[root / "docs" / f"{name}.svg"] = drawn

    outdated = False
    for path, text in rendered.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        outdated = True
        print(f"{path}: {'out of date; run `make tables`' if check else 'rendered'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and outdated:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
