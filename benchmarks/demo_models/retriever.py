"""The demo's retriever: a small dual encoder of a trained vision tower and texts from nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPProcessor,
    CLIPTextConfig,
    PreTrainedTokenizerFast,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from demo_models.optimise import on, optimise
from demo_models.parts import END, PAD, image_processor
from demo_models.training_set import TrainingSet
from ragvl.mllm import ConvolutionalVisionModel

_BATCH_SIZE = 192


def train_retriever(
    data: TrainingSet,
    tokenizer: PreTrainedTokenizerFast,
    tower: ConvolutionalVisionModel,
    *,
    steps: int,
    seed: int,
    checkpoint: Path,
    device: str = "cpu",
) -> tuple[VisionTextDualEncoderModel, CLIPProcessor]:
    """CLIP's contrastive loss between a question and one of its gold pictures.

    The tower stays as it is: the text tower and both projections learn.
    """
    torch.manual_seed(seed)
    text_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        pad_token=PAD,
        eos_token=END,
        model_max_length=48,
    )
    end_id = text_tokenizer.eos_token_id
    # CLIP reads a text's embedding at its end token
    text_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, end_id)]
    )
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=48,
        eos_token_id=end_id,
        bos_token_id=None,
        pad_token_id=text_tokenizer.pad_token_id,
        projection_dim=128,
    )
    config = VisionTextDualEncoderConfig(
        vision_config=tower.config.to_diff_dict(),
        text_config=text_config.to_dict(),
        projection_dim=128,
    )
    model = VisionTextDualEncoderModel(config).to(device)
    model.vision_model.load_state_dict(tower.state_dict())
    model.vision_model.requires_grad_(False)

    def loss_of_step(rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(len(data.questions), size=_BATCH_SIZE)
        questions = [data.questions[i] for i in chosen]
        rows = [data.row[q.gold[rng.integers(len(q.gold))]] for q in questions]
        inputs = text_tokenizer(
            [q.text for q in questions], padding=True, truncation=True, return_tensors="pt"
        )
        texts = model.get_text_features(**on(dict(inputs), device)).pooler_output
        pooled = data.features[rows].mean(1).to(device)  # what the tower gives as `pooler_output`
        pictures = model.visual_projection(pooled)
        similarity = F.normalize(texts.float(), dim=-1) @ F.normalize(pictures.float(), dim=-1).T
        logits = similarity * model.logit_scale.exp()
        own = torch.arange(len(rows), device=device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    optimise(model, loss_of_step, steps=steps, seed=seed, name="retriever", checkpoint=checkpoint)
    return model, CLIPProcessor(image_processor(), text_tokenizer)
