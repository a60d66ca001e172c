"""Random-weight LLaVA checkpoints of several sizes, in the format of a published one.

Speed does not depend on what a model has learned, so none needs to be downloaded: a folder written
here loads like a hub model, with its own processor, tokenizer and chat template.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from workload import CAPTIONS, QUESTIONS

from ragvl.reranker import TEMPLATES

PATCH_SIZE = 14
MAX_LENGTH = 2048
IMAGE, PAD, END = "<image>", "<pad>", "</s>"
# As LLaVA-1.5's: the pictures first, then the text, then the answer's turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths; a picture takes `(image_size // 14) ** 2` tokens."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    vision_hidden_size: int
    vision_layers: int
    vision_heads: int
    image_size: int
    tie_word_embeddings: bool = True
    # Wide enough that the answer depends on picture and caption, so that comparing scores means
    # something; the common 0.02 leaves a narrow random model blind to all but its last token.
    initializer_range: float = 0.05


SIZES = {
    # 16 image tokens: for tests
    "tiny": ModelSize(
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        vocab_size=1024,
        vision_hidden_size=32,
        vision_layers=2,
        vision_heads=2,
        image_size=56,
        initializer_range=0.2,
    ),
    # 44 M parameters, 256 image tokens; a quarter of the decoder is vocabulary, as in InternVL2-1B
    "mid": ModelSize(
        hidden_size=512,
        intermediate_size=1536,
        num_layers=8,
        num_heads=8,
        vocab_size=16_384,
        vision_hidden_size=320,
        vision_layers=6,
        vision_heads=5,
        image_size=224,
    ),
    # The first LLaVA-7B's shape, 256 image tokens: for a GPU
    "7b": ModelSize(
        hidden_size=4096,
        intermediate_size=11_008,
        num_layers=32,
        num_heads=32,
        vocab_size=32_000,
        vision_hidden_size=1024,
        vision_layers=24,
        vision_heads=16,
        image_size=224,
        tie_word_embeddings=False,
        initializer_range=0.02,
    ),
}


def write_llava(
    folder: Path,
    size: ModelSize,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> int:
    """Writes a checkpoint of `size` into `folder`, drawing its weights on `device`.

    Returns:
        The number of its parameters.
    """
    tokenizer = _train_tokenizer()
    vision_config = CLIPVisionConfig(
        hidden_size=size.vision_hidden_size,
        intermediate_size=4 * size.vision_hidden_size,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=size.image_size,
        patch_size=PATCH_SIZE,
        projection_dim=size.vision_hidden_size,
    )
    text_config = LlamaConfig(
        vocab_size=size.vocab_size,  # more than the tokenizer has, as in many published models
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_heads,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=size.initializer_range,
        tie_word_embeddings=size.tie_word_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision_config.to_dict(),
        text_config=text_config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(size.image_size // PATCH_SIZE) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=size.tie_word_embeddings,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    side = {"height": size.image_size, "width": size.image_size}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": size.image_size}, crop_size=side)
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )
    processor.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows the workload's words, as a published tokenizer would."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["tiny"].vocab_size,
        special_tokens=[PAD, END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [
        f"USER: {template.text.format(query=query, caption=caption)} ASSISTANT:"
        for template in TEMPLATES.values()
        for query in QUESTIONS
        for caption in CAPTIONS
    ]
    tokenizer.train_from_iterator(prompts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[IMAGE],
        model_max_length=MAX_LENGTH,
    )
