"""Tiny random CLIP and SigLIP checkpoints, built offline."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

FAMILIES = ("clip", "siglip", "siglip2")
MAX_LENGTH = 16
TEXTS = (
    "a red square",
    "two blue circles above the green line",
    "What colour is the roof of the old house by the river?",
    "x",
    "the quick brown fox jumps over the lazy dog " * 5,  # longer than MAX_LENGTH
)


def tiny_tokenizer(*, attention_mask: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"] if attention_mask else ["input_ids"],
    )


def tiny_model(family: str, *, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {**tower, "vocab_size": 400, "max_position_embeddings": MAX_LENGTH}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    if family == "clip":
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        return CLIPModel(config).eval()
    text["projection_size"] = 32
    if family == "siglip":
        return SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    vision = {**tower, "num_patches": 16, "patch_size": 8}
    return Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).eval()


def tiny_processor(family: str):
    if family == "clip":
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        return CLIPProcessor(image_processor, tiny_tokenizer(attention_mask=True))
    tokenizer = tiny_tokenizer(attention_mask=False)
    if family == "siglip":
        size = {"height": 32, "width": 32}
        return SiglipProcessor(SiglipImageProcessorPil(size=size), tokenizer)
    return Siglip2Processor(Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16), tokenizer)


def save_checkpoint(folder: Path, family: str, *, seed: int = 0) -> Path:
    tiny_model(family, seed=seed).save_pretrained(folder)
    tiny_processor(family).save_pretrained(folder)
    return folder


def save_text_encoder(
    folder: Path, *, seed: int = 0, prompts: dict[str, str] | None = None
) -> Path:
    """A tiny random text encoder in sentence-transformers' format: the same text is at cosine 1."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=400,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    plain = folder / "plain"
    BertModel(config).save_pretrained(plain)
    tiny_tokenizer(attention_mask=True).save_pretrained(plain)
    modules = [Transformer(str(plain)), Pooling(16, "mean")]
    model = SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    model.save_pretrained(str(folder / "encoder"))
    return folder / "encoder"
