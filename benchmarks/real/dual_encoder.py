"""A small dual encoder for real pictures, of EfficientNet-Lite0 and MiniLM.

It begins as a zero-shot one: a picture's vector is that of its classes' names, as far as the
classifier believes in them. Training adds what is not among the classes, before `real.tuning` goes
on with the tower. Here both towers stay as they are, so that what they make of pictures and texts
is computed once, and training takes seconds: a second projection, of the features beside the
classes, learns from pairs of picture and text, and is added with the weight that finds most
pictures of texts that it has not seen.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertModel,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from ragvl.mllm.convolutional import ConvolutionalVisionConfig, ConvolutionalVisionModel
from ragvl.retriever import MeanPooledBertConfig
from real.features import features_of
from real.learning import Lesson
from real.weights import CLASS_NAMES, CLASSIFIER

logger = logging.getLogger(__name__)

POOL = 2  # of the last map's 7 x 7 places: 16 tokens a picture in an MLLM, and one of the whole
_SAME_TEXT = 0.95  # texts of a larger cosine than this say the same
_SHARPNESS = 20.0  # of the loss's softmax: the inverse of its temperature
_DROPPED = 0.3  # of the features, while learning
_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # tried on held-out pairs; classes have 1


def tower_with_classes(folder: Path) -> ConvolutionalVisionModel:
    """A converted tower, with the classifier beside it as a part of its tokens."""
    plain = ConvolutionalVisionModel.from_pretrained(folder)
    classifier = load_file(folder / CLASSIFIER)
    config = ConvolutionalVisionConfig(**plain.config.to_diff_dict())
    config.num_classes = len(classifier["bias"])
    config.hidden_size += config.num_classes
    config.pool = POOL
    config.picture_token = True
    tower = ConvolutionalVisionModel(config)
    tower.load_state_dict(
        plain.state_dict() | {f"classifier.{name}": value for name, value in classifier.items()}
    )
    return tower.eval()


def trained_tower(folder: Path) -> ConvolutionalVisionModel:
    """The tower of a dual encoder that was saved; its text tower's type is known here."""
    return VisionTextDualEncoderModel.from_pretrained(folder).vision_model.eval()


def zero_shot(tower_folder: Path, text_folder: Path) -> VisionTextDualEncoderModel:
    """The dual encoder of converted weights, before it has seen a pair."""
    tower = tower_with_classes(tower_folder)
    bert = BertModel.from_pretrained(text_folder, add_pooling_layer=False)
    text_config = MeanPooledBertConfig(**bert.config.to_diff_dict())
    width = text_config.hidden_size
    model = VisionTextDualEncoderModel(
        VisionTextDualEncoderConfig(
            vision_config=tower.config.to_diff_dict(),
            text_config=text_config.to_dict(),
            projection_dim=width,
        )
    )
    model.eval()
    model.vision_model.load_state_dict(tower.state_dict())
    model.text_model.load_state_dict(bert.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    names = json.loads((tower_folder / CLASS_NAMES).read_text())
    with torch.no_grad():
        model.text_projection.weight.copy_(torch.eye(width))
        vectors = text_vectors(model, tokenizer, [f"a {name}" for name in names])
        model.visual_projection.weight.zero_()
        model.visual_projection.weight[:, -len(names) :] = vectors.T
    return model


@torch.no_grad()
def text_vectors(
    model: VisionTextDualEncoderModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Tensor:
    """(texts, dim) float32, of length 1."""
    vectors = []
    for start in range(0, len(texts), 128):
        inputs = tokenizer(
            list(texts[start : start + 128]),
            padding=True,
            padding_side="right",  # on the left it would move a text by its batch's longest
            truncation=True,
            return_tensors="pt",
        )
        vectors.append(model.get_text_features(**inputs).pooler_output)
    return F.normalize(torch.cat(vectors), dim=-1)


@dataclass(frozen=True)
class Pairs:
    """Pictures as the tower sees them, each with texts about it.

    Attributes:
        features: (n, hidden_size) of the tower.
        texts: (n, wordings, dim), of length 1.
    """

    features: Tensor
    texts: Tensor

    @classmethod
    def read(
        cls,
        lessons: Sequence[Lesson],
        model: VisionTextDualEncoderModel,
        tower_folder: Path,
        text_folder: Path,
        work: Path,
    ) -> Pairs:
        """Computes both, or reads what was computed before."""
        processor = AutoImageProcessor.from_pretrained(tower_folder, backend="pil")
        tokenizer = AutoTokenizer.from_pretrained(text_folder)
        pictures = [one.picture for one in lessons]
        features = features_of(pictures, model.vision_model, processor, work)
        # Each once, and those of a length together, which spares padding
        texts = sorted({text for one in lessons for text in one.wordings}, key=len)
        rows = {text: row for row, text in enumerate(texts)}
        said = torch.tensor([[rows[text] for text in one.wordings] for one in lessons])
        return cls(features, text_vectors(model, tokenizer, texts)[said])

    def __getitem__(self, rows: Tensor) -> Pairs:
        return Pairs(self.features[rows], self.texts[rows])


def train(
    model: VisionTextDualEncoderModel,
    pairs: Pairs,
    held_out: Pairs,
    *,
    steps: int = 200,
    seed: int = 0,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
) -> dict[str, float]:
    """Adds to the projection of pictures what pairs tell beyond the classes.

    Args:
        model: a zero-shot one, changed in place.
        pairs: what it learns from.
        held_out: with texts that `pairs` has none of, to choose the weight.
        steps: of training.
        seed: of the first weights and the order of pairs.
        batch_size: pairs a step; the others of a step are what a picture is not.
        learning_rate: at first; it goes down to zero.

    Returns:
        the share of pictures of `held_out` that are found zero-shot, and trained; and the weight.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    projection = model.visual_projection.weight
    count = model.config.vision_config.num_classes
    learned = nn.Linear(projection.shape[1] - count, projection.shape[0], bias=False)
    seen = pairs.features[:, :-count]
    optimizer = torch.optim.AdamW(learned.parameters(), lr=learning_rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        rows = rng.choice(len(seen), min(batch_size, len(seen)), replace=False)
        texts = pairs.texts[rows, rng.integers(pairs.texts.shape[1], size=len(rows))]
        pictures = F.normalize(learned(F.dropout(seen[rows], _DROPPED)), dim=-1)
        loss = contrast(pictures, texts, texts)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            logger.info("step %d loss %.3f", step, loss.item())
    with torch.no_grad():
        # So that a weight of 1 gives both parts the same length
        unit = learned.weight * (
            (pairs.features[:, -count:] @ projection[:, -count:].T).norm(dim=-1).mean()
            / learned(seen).norm(dim=-1).mean()
        )
        found = {}
        for weight in _WEIGHTS:
            projection[:, :-count] = weight * unit
            found[weight] = recall(model.visual_projection, held_out)
        best = max(found, key=lambda weight: found[weight])
        projection[:, :-count] = best * unit
    return {"zero_shot": found[0.0], "trained": found[best], "weight": best}


def contrast(pictures: Tensor, texts: Tensor, said: Tensor) -> Tensor:
    """CLIP's loss, where a picture may have several texts that say the same.

    Args:
        pictures: (n, dim) of length 1.
        texts: (n, dim) of length 1, a picture's in its row.
        said: (n, width) of length 1, by which texts say the same.
    """
    logits = _SHARPNESS * pictures @ texts.T
    same = (said @ said.T > _SAME_TEXT).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.inference_mode()
def recall(projection: nn.Module, pairs: Pairs, said: Tensor | None = None) -> float:
    """The share of texts whose most similar picture is one of theirs; each wording counts.

    Args:
        projection: of the features.
        pairs: pictures and texts.
        said: (n, wordings, width) of length 1, by which texts say the same; by default
            `pairs.texts`.
    """
    pictures = F.normalize(projection(pairs.features), dim=-1)
    named = (pairs.texts if said is None else said)[:, 0]
    same = named @ named.T > _SAME_TEXT
    found = [
        same.gather(1, (texts @ pictures.T).argmax(1, keepdim=True))
        for texts in pairs.texts.unbind(1)
    ]
    return torch.cat(found).float().mean().item()
