"""Architectures that ragvl cannot use, each for another reason."""

from __future__ import annotations

import transformers
from torch import nn

from tiny_models.assorted import VIPLLAVA_TEMPLATE
from tiny_models.parts import (
    HIDDEN_SIZE,
    Builder,
    byte_level_tokenizer,
    fast_tokenizer,
    sentencepiece_tokenizer,
    square,
    text_config,
    vision_config,
)

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def _idefics2() -> tuple[nn.Module, object]:
    special = ["<unk>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    tokenizer = fast_tokenizer(
        sentencepiece_tokenizer(special, bos="<s>", prefix_space=True),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=special[3:],
    )
    config = transformers.Idefics2Config(
        text_config={"model_type": "mistral", **text_config(tokenizer)},
        vision_config=vision_config("idefics2_vision", 64, 8),
        perceiver_config={
            "hidden_size": HIDDEN_SIZE,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = transformers.Idefics2Processor(
        transformers.Idefics2ImageProcessorPil(
            size={"shortest_edge": 32, "longest_edge": 64}, do_image_splitting=False
        ),
        tokenizer,
        image_seq_len=4,
        chat_template=VIPLLAVA_TEMPLATE,
    )
    return transformers.Idefics2ForConditionalGeneration(config), processor


def _florence2() -> tuple[nn.Module, object]:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    tokenizer = fast_tokenizer(
        byte_level_tokenizer(special, bos="<s>"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
    )
    config = transformers.Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": HIDDEN_SIZE,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
        },
        vision_config={
            "depths": [1],
            "patch_size": [8],
            "patch_stride": [8],
            "patch_padding": [0],
            "patch_prenorm": [False],
            "embed_dim": [HIDDEN_SIZE],
            "num_heads": [2],
            "num_groups": [2],
            "window_size": 4,
            "projection_dim": HIDDEN_SIZE,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        is_encoder_decoder=True,
    )
    processor = transformers.Florence2Processor(
        transformers.CLIPImageProcessorPil(size=square(32), crop_size=square(32)),
        tokenizer,
        num_additional_image_tokens=1,
    )
    processor.image_processor.image_seq_length = 16
    return transformers.Florence2ForConditionalGeneration(config), processor


def _git() -> tuple[nn.Module, object]:
    tokenizer = fast_tokenizer(
        byte_level_tokenizer(["[PAD]", "[CLS]", "[SEP]"]),
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    config = transformers.GitConfig(
        vision_config=vision_config("git_vision_model", 32, 8),
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    processor = transformers.GitProcessor(
        transformers.CLIPImageProcessorPil(size=square(32), crop_size=square(32)), tokenizer
    )
    return transformers.GitForCausalLM(config), processor


def _mllama() -> tuple[nn.Module, object]:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    special += ["<|finetune_right_pad_id|>", "<|python_tag|>", "<|image|>"]
    tokenizer = fast_tokenizer(
        byte_level_tokenizer(special, bos="<|begin_of_text|>"),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        additional_special_tokens=special[1:],
    )
    config = transformers.MllamaConfig(
        text_config=text_config(tokenizer, cross_attention_layers=[1], num_hidden_layers=3),
        vision_config={
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 2 * HIDDEN_SIZE,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    processor = transformers.MllamaProcessor(
        transformers.MllamaImageProcessorPil(size=square(32), max_image_tiles=4),
        tokenizer,
        chat_template=LLAMA3_TEMPLATE,
    )
    return transformers.MllamaForConditionalGeneration(config), processor


BUILDERS: dict[str, Builder] = {
    "florence2": _florence2,
    "git": _git,
    "idefics2": _idefics2,
    "mllama": _mllama,
}
