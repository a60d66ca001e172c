"""An MLLM of real weights: the retriever's tower before SmolLM2-135M, as a LLaVA.

Its projector is computed, not trained: where the tower's classifier believes in a class, the
picture's token is the embedding of that class's name, so the decoder reads a picture as words that
it knows. What the classes do not name, colors above all, is fitted to the words of the lessons, by
least squares. What came out is kept in `trained/`: fitted on another machine it would differ in
last bits, and so would all that `ragvl train` tunes from it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from ragvl.files import follow_umask
from ragvl.mllm import ConvolutionalVisionModel
from real.dual_encoder import trained_tower
from real.features import features_of
from real.layout import Layout
from real.learning import Lesson
from real.weights import CLASS_NAMES

logger = logging.getLogger(__name__)

TRAINED = Path(__file__).parent / "trained" / "projector.safetensors"
IMAGE = "<image>"
CHAT_TEMPLATE = (  # SmolLM2's, with pictures, and without a system's message that nobody wrote
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_RIDGES = (3.0, 10.0, 30.0, 100.0, 300.0)  # tried on held-out lessons


def assemble(
    tower: ConvolutionalVisionModel, language_model: Path
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """The LLaVA with the decoder's own weights, and its tokenizer; the projector says nothing yet.

    Args:
        tower: gives a token of the whole picture, then its squares'.
        language_model: a folder with a decoder and its tokenizer.
    """
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    decoder = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32)
    decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=tower.config.to_diff_dict(),
        text_config=decoder.config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=_side(tower) ** 2 + int(tower.config.picture_token),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="linear",
        tie_word_embeddings=decoder.config.tie_word_embeddings,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.lm_head.load_state_dict(decoder.lm_head.state_dict())
    embeddings = model.get_input_embeddings().weight
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        for layer in (projector.linear_1, projector.linear_2):
            layer.weight.zero_()
            layer.bias.zero_()
        projector.linear_2.weight.fill_diagonal_(1.0)
        embeddings[config.image_token_index] = 0  # stands for a picture; resizing made it random
    return model.eval(), tokenizer


def _side(tower: ConvolutionalVisionModel) -> int:
    """Squares in a row of a picture, the last of which may be a part of one."""
    config = tower.config
    stride = 2 * math.prod(stage[2] for stage in config.stages)
    return math.ceil(math.ceil(config.image_size / stride) / config.pool)


@torch.no_grad()
def fit_to_words(
    embeddings: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    classes: Tensor,
    lessons: tuple[Tensor, Sequence[str]],
    held_out: tuple[Tensor, Sequence[str]],
) -> tuple[Tensor, dict[str, float]]:
    """What features beside the classes add to a picture's token, so that it means its words.

    Args:
        embeddings: the decoder's (vocabulary, width).
        tokenizer: its tokenizer.
        classes: (classes, width), the words of the classifier's names; see `mean_word`.
        lessons: the tower's features (n, hidden_size), and n texts.
        held_out: the same, to choose how far the fit may follow the lessons.

    Returns:
        (features, width), and figures: the mean cosine of held-out pictures' tokens and their
        texts' words, of classes alone, and fitted; and the ridge of the fit.
    """
    words_of = [mean_word(embeddings, tokenizer, texts) for texts in (lessons[1], held_out[1])]
    count = len(classes)
    features, held_features = lessons[0], held_out[0]
    rest = words_of[0] - features[:, -count:] @ classes
    seen = features[:, :-count]

    def fitted(ridge: float) -> Tensor:
        gram = seen.T @ seen + ridge * len(seen) / 1000 * torch.eye(seen.shape[1])
        return torch.linalg.solve(gram, seen.T @ rest)

    def quality(weight: Tensor) -> float:
        common = words_of[0].mean(0)
        tokens = held_features[:, :-count] @ weight + held_features[:, -count:] @ classes
        return F.cosine_similarity(tokens - common, words_of[1] - common).mean().item()

    nothing = torch.zeros(seen.shape[1], classes.shape[1])
    tried = {ridge: fitted(ridge) for ridge in _RIDGES}
    ridge = max(tried, key=lambda one: quality(tried[one]))
    return tried[ridge], {
        "classes": quality(nothing), "fitted": quality(tried[ridge]), "ridge": ridge,
    }  # fmt: skip


@torch.no_grad()
def read_as_words(model: LlavaForConditionalGeneration, fitted: Tensor, classes: Tensor) -> None:
    """Sets the projector's first layer, in place, to what `fit_to_words` found, and the classes."""
    model.model.multi_modal_projector.linear_1.weight.copy_(torch.cat([fitted, classes]).T)


def mean_word(
    embeddings: Tensor, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Tensor:
    """(texts, width): the mean embedding of a text's tokens, in small letters after a space."""
    rows = []
    for text in texts:
        words = text.lower().rstrip(".!").removeprefix("a ").removeprefix("an ")
        ids = tokenizer(f" {words}", add_special_tokens=False)["input_ids"]
        rows.append(embeddings[torch.tensor(ids)].float().mean(0))
    return torch.stack(rows)


def processor_of(
    tower: ConvolutionalVisionModel, tower_folder: Path, tokenizer: PreTrainedTokenizerBase
) -> LlavaProcessor:
    """Its pictures are prepared as the tower's."""
    return LlavaProcessor(
        AutoImageProcessor.from_pretrained(tower_folder, backend="pil"),
        tokenizer,
        patch_size=tower.config.image_size // _side(tower),
        vision_feature_select_strategy="full",
        num_additional_image_tokens=int(tower.config.picture_token),
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def make(
    layout: Layout,
    lessons: Sequence[Lesson],
    held_out: Sequence[Lesson],
    trained: Path | None = TRAINED,
) -> Path:
    """Writes the base that reranker and generator are tuned from; returns its folder.

    Args:
        lessons: with `held_out`, what is fitted to.
        trained: what was fitted earlier; None fits anew, and writes such a file
            (`trained.safetensors`) beside the model.

    Raises:
        FileNotFoundError: the retriever, whose tower it takes, is not trained yet.
    """
    tower_folder, retriever = layout.weights / "efficientnet-lite0", layout.models / "retriever"
    if not (retriever / "config.json").exists():
        raise FileNotFoundError(
            f"there is no {retriever} yet: make it by `python -m real retriever`"
        )
    tower = trained_tower(retriever)
    model, tokenizer = assemble(tower, layout.weights / "smollm2")
    processor = processor_of(tower, tower_folder, tokenizer)
    embeddings = model.get_input_embeddings().weight
    classes = mean_word(embeddings, tokenizer, json.loads((tower_folder / CLASS_NAMES).read_text()))
    out = layout.models / "base"
    if trained is None:
        work = layout.root / "work" / "features"
        given = [
            (
                features_of([one.picture for one in part], tower, processor.image_processor, work),
                [one.colored for one in part],
            )
            for part in (lessons, held_out)
        ]
        fitted, figures = fit_to_words(embeddings, tokenizer, classes, *given)
        logger.info("base: %s", figures)
        out.mkdir(parents=True, exist_ok=True)
        save_file({"fitted": fitted.to(torch.bfloat16).contiguous()}, out / "trained.safetensors")
    else:
        fitted = load_file(trained)["fitted"].float()
    read_as_words(model, fitted, classes)
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)
    follow_umask(*out.glob("*.safetensors"))
    return out
