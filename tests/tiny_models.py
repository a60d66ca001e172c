"""Tiny random checkpoints of every supported architecture, written as a user would find them.

`build_tiny("qwen2_vl", folder)` writes a configuration, weights, tokenizer, processor settings and
a chat template shaped like the published ones, in about a second and a few hundred kilobytes.
Pictures of different shape give different numbers of tokens wherever the architecture does that.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn
from transformers import PreTrainedTokenizerFast

from ragvl.mllm.loading import without_video

HIDDEN_SIZE = 32
MAX_LENGTH = 1024

CORPUS = [
    "Image Caption: The red tower of Velmora, photographed in 1987.",
    "Question: What color is the roof of the tower? Which has more windows?",
    "Based on the image and its caption, is the image relevant to the question?",
    "Answer 'Yes' or 'No'. Answer the question in one word or a short phrase.",
    "user assistant system USER: ASSISTANT: User: Assistant: You are a helpful assistant.",
    *["Yes", "No", " Yes", " No", "Yes No", "\n", "\n\n"] * 20,
]


# --- tokenizers ---------------------------------------------------------------------------------


def byte_level_tokenizer(special: list[str], *, bos: str | None = None) -> Tokenizer:
    """Byte-level BPE, as in Qwen, InternVL, SmolLM: a word after a space is its own token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_bos(tokenizer, bos)


def sentencepiece_tokenizer(special: list[str], *, bos: str, prefix_space: bool) -> Tokenizer:
    """BPE over text in which "▁" stands for a space, with byte fallback.

    With `prefix_space` a "▁" is put before the text, as in LLaMA 2; without, as in Gemma.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    as_space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), as_space]) if prefix_space else as_space
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training only
    trainer = trainers.BpeTrainer(
        vocab_size=650,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.pre_tokenizer = None
    pieces: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix_space:
        pieces.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(pieces)
    return _with_bos(tokenizer, bos)


def _with_bos(tokenizer: Tokenizer, bos: str | None) -> Tokenizer:
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def _fast(tokenizer: Tokenizer, **special: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **special
    )


CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _chatml_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    return _fast(
        byte_level_tokenizer([*CHATML, *special]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *special],
        extra_special_tokens=named or None,
    )


# --- chat templates: the structure of the published ones ----------------------------------------

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ '\n' + part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IDEFICS3_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ message['role'].capitalize() }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


# --- architectures ------------------------------------------------------------------------------


def _text(tokenizer: PreTrainedTokenizerFast, **changes: object) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **changes,
    }


def _vision(model_type: str, image_size: int, patch_size: int, **changes: object) -> dict:
    return {
        "model_type": model_type,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
        **changes,
    }


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _llava() -> tuple[nn.Module, object]:
    tokenizer = _fast(
        sentencepiece_tokenizer(
            ["<unk>", "<s>", "</s>", "<pad>", "<image>"], bos="<s>", prefix_space=True
        ),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=_vision("clip_vision_model", 32, 8, projection_dim=HIDDEN_SIZE),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=_square(32)),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[nn.Module, object]:
    tokenizer = _chatml_tokenizer(["<image>", "<video>"])
    grid = [[32, 32], [32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config=_vision("siglip_vision_model", 32, 8, vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    processor = without_video(transformers.LlavaOnevisionProcessor)(
        transformers.LlavaOnevisionImageProcessorPil(size=_square(32), image_grid_pinpoints=grid),
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION_TEMPLATE,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def _internvl() -> tuple[nn.Module, object]:
    tokenizer = _chatml_tokenizer(
        ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    vision = _vision("internvl_vision", 64, 8)
    vision.update(image_size=[64, 64], patch_size=[8, 8])
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
    )
    processor = without_video(transformers.InternVLProcessor)(
        transformers.GotOcr2ImageProcessorPil(
            size=_square(64), crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer,
        image_seq_length=16,
        chat_template=INTERNVL_TEMPLATE,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def _qwen_parts(processor_class: type, patch_size: int) -> tuple[PreTrainedTokenizerFast, object]:
    tokenizer = _chatml_tokenizer(
        ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    )
    processor = without_video(processor_class)(
        transformers.Qwen2VLImageProcessorPil(
            patch_size=patch_size,
            merge_size=2,
            size={
                "shortest_edge": 4 * (2 * patch_size) ** 2,
                "longest_edge": 16 * (2 * patch_size) ** 2,
            },
        ),
        tokenizer,
        chat_template=QWEN_TEMPLATE,
    )
    return tokenizer, processor


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    return {
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "image_token_id": image,
        "video_token_id": video,
    }


def _qwen2_vl() -> tuple[nn.Module, object]:
    tokenizer, processor = _qwen_parts(transformers.Qwen2VLProcessor, 8)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    config = transformers.Qwen2VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "embed_dim": HIDDEN_SIZE,
            "hidden_size": HIDDEN_SIZE,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
        },
        **_qwen_ids(tokenizer),
    )
    return transformers.Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl() -> tuple[nn.Module, object]:
    tokenizer, processor = _qwen_parts(transformers.Qwen2_5_VLProcessor, 8)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope, tie_word_embeddings=True),
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN_SIZE,
            "out_hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl() -> tuple[nn.Module, object]:
    tokenizer, processor = _qwen_parts(transformers.Qwen3VLProcessor, 8)
    rope = {
        "rope_type": "default",
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "rope_theta": 10_000.0,
    }
    config = transformers.Qwen3VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN_SIZE,
            "out_hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        **_qwen_ids(tokenizer),
    )
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def _idefics3() -> tuple[nn.Module, object]:
    grid = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    special = [
        "<|begin_of_text|>",
        "<|finetune_right_pad_id|>",
        "<end_of_utterance>",
        "<fake_token_around_image>",
        "<global-img>",
        "<image>",
        *grid,
    ]
    tokenizer = _fast(
        byte_level_tokenizer(special, bos="<|begin_of_text|>"),
        bos_token="<|begin_of_text|>",
        eos_token="<end_of_utterance>",
        pad_token="<|finetune_right_pad_id|>",
        additional_special_tokens=special[3:],
    )
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=_vision("idefics3_vision", 32, 8),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS3_TEMPLATE,
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def _gemma_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece_tokenizer(
        ["<pad>", "<eos>", "<bos>", "<unk>", *special], bos="<bos>", prefix_space=False
    )
    # In Gemma's vocabulary runs of line breaks are added tokens too, but no control tokens
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    return _fast(
        tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=special,
        extra_special_tokens=named,
    )


def _gemma3() -> tuple[nn.Module, object]:
    special = [
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    ]
    tokenizer = _gemma_tokenizer(
        special,
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    config = transformers.Gemma3Config(
        text_config=_text(
            tokenizer,
            num_hidden_layers=4,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * 2,
            query_pre_attn_scalar=8,
            final_logit_softcapping=None,
        ),
        vision_config=_vision("siglip_vision_model", 64, 8, vision_use_head=False),
        mm_tokens_per_image=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size=_square(64)),
        tokenizer,
        image_seq_length=16,
        chat_template=GEMMA3_TEMPLATE,
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def _paligemma() -> tuple[nn.Module, object]:
    tokenizer = _gemma_tokenizer(["<image>"], image_token="<image>")
    image_processor = transformers.SiglipImageProcessorPil(size=_square(32))
    image_processor.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(image_processor, tokenizer)  # it adds tokens
    config = transformers.PaliGemmaConfig(
        text_config={
            "model_type": "gemma2",
            **_text(tokenizer, sliding_window=16, query_pre_attn_scalar=8),
            "final_logit_softcapping": 3.0,
        },
        vision_config=_vision("siglip_vision_model", 32, 8, vision_use_head=False),
        projection_dim=HIDDEN_SIZE,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return transformers.PaliGemmaForConditionalGeneration(config), processor


_BUILDERS: dict[str, Callable[[], tuple[nn.Module, object]]] = {
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "idefics3": _idefics3,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
}
# PaliGemma reads its prompt in both directions and has no chat template; it is scored, not cached.
ARCHITECTURES = tuple(name for name in _BUILDERS if name != "paligemma")


def build_tiny(architecture: str, folder: Path, seed: int = 0) -> Path:
    """Writes a random checkpoint of `architecture` into `folder`, and returns the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = _BUILDERS[architecture]()
        _spread(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Weights at which scores differ clearly between inputs, and few are near 0 or 1."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.add_(torch.randn_like(parameter) * 0.2)  # norms and biases not left at 1, 0
        elif "embed" in name:
            parameter.normal_(std=0.1)  # small beside what the layers add, which depends on it all
        elif "lm_head" in name:
            parameter.normal_(std=0.3)
        else:
            parameter.normal_(std=1.5 / math.sqrt(parameter[0].numel()))


def with_chat_template_changed(folder: Path, to: Path, *changes: tuple[str, str]) -> Path:
    """A checkpoint whose chat template has some texts replaced."""
    copy = shutil.copytree(folder, to)
    file = copy / "chat_template.jinja"
    template = file.read_text()
    for old, new in changes:
        assert old in template
        template = template.replace(old, new)
    file.write_text(template)
    return copy
