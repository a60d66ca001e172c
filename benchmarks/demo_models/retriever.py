"""The demo's retriever: a small CLIP, trained from nothing on drawn pictures."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    PreTrainedTokenizerFast,
)

from demo_models.optimise import on, optimise
from demo_models.parts import END, PAD, image_processor, vision_config
from demo_models.training_set import TrainingSet


def train_retriever(
    data: TrainingSet,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    seed: int,
    device: str = "cpu",
) -> tuple[CLIPModel, CLIPProcessor]:
    """CLIP's contrastive loss between a question and one of its gold pictures."""
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
    config = CLIPConfig(
        text_config=text_config.to_dict(),
        vision_config=vision_config().to_dict(),
        projection_dim=128,
    )
    model = CLIPModel(config).to(device)
    rng = np.random.default_rng([seed, 1])

    def loss_of_step() -> Tensor:
        chosen = rng.integers(len(data.questions), size=192)
        questions = [data.questions[i] for i in chosen]
        rows = [data.row[q.gold[rng.integers(len(q.gold))]] for q in questions]
        text = text_tokenizer(
            [q.text for q in questions], padding=True, truncation=True, return_tensors="pt"
        )
        batch = {
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "pixel_values": data.pixel_values(rows),
        }
        return model(**on(batch, device), return_loss=True).loss

    optimise(model, loss_of_step, steps=steps, name="retriever")
    return model, CLIPProcessor(image_processor(), text_tokenizer)
