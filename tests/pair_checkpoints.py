"""Tiny rerankers in sentence-transformers' format, saved by sentence-transformers itself."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer, transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers.processing_utils import ProcessorMixin

from ragvl.mllm.loading import without_video

_INSTRUCTION = "Given a search query, retrieve what answers it."
# In the shape of published ones: macros, and a default for the system turn
_SIDES = """\
{%- macro side(role) -%}
{%- for message in messages if message.role == role -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ IMAGE }}{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endfor -%}
{%- endmacro -%}
{%- set asked = messages | selectattr('role', 'eq', 'system') | list -%}
"""
_QUERY_FIRST = """\
<user><Instruct>: {% if asked %}{{ asked[0].content[0].text }}{% else %}INSTRUCTION{% endif %}
<Query>: {{ side('query') }}
<Document>: {{ side('document') }}
{% if add_generation_prompt %}Answer:{% endif %}"""
_DOCUMENT_FIRST = """\
{% if asked %}{{ asked[0].content[0].text }}
{% endif %}**Document**:
{{ side('document') }}
**Query**:
{{ side('query') }}
{% if add_generation_prompt %}Answer:{% endif %}"""
PICTURES = {
    "gemma3": "'<start_of_image>'",
    "llava": "'<image>\n'",
    "qwen2_vl": "'<|vision_start|><|image_pad|><|vision_end|>'",
    "qwen3_vl": "'<|vision_start|><|image_pad|><|vision_end|>'",
    "qwen3_5": "'<|vision_start|><|image_pad|><|vision_end|>'",
}


def pair_template(architecture: str, *, document_first: bool) -> str:
    """A chat template of the roles query and document."""
    body = _SIDES + (_DOCUMENT_FIRST if document_first else _QUERY_FIRST)
    start = "{{ bos_token }}" if architecture == "gemma3" else ""
    picture = PICTURES[architecture]
    return start + body.replace("{{ IMAGE }}", f"{{{{ {picture} }}}}").replace(
        "INSTRUCTION", _INSTRUCTION
    )


def with_template(base: Path, folder: Path, template: str) -> Path:
    """A copy of a tiny checkpoint with another chat template."""
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@contextmanager
def no_videos() -> Iterator[None]:
    """Has sentence-transformers load processors without their half for videos.

    That half needs torchvision; the rest is the processor as it is.
    """

    class Processors:
        @staticmethod
        def from_pretrained(path: str, **kwargs: Any) -> ProcessorMixin:
            saved, _ = ProcessorMixin.get_processor_dict(str(path))
            kind = getattr(transformers, saved["processor_class"])
            if "video_processor" in kind.get_attributes():
                kind = without_video(kind)
            return kind.from_pretrained(path, **kwargs)

    with patch.object(transformer, "AutoProcessor", Processors):
        yield


def logit_score(true_id: int, false_id: int | None = None) -> list[nn.Module]:
    """The head that reads answer tokens."""
    return [LogitScore(true_id, false_id)]


def dense(pooling: str, *sizes: int, activation: nn.Module | None = None) -> list[nn.Module]:
    """A score network over pooled states, of layers of these sizes."""
    torch.manual_seed(0)
    last = len(sizes) - 2
    return [
        Pooling(sizes[0], pooling),
        *(
            Dense(
                size,
                following,
                activation_function=nn.Identity() if i == last else activation,
                module_output_name="scores" if i == last else "sentence_embedding",
            )
            for i, (size, following) in enumerate(itertools.pairwise(sizes))
        ),
    ]


def save_cross_encoder(
    base: Path, folder: Path, head: list[nn.Module], *, task: str | None = None, **options: Any
) -> Path:
    """A folder in sentence-transformers' format.

    Args:
        base: the checkpoint, with its chat template.
        folder: where to.
        head: the modules behind the Transformer.
        task: its `transformer_task`; by default what the head needs.
        options: of `CrossEncoder`; `processing_kwargs` of its Transformer.
    """
    task = task or ("any-to-any" if isinstance(head[0], LogitScore) else "feature-extraction")
    processing = options.pop("processing_kwargs", None)
    with no_videos():
        first = Transformer(str(base), transformer_task=task, processing_kwargs=processing)
        model = CrossEncoder(modules=[first, *head], device="cpu", **options)
        model.save(str(folder), create_model_card=False)
    return folder


def cross_encoder(folder: Path) -> CrossEncoder:
    """The folder as sentence-transformers loads it."""
    with no_videos():
        return CrossEncoder(str(folder), device="cpu", local_files_only=True)
