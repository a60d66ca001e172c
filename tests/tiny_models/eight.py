"""The eight architectures that every test runs on, and PaliGemma, whose prefix sees its suffix."""

from __future__ import annotations

import transformers
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedTokenizerFast

from ragvl.mllm.loading import without_video
from tiny_models.parts import (
    HIDDEN_SIZE,
    Builder,
    byte_level_tokenizer,
    chatml_tokenizer,
    fast_tokenizer,
    sentencepiece_tokenizer,
    square,
    text_config,
    vision_config,
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


def llava_tokenizer() -> PreTrainedTokenizerFast:
    return fast_tokenizer(
        sentencepiece_tokenizer(
            ["<unk>", "<s>", "</s>", "<pad>", "<image>"], bos="<s>", prefix_space=True
        ),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )


def _llava() -> tuple[nn.Module, object]:
    tokenizer = llava_tokenizer()
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config=vision_config("clip_vision_model", 32, 8, projection_dim=HIDDEN_SIZE),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square(32)),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[nn.Module, object]:
    tokenizer = chatml_tokenizer(["<image>", "<video>"])
    grid = [[32, 32], [32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        vision_config=vision_config("siglip_vision_model", 32, 8, vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    processor = without_video(transformers.LlavaOnevisionProcessor)(
        transformers.LlavaOnevisionImageProcessorPil(size=square(32), image_grid_pinpoints=grid),
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION_TEMPLATE,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def _internvl() -> tuple[nn.Module, object]:
    tokenizer = chatml_tokenizer(
        ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    vision = vision_config("internvl_vision", 64, 8)
    vision.update(image_size=[64, 64], patch_size=[8, 8])
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
    )
    processor = without_video(transformers.InternVLProcessor)(
        transformers.GotOcr2ImageProcessorPil(
            size=square(64), crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer,
        image_seq_length=16,
        chat_template=INTERNVL_TEMPLATE,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def qwen_parts(processor_class: type, patch_size: int) -> tuple[PreTrainedTokenizerFast, object]:
    tokenizer = chatml_tokenizer(
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


def qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    return {
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "image_token_id": image,
        "video_token_id": video,
    }


def _qwen2_vl() -> tuple[nn.Module, object]:
    tokenizer, processor = qwen_parts(transformers.Qwen2VLProcessor, 8)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    config = transformers.Qwen2VLConfig(
        text_config=text_config(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "embed_dim": HIDDEN_SIZE,
            "hidden_size": HIDDEN_SIZE,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
        },
        **qwen_ids(tokenizer),
    )
    return transformers.Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl() -> tuple[nn.Module, object]:
    tokenizer, processor = qwen_parts(transformers.Qwen2_5_VLProcessor, 8)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_config(tokenizer, rope_parameters=rope, tie_word_embeddings=True),
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
        **qwen_ids(tokenizer),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl() -> tuple[nn.Module, object]:
    tokenizer, processor = qwen_parts(transformers.Qwen3VLProcessor, 8)
    rope = {
        "rope_type": "default",
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "rope_theta": 10_000.0,
    }
    config = transformers.Qwen3VLConfig(
        text_config=text_config(tokenizer, rope_parameters=rope),
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
        **qwen_ids(tokenizer),
    )
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def idefics3_tokenizer(bos: str) -> PreTrainedTokenizerFast:
    special = [
        bos,
        "<|finetune_right_pad_id|>",
        "<end_of_utterance>",
        "<fake_token_around_image>",
        "<global-img>",
        "<image>",
        *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
    ]
    return fast_tokenizer(
        byte_level_tokenizer(special, bos=bos),
        bos_token=bos,
        eos_token="<end_of_utterance>",
        pad_token="<|finetune_right_pad_id|>",
        additional_special_tokens=special[3:],
    )


def _idefics3() -> tuple[nn.Module, object]:
    tokenizer = idefics3_tokenizer("<|begin_of_text|>")
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config=vision_config("idefics3_vision", 32, 8),
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


def gemma_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece_tokenizer(
        ["<pad>", "<eos>", "<bos>", "<unk>", *special], bos="<bos>", prefix_space=False
    )
    # In Gemma's vocabulary runs of line breaks are added tokens too, but no control tokens
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    return fast_tokenizer(
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
    tokenizer = gemma_tokenizer(
        special,
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    config = transformers.Gemma3Config(
        text_config=text_config(
            tokenizer,
            num_hidden_layers=4,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * 2,
            query_pre_attn_scalar=8,
            final_logit_softcapping=None,
        ),
        vision_config=vision_config("siglip_vision_model", 64, 8, vision_use_head=False),
        mm_tokens_per_image=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size=square(64)),
        tokenizer,
        image_seq_length=16,
        chat_template=GEMMA3_TEMPLATE,
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def _paligemma() -> tuple[nn.Module, object]:
    tokenizer = gemma_tokenizer(["<image>"], image_token="<image>")
    image_processor = transformers.SiglipImageProcessorPil(size=square(32))
    image_processor.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(image_processor, tokenizer)  # it adds tokens
    config = transformers.PaliGemmaConfig(
        text_config={
            "model_type": "gemma2",
            **text_config(tokenizer, sliding_window=16, query_pre_attn_scalar=8),
            "final_logit_softcapping": 3.0,
        },
        vision_config=vision_config("siglip_vision_model", 32, 8, vision_use_head=False),
        projection_dim=HIDDEN_SIZE,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return transformers.PaliGemmaForConditionalGeneration(config), processor


BUILDERS: dict[str, Builder] = {
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
