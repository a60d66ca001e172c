"""Published rerankers score as their authors' code does.

Each plain implementation is written from what was published (named at each), in calls of
transformers, and reads the checkpoint's files by itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from plain import picture
from safetensors.torch import load_file, save_file
from tiny_models import published as checkpoints
from tiny_models.eight import QWEN_TEMPLATE
from torch import Tensor
from transformers.processing_utils import ProcessorMixin

from ragvl import Document, Query, Reranker
from ragvl.mllm import PromptTooLongError
from ragvl.mllm.loading import without_video
from ragvl.reranker import PRESETS, Lengths, Preset
from ragvl.reranker.presets import preset_of_architecture

Side = dict[str, list]  # the "texts" and "images" of a query or a document


class Plain(Protocol):
    def logit(self, query: Side, document: Side) -> float: ...


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`published("jina_reranker_m0")` is a folder with that checkpoint's files, tiny and random."""

    @cache
    def folder(name: str) -> Path:
        return getattr(checkpoints, name)(tmp_path_factory.mktemp(name))

    return folder


def processor_of(
    folder: Path, kind: type[ProcessorMixin], **image_settings: object
) -> ProcessorMixin:
    """The folder's processor, with other settings for its pictures."""
    pictures = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder, **image_settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return without_video(kind)(pictures, tokenizer, chat_template=QWEN_TEMPLATE)


def last_state(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """(D,): what the decoder says at the prompt's end, behind its norm."""
    output = model(**inputs, use_cache=False, output_hidden_states=True)
    return output.hidden_states[-1][0, -1]


class JinaRerankerM0:
    """`compute_score` of jinaai/jina-reranker-m0, `modeling.py`."""

    def __init__(self, folder: Path, max_length: int = 10240, max_query_length: int = 512) -> None:
        self.model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
        self.score = {
            name: x
            for name, x in load_file(folder / "model.safetensors").items()
            if name.startswith("score.")
        }
        limits = {"min_pixels": 3136, "max_pixels": 602112}
        self.processor = processor_of(folder, transformers.Qwen2VLProcessor, **limits)
        self.max_length, self.max_document = max_length, max_length - max_query_length

    @torch.no_grad()
    def logit(self, query: Side, document: Side) -> float:
        image = "<|vision_start|><|image_pad|><|vision_end|>"
        query_text = image if query["images"] else query["texts"][0]
        document_text = image if document["images"] else self._cut(document["texts"][0])
        inputs = self.processor(
            text=[f"**Document**:\n{document_text}\n**Query**:\n{query_text}"],
            images=[*document["images"], *query["images"]] or None,
            return_tensors="pt",
        )
        ends = {"input_ids": 100, "attention_mask": 1, "mm_token_type_ids": 0}
        for name in ends.keys() & inputs.keys():
            end = ends[name]
            row = inputs[name][:, : self.max_length - 1]
            inputs[name] = torch.cat([row, torch.tensor([[end]])], 1)
        state = last_state(self.model, inputs)
        state = torch.relu(self.score["score.0.weight"] @ state + self.score["score.0.bias"])
        return (self.score["score.2.weight"] @ state + self.score["score.2.bias"]).item() - 2.65

    def _cut(self, text: str) -> str:
        ids = self.processor.tokenizer(text, truncation=True, max_length=self.max_document)
        if len(ids.input_ids) < self.max_document:
            return text
        return self.processor.tokenizer.decode(ids.input_ids)


class Qwen3VLReranker:
    """QwenLM/Qwen3-VL-Embedding, `src/models/qwen3_vl_reranker.py`."""

    INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
    SYSTEM = (
        "Judge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".'
    )

    def __init__(self, folder: Path, max_length: int = 10240) -> None:
        self.model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = processor_of(folder, transformers.Qwen3VLProcessor, do_resize=False)
        self.max_length = max_length

    @torch.no_grad()
    def logit(self, query: Side, document: Side, instruction: str | None = None) -> float:
        content = [{"type": "text", "text": f"<Instruct>: {instruction or self.INSTRUCTION}"}]
        content += self._content("<Query>:", query) + self._content("\n<Document>:", document)
        messages = [
            {"role": "system", "content": [{"type": "text", "text": self.SYSTEM}]},
            {"role": "user", "content": content},
        ]
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        images = [self._resized(image) for image in [*query["images"], *document["images"]]]
        inputs = self.processor(text=[text], images=images or None, return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        kept = torch.tensor([self._cut(ids[:-5]) + ids[-5:]])
        is_image = kept == self.model.config.image_token_id
        cut = {
            "input_ids": kept,
            "attention_mask": torch.ones_like(kept),
            "mm_token_type_ids": is_image.int(),
        }
        inputs |= {name: x for name, x in cut.items() if name in inputs}
        vocabulary = self.processor.tokenizer.get_vocab()
        rows = self.model.lm_head.weight
        return (
            (rows[vocabulary["yes"]] - rows[vocabulary["no"]]) @ last_state(self.model, inputs)
        ).item()

    @staticmethod
    def _content(prefix: str, side: Side) -> list[dict]:
        content: list[dict] = [{"type": "text", "text": prefix}]
        if not side["images"] and not side["texts"]:
            return [*content, {"type": "text", "text": "NULL"}]
        content += [{"type": "image", "image": image} for image in side["images"]]
        return content + [{"type": "text", "text": text} for text in side["texts"]]

    @staticmethod
    def _resized(image: Image.Image) -> Image.Image:
        """As `qwen_vl_utils.fetch_image` resizes a picture within its limits of pixels."""
        least, most, pixels = 4 * 32 * 32, 1800 * 32 * 32, image.width * image.height
        scale, to_whole = 1.0, round
        if round(image.width / 32) * round(image.height / 32) * 32 * 32 > most:
            scale, to_whole = math.sqrt(most / pixels), math.floor
        elif round(image.width / 32) * round(image.height / 32) * 32 * 32 < least:
            scale, to_whole = math.sqrt(least / pixels), math.ceil
        width, height = (to_whole(side * scale / 32) * 32 for side in image.size)
        return image.resize((width, height))

    def _cut(self, tokens: list[int]) -> list[int]:
        if len(tokens) <= self.max_length:
            return tokens
        special = set(self.processor.tokenizer.all_special_ids)
        others = self.max_length - sum(token in special for token in tokens)
        kept, count = [], 0
        for token in tokens:
            if token in special:
                kept.append(token)
            elif count < others:
                kept.append(token)
                count += 1
        return kept


class MonoQwen2VL:
    """AnswerDotAI/rerankers, `models/monovlm_ranker.py`."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = processor_of(folder, transformers.Qwen2VLProcessor)

    @torch.no_grad()
    def logit(self, query: Side, document: Side) -> float:
        asked = (
            "Assert the relevance of the previous image document to the following query, answer "
            f"True or False. The query is: {query['texts'][0]}"
        )
        content = [{"type": "image"}, {"type": "text", "text": asked}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = self.processor(text=[text], images=document["images"], return_tensors="pt")
        logits = self.model(**inputs).logits[0, -1]
        true, false = (
            self.processor.tokenizer.convert_tokens_to_ids(word) for word in ("True", "False")
        )
        return (logits[true] - logits[false]).item()


# --- what is scored ------------------------------------------------------------------------------

MILL = "A mill by the river, built of red stone."
LONG = "The mill stands by a river. It has a red roof, and two towers of white stone. " * 3


def side(*parts: str | Image.Image) -> Side:
    return {
        "texts": [part for part in parts if isinstance(part, str)],
        "images": [part for part in parts if not isinstance(part, str)],
    }


def query_of(given: Side, instruction: str | None = None) -> Query:
    text, image = "".join(given["texts"]), given["images"]
    if not text and not image:  # which must be said: with the instruction that is asked anyway
        instruction = instruction or Qwen3VLReranker.INSTRUCTION
    return Query(text or None, image[0] if image else None, instruction=instruction)


def document_of(given: Side) -> Document:
    return Document(parts=[*given["images"], *given["texts"]])


def load(folder: Path, preset: Preset | str) -> Reranker:
    return Reranker.from_pretrained(folder, preset=preset, device="cpu", dtype="float32")


def check_scores(
    reranker: Reranker,
    plain: Plain,
    pairs: Sequence[tuple[Side, Side]],
    instruction: str | None = None,
) -> None:
    """All at once, cold and then warm, are what the authors' code gives for each by itself."""
    given = [(query_of(query, instruction), document_of(document)) for query, document in pairs]
    asked = {} if instruction is None else {"instruction": instruction}
    expected = [plain.logit(query, document, **asked) for query, document in pairs]
    assert np.ptp(expected) > 0.1
    for _ in range(2):
        raw = reranker.score(given, raw=True).numpy()
        np.testing.assert_allclose(raw, expected, atol=2e-5, rtol=0)
    relevance = 1 / (1 + np.exp(-np.array(expected)))
    np.testing.assert_allclose(reranker.score(given).numpy(), relevance, atol=1e-5, rtol=0)


M0_QUERIES = [side("red roof"), side("Is it a mill?"), side(picture(3))]
M0_DOCUMENTS = [side(MILL), side(LONG), side(picture(1)), side(picture(2, 320, 200))]


def test_jina_reranker_m0(published: Callable[[str], Path]) -> None:
    folder = published("jina_reranker_m0")
    pairs = [(query, document) for query in M0_QUERIES for document in M0_DOCUMENTS]
    check_scores(load(folder, "jina-reranker-m0"), JinaRerankerM0(folder), pairs)


ROLES = """\
{%- macro side(role) -%}
{%- for message in messages if message.role == role -%}{%- for part in message.content -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}
{%- endfor -%}{%- endfor -%}
{%- endmacro -%}
**Document**:\n{{ side('document') }}\n**Query**:\n{{ side('query') }}"""


@pytest.mark.slow
def test_jina_reranker_m0_is_known_by_its_files(
    published: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = published("jina_reranker_m0")
    # as sentence-transformers asks it: by roles, and by code of its own for the rest
    newer = shutil.copytree(folder, tmp_path / "newer")
    (newer / "chat_template.json").write_text(json.dumps({"chat_template": ROLES}))
    (newer / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "its.Own"}]')
    expected = load(folder, "jina-reranker-m0").score([("red roof", picture(1))])
    for known in (folder, newer):
        reranker = load(known, "auto")
        assert reranker.template_name == "jina-reranker-m0"
        assert reranker.score([("red roof", picture(1))]) == expected


def test_only_weights_that_nobody_reads_are_reported(
    published: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(
        transformers.modeling_utils.logger,
        "callHandlers",
        lambda record: reported.append(record.getMessage()),
    )
    folder = shutil.copytree(published("jina_reranker_m0"), tmp_path / "model")
    load(folder, "auto")
    assert not reported
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"foreign.weight": torch.ones(1)}, folder / "model.safetensors")
    load(folder, "auto")
    assert len(reported) == 1
    assert "foreign.weight" in reported[0]


def test_a_checkpoint_of_no_known_architecture_has_no_preset(tmp_path: Path) -> None:
    assert preset_of_architecture(tmp_path) is None
    for names in ('["Qwen2VLForConditionalGeneration", 3, null]', "null", '{"a": "b"}'):
        (tmp_path / "config.json").write_text(f'{{"architectures": {names}}}')
        assert preset_of_architecture(tmp_path) is None


@pytest.mark.slow
def test_jina_reranker_m0_reuses_prefixes(published: Callable[[str], Path]) -> None:
    reranker = load(published("jina_reranker_m0"), "jina-reranker-m0")
    documents = [document_of(document) for document in M0_DOCUMENTS]
    assert reranker.warm(documents, progress=False).built == len(documents)
    decode = reranker.mllm.prompting.tokenizer.decode
    for document in documents:
        before, after = reranker.split_prompt("red roof", document)
        assert decode(before).endswith("**Query**:\n")
        assert decode(after) == "red roof}"  # the last is token 100
    warm = reranker.score([("red roof", document) for document in documents], raw=True)
    for document, score in zip(documents, warm, strict=True):
        cold = load(published("jina_reranker_m0"), "jina-reranker-m0")
        assert cold.score([("red roof", document)], raw=True) == score, "bitwise"


M0_LENGTHS = Lengths(prompt=80, last=1, text=60)


def test_jina_reranker_m0_cuts(
    published: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = published("jina_reranker_m0")
    reranker = load(folder, dataclasses.replace(PRESETS["jina-reranker-m0"], lengths=M0_LENGTHS))
    plain = JinaRerankerM0(folder, max_length=80, max_query_length=20)
    queries = [side("red roof"), side(LONG)]
    pairs = [(query, document) for query in queries for document in M0_DOCUMENTS[:3]]
    check_scores(reranker, plain, pairs)
    caplog.clear()
    reranker.score([(query_of(query), document_of(document)) for query, document in pairs])
    texts, prompts = (record.getMessage() for record in caplog.records)
    assert texts.startswith("documents cut to 60 tokens")
    assert ": 2, the first" in texts
    assert prompts.startswith("prompts cut to 80 tokens")
    assert ": 3, the first" in prompts


@pytest.mark.slow
def test_jina_reranker_m0_cuts_through_characters(published: Callable[[str], Path]) -> None:
    folder = published("jina_reranker_m0")
    document = side("The tower \U0001f5fc\U0001f3f0" + " \U0001f5fc\u5854" * 20)
    for text in range(40, 44):  # a character takes several tokens
        lengths = Lengths(prompt=text + 30, last=1, text=text)
        reranker = load(folder, dataclasses.replace(PRESETS["jina-reranker-m0"], lengths=lengths))
        plain = JinaRerankerM0(folder, max_length=text + 30, max_query_length=30)
        check_scores(reranker, plain, [(side("red roof"), document), (side("Is it?"), document)])


def test_a_picture_is_never_cut(published: Callable[[str], Path]) -> None:
    preset = dataclasses.replace(PRESETS["jina-reranker-m0"], lengths=M0_LENGTHS)
    reranker = load(published("jina_reranker_m0"), preset)
    pair = (Query(image=picture(1, 200, 200)), Document(text=LONG, id="long"))
    with pytest.raises(PromptTooLongError, match="'long'"):
        reranker.score([pair])
    scores = reranker.score([pair, ("red roof", pair[1])], on_error="skip")
    assert scores.isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("query", "document", "problem"),
    [
        ("red roof", Document(picture(1), caption="A mill"), "one picture or one text"),
        ("red roof", Document(parts=[picture(1), picture(2)]), "one picture"),
        (Query("red roof", picture(1)), Document(text=MILL), "one picture or one text"),
        (Query("red roof", instruction="Judge."), Document(text=MILL), "instruction"),
    ],
)
def test_jina_reranker_m0_refuses(
    query: Query | str, document: Document, problem: str, published: Callable[[str], Path]
) -> None:
    reranker = load(published("jina_reranker_m0"), "jina-reranker-m0")
    with pytest.raises(ValueError, match=problem):
        reranker.score([(query, document)])


QWEN_QUERIES = [side("red roof"), side(picture(3)), side("red roof", picture(3)), side()]
QWEN_DOCUMENTS = [
    side(LONG),
    side(picture(1)),
    side(picture(1), MILL),
    side(picture(4, 90, 30), picture(2, 320, 200), MILL, LONG),
    side(),
]


@pytest.mark.slow
@pytest.mark.parametrize("instruction", [None, "Find the picture of the mill."])
def test_qwen3_vl_reranker(published: Callable[[str], Path], instruction: str | None) -> None:
    folder = published("qwen3_vl_reranker")
    pairs = [(query, document) for query in QWEN_QUERIES for document in QWEN_DOCUMENTS]
    reranker, plain = load(folder, "qwen3-vl-reranker"), Qwen3VLReranker(folder)
    check_scores(reranker, plain, pairs[instruction is not None :: 2], instruction)


def test_qwen3_vl_reranker_puts_pictures_before_texts(published: Callable[[str], Path]) -> None:
    reranker = load(published("qwen3_vl_reranker"), "qwen3-vl-reranker")
    parts = [MILL, picture(1), LONG, picture(2)]
    mixed, sorted_ = Document(parts=parts), document_of(side(*parts))
    scores = reranker.score([("red roof", mixed), ("red roof", sorted_)])
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_qwen3_vl_reranker_cuts(
    published: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = published("qwen3_vl_reranker")
    lengths = dataclasses.replace(PRESETS["qwen3-vl-reranker"].lengths, prompt=270 + 5)
    reranker = load(folder, dataclasses.replace(PRESETS["qwen3-vl-reranker"], lengths=lengths))
    plain = Qwen3VLReranker(folder, max_length=270)
    pairs = [(query, document) for query in QWEN_QUERIES[:3] for document in QWEN_DOCUMENTS[:4]]
    check_scores(reranker, plain, pairs)
    assert any("cut to 275 tokens" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("preset", "query", "document"),
    [
        ("qwen3-vl-reranker", LONG * 3, MILL),
        ("qwen3-vl-reranker-document-first", "red roof", LONG * 3),
    ],
)
def test_nothing_is_scored_that_says_nothing_of_one_side(
    preset: str, query: str, document: str, published: Callable[[str], Path]
) -> None:
    lengths = dataclasses.replace(PRESETS[preset].lengths, prompt=270 + 5)
    shorter = dataclasses.replace(PRESETS[preset], lengths=lengths)
    reranker = load(published("qwen3_vl_reranker"), shorter)
    with pytest.raises(PromptTooLongError, match=r"'filler'.*takes at most 275"):
        reranker.score([(query, Document(text=document, id="filler"))])


@pytest.mark.slow
def test_qwen3_vl_reranker_keeps_its_limits_of_pixels(published: Callable[[str], Path]) -> None:
    prompting = load(published("qwen3_vl_reranker"), "qwen3-vl-reranker").mllm.prompting
    for size in ((20, 30), (2000, 1100), (300, 200)):
        width, height = Qwen3VLReranker._resized(picture(0, *size)).size
        assert prompting.encode_image(picture(0, *size)).num_tokens == width * height / 32 / 32


def test_jina_reranker_m0_keeps_its_limits_of_pixels(published: Callable[[str], Path]) -> None:
    folder = published("jina_reranker_m0")
    prompting = load(folder, "jina-reranker-m0").mllm.prompting
    plain = JinaRerankerM0(folder).processor.image_processor
    for size in ((20, 30), (2000, 1100), (300, 200)):
        grid = plain(picture(0, *size), return_tensors="pt")["image_grid_thw"]
        num_tokens = prompting.encode_image(picture(0, *size)).num_tokens
        assert 4 <= num_tokens == grid.prod() / 4 <= 768


def test_monoqwen2_vl(published: Callable[[str], Path]) -> None:
    folder = published("monoqwen2_vl")
    pairs = [
        (side(query), document)
        for query in ("red roof", "Is it a mill?")
        for document in M0_DOCUMENTS[2:]
    ]
    check_scores(load(folder, "monoqwen2-vl"), MonoQwen2VL(folder), pairs)


def test_videos_are_refused_by_name(published: Callable[[str], Path]) -> None:
    reranker = load(published("qwen3_vl_reranker"), "qwen3-vl-reranker")
    video = {"video": "a.mp4"}
    for query, document in (("red roof", video), ("red roof", {"text": MILL, **video})):
        with pytest.raises(TypeError, match="video"):
            reranker.score([(query, document)])
    with pytest.raises(TypeError, match="video"):
        Document(parts=[MILL, video])
    with pytest.raises(TypeError, match="video"):
        Query.of({"text": "red roof", **video})
