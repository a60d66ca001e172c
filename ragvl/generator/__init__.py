"""The third stage: an answer from the kept pictures."""

from __future__ import annotations

from ragvl.generator.generator import Generator
from ragvl.generator.prompt import generator_prompt

__all__ = ["Generator", "generator_prompt"]
