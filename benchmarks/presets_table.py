"""The documents' table of presets, from the presets themselves."""

from __future__ import annotations

from tables import Results, table

from ragvl.reranker import PRESETS, Answers, Preset, PromptTemplate, resolve_template


def presets_table(_: Results) -> str:
    """Each preset: what it takes, what it reads and where it cuts."""
    header = ["preset", "documents", "queries", "score", "pixels", "tokens", "prefix reused"]
    return table(header, map(_row, PRESETS.values()))


def _row(preset: Preset) -> list[str]:
    template = resolve_template(preset.template)
    assert isinstance(template, PromptTemplate)
    size = preset.processor_settings.get("size", {})
    limits = (size.get("longest_edge"), preset.lengths.prompt)
    return [
        f"[`{preset.name}`]({preset.source})",
        _documents(template),
        _queries(template),
        _score(preset),
        *("the checkpoint's" if limit is None else f"≤ {limit:,}" for limit in limits),
        "no" if template.query_first else "yes",
    ]


def _documents(template: PromptTemplate) -> str:
    if not any("{document}" in variant.text for variant in template.variants):
        return "a picture"
    return "texts and pictures, mixed" if template.mixes else "a text or a picture"


def _queries(template: PromptTemplate) -> str:
    kinds = "a text"
    if template.query_pictures:
        kinds = "a text, a picture or both" if template.mixes else "a text or a picture"
    return f"{kinds}; an instruction" if template.takes_instruction else kinds


def _score(preset: Preset) -> str:
    head = preset.head
    if isinstance(head, Answers):
        return " against ".join(head.words)
    return f"a network of {len(head.layers)} layers"
