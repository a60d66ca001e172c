"""Architectures of several houses, each with something that no other has.

Ovis2 writes visual indicators over its marks, Aya Vision names its tiles in words and computes
attention and MLP side by side, Granite Vision adds features before some layers, PaddleOCR-VL counts
positions in three axes, EXAONE's global layers know no positions, Gemma 4's have heads of another
size, and its last layers use the keys of earlier ones.
"""

from __future__ import annotations

import transformers
from torch import nn

from ragvl.mllm.loading import without_video
from tiny_models.eight import gemma_tokenizer
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

OVIS2_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
AYA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|START_OF_TURN_TOKEN|>' + ('<|CHATBOT_TOKEN|>' if message['role'] == 'assistant' else "
    "'<|SYSTEM_TOKEN|>' if message['role'] == 'system' else '<|USER_TOKEN|>') }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}{% endif %}"
)
GRANITE_TEMPLATE = (
    "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
PADDLEOCR_TEMPLATE = (
    "{{ cls_token if cls_token is defined else '<|begin_of_sentence|>' }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}"
    "{{ '<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant:\n' }}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '</s>' }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] + '\n' }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
DEEPSEEK_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].capitalize() + ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image_placeholder>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '\n\n' if message['role'] != 'assistant' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
VIPLLAVA_TEMPLATE = (
    "{% for message in messages %}{{ '###' + ('Assistant' if message['role'] == 'assistant' else "
    "'Human') + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '###Assistant:' }}{% endif %}"
)
GEMMA4_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|turn>' + ('model' if message['role'] == "
    "'assistant' else message['role']) + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '\n\n<|image|>\n\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)
ERNIE_TEMPLATE = (
    "{{ '<|begin_of_sentence|>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' }}{% endif %}"
    "{% set pictures = namespace(count=0) %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set pictures.count = pictures.count + 1 %}"
    "{{ 'Picture ' ~ pictures.count ~ ':<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|end_of_sentence|>' if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
HUNYUAN_TEMPLATE = (
    "{{ '<|hy_begin|>' }}{% for message in messages %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|hy_im_start|><|hy_image|><|hy_im_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|hy_User|>' if message['role'] == 'user' else '<|hy_Assistant|>' }}{% endfor %}"
)
JANUS_TEMPLATE = (
    "{% for message in messages %}"
    "{{ ('<|User|>' if message['role'] == 'user' else '<|Assistant|>') + ': ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image_placeholder>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)
VISION_PAD_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# --- architectures ------------------------------------------------------------------------------


def _ids(tokenizer: transformers.PreTrainedTokenizerFast, *tokens: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def _ovis2() -> tuple[nn.Module, object]:
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = chatml_tokenizer(["<image>", "<IMG_ATOM>", *marks])
    (atom,) = _ids(tokenizer, "<IMG_ATOM>")
    text = text_config(tokenizer)
    config = transformers.Ovis2Config(
        text_config={"model_type": "qwen2", **text},
        vision_config={
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "hidden_stride": 2,
            "vocab_size": 48,
            "num_visual_indicator_tokens": 5,
        },
        image_token_id=atom,
        visual_indicator_token_ids=_ids(tokenizer, *marks),
        vocab_size=text["vocab_size"],
        hidden_size=HIDDEN_SIZE,
        tie_word_embeddings=False,
    )
    processor = transformers.Ovis2Processor(
        transformers.Ovis2ImageProcessorPil(
            size=square(32), crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer,
        image_seq_length=4,
        chat_template=OVIS2_TEMPLATE,
    )
    return transformers.Ovis2ForConditionalGeneration(config), processor


def _aya_vision() -> tuple[nn.Module, object]:
    special = [
        "<PAD>",
        "<BOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
        "<|SYSTEM_TOKEN|>",
        "<|START_RESPONSE|>",
        "<image>",
        "<|IMG_PATCH|>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "TILE_GLOBAL",
        "TILE",
    ]
    tokenizer = fast_tokenizer(
        byte_level_tokenizer(special, bos="<BOS_TOKEN>"),
        bos_token="<BOS_TOKEN>",
        eos_token="<|END_OF_TURN_TOKEN|>",
        pad_token="<PAD>",
        additional_special_tokens=special[2:],
    )
    config = transformers.AyaVisionConfig(
        text_config={
            "model_type": "cohere2",
            **text_config(tokenizer, num_hidden_layers=4, sliding_window=32, logit_scale=0.25),
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        vision_config=vision_config("siglip_vision_model", 32, 8, vision_use_head=False),
        image_token_id=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    processor = transformers.AyaVisionProcessor(
        transformers.GotOcr2ImageProcessorPil(
            size=square(32), crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer,
        patch_size=8,
        img_size=32,
        downsample_factor=2,
        chat_template=AYA_TEMPLATE,
    )
    return transformers.AyaVisionForConditionalGeneration(config), processor


def _granite4_vision() -> tuple[nn.Module, object]:
    special = ["<|end_of_text|>", "<|pad|>", "<|start_of_role|>", "<|end_of_role|>", "<image>"]
    tokenizer = fast_tokenizer(
        byte_level_tokenizer(special),
        bos_token="<|end_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|pad|>",
        additional_special_tokens=special[2:],
    )
    grid = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = transformers.Granite4VisionConfig(
        text_config=text_config(
            tokenizer,
            num_hidden_layers=6,
            embedding_multiplier=3.0,
            logits_scaling=2.0,
            residual_multiplier=0.5,
            attention_multiplier=0.2,
        ),
        # the resampler has heads of 64
        vision_config=vision_config(
            "siglip_vision_model", 32, 8, hidden_size=64, vision_use_head=False
        ),
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0]],
        spatial_vision_layer=-1,
        spatial_target_layers=[1, 2, 3, 4],
    )
    processor = transformers.Granite4VisionProcessor(
        transformers.LlavaNextImageProcessorPil(
            size=square(32), crop_size=square(32), image_grid_pinpoints=grid
        ),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        chat_template=GRANITE_TEMPLATE,
    )
    return transformers.Granite4VisionForConditionalGeneration(config), processor


def _paddleocr_vl() -> tuple[nn.Module, object]:
    special = [
        "<unk>",
        "<s>",
        "</s>",
        "<|begin_of_sentence|>",
        "<|IMAGE_START|>",
        "<|IMAGE_PLACEHOLDER|>",
        "<|IMAGE_END|>",
        "<|video_pad|>",
    ]
    tokenizer = fast_tokenizer(
        sentencepiece_tokenizer(special, bos="<s>", prefix_space=False),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        cls_token="<|begin_of_sentence|>",
        additional_special_tokens=special[4:],
        extra_special_tokens={"image_token": "<|IMAGE_PLACEHOLDER|>"},
    )
    start, image, end, video = _ids(tokenizer, *special[4:])
    config = transformers.PaddleOCRVLConfig(
        text_config=text_config(
            tokenizer,
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 500_000.0,
            },
        ),
        vision_config={
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    processor = transformers.PaddleOCRVLProcessor(
        transformers.PaddleOCRVLImageProcessorPil(
            size={"shortest_edge": 4 * 16**2, "longest_edge": 16 * 16**2}, patch_size=8
        ),
        tokenizer,
        chat_template=PADDLEOCR_TEMPLATE,
    )
    return transformers.PaddleOCRVLForConditionalGeneration(config), processor


def _deepseek_vl() -> tuple[nn.Module, object]:
    special = ["<bos>", "<eos>", "<pad>", "<image_placeholder>"]
    tokenizer = fast_tokenizer(
        byte_level_tokenizer(special, bos="<bos>"),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=special[3:],
        extra_special_tokens={"image_token": "<image_placeholder>"},
    )
    config = transformers.DeepseekVLConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config=vision_config("siglip_vision_model", 32, 8, vision_use_head=False),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    processor = transformers.DeepseekVLProcessor(
        transformers.DeepseekVLImageProcessorPil(size=square(32)),
        tokenizer,
        num_image_tokens=16,
        chat_template=DEEPSEEK_TEMPLATE,
    )
    return transformers.DeepseekVLForConditionalGeneration(config), processor


def _vipllava() -> tuple[nn.Module, object]:
    tokenizer = fast_tokenizer(
        sentencepiece_tokenizer(
            ["<unk>", "<s>", "</s>", "<pad>", "<image>"], bos="<s>", prefix_space=True
        ),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    config = transformers.VipLlavaConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config=vision_config("clip_vision_model", 32, 8, projection_dim=HIDDEN_SIZE),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=[-1, -2, 0],
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square(32)),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VIPLLAVA_TEMPLATE,
    )
    return transformers.VipLlavaForConditionalGeneration(config), processor


def _video_llama_3() -> tuple[nn.Module, object]:
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = chatml_tokenizer(special)
    image, video = _ids(tokenizer, *special[2:])
    config = transformers.VideoLlama3Config(
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        vision_config={
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 8,
        },
        image_token_id=image,
        video_token_id=video,
    )
    processor = without_video(transformers.VideoLlama3Processor)(
        transformers.VideoLlama3ImageProcessorPil(
            patch_size=8,
            merge_size=2,
            size={"shortest_edge": 4 * 16**2, "longest_edge": 16 * 16**2},
        ),
        tokenizer,
        chat_template=VISION_PAD_TEMPLATE,
    )
    return transformers.VideoLlama3ForConditionalGeneration(config), processor


def _exaone4_5() -> tuple[nn.Module, object]:
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = chatml_tokenizer(special)
    image, video = _ids(tokenizer, *special[2:])
    config = transformers.Exaone4_5_Config(
        text_config={
            "model_type": "exaone4",
            **text_config(
                tokenizer,
                num_hidden_layers=4,
                sliding_window=16,
                layer_types=["sliding_attention", "full_attention"] * 2,
            ),
        },
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN_SIZE,
            "out_hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_heads": 2,
            "num_key_value_heads": 1,
            "patch_size": 8,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=image,
        video_token_id=video,
    )
    processor = without_video(transformers.Exaone4_5_Processor)(
        transformers.Qwen2VLImageProcessorPil(
            patch_size=8,
            merge_size=2,
            size={"shortest_edge": 4 * 16**2, "longest_edge": 16 * 16**2},
        ),
        tokenizer,
        chat_template=VISION_PAD_TEMPLATE,
    )
    return transformers.Exaone4_5_ForConditionalGeneration(config), processor


def _gemma4(**changes: object) -> tuple[nn.Module, object]:
    special = ["<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>", "<|audio>", "<audio|>"]
    special += ["<|audio|>", "<|video|>"]
    tokenizer = gemma_tokenizer(
        special,
        boi_token="<|image>",
        eoi_token="<image|>",
        image_token="<|image|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
        audio_token="<|audio|>",
    )
    boi, eoi, image, boa, eoa, audio, video = _ids(tokenizer, *special[2:])
    text = text_config(
        tokenizer,
        global_head_dim=16,
        sliding_window=16,
        final_logit_softcapping=5.0,
        vocab_size_per_layer_input=len(tokenizer),
        **changes,
    )
    config = transformers.Gemma4Config(
        text_config=text,
        vision_config={
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "position_embedding_size": 64,
        },
        audio_config=None,
        boi_token_id=boi,
        eoi_token_id=eoi,
        image_token_id=image,
        video_token_id=video,
        boa_token_id=boa,
        eoa_token_index=eoa,
        audio_token_id=audio,
        tie_word_embeddings=False,
    )
    processor = without_video(transformers.Gemma4Processor)(
        transformers.Gemma4AudioFeatureExtractor(),
        transformers.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70),
        tokenizer,
        None,
        image_seq_length=70,
        chat_template=GEMMA4_TEMPLATE,
    )
    return transformers.Gemma4ForConditionalGeneration(config), processor


def _gemma4_small() -> tuple[nn.Module, object]:
    """As Gemma 4 E2B: more embeddings for each layer, and the last layers use others' keys."""
    return _gemma4(
        num_hidden_layers=6,
        layer_types=["sliding_attention", "full_attention"] * 3,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
    )


def _gemma4_large() -> tuple[nn.Module, object]:
    """As Gemma 4 31B: values that are keys, and pictures whose tokens see each other."""
    return _gemma4(
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        use_bidirectional_attention="vision",
    )


def _gemma4_moe() -> tuple[nn.Module, object]:
    """As Gemma 4 26B-A4B: a mixture of experts."""
    return _gemma4(
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        use_bidirectional_attention="vision",
        enable_moe_block=True,
        num_experts=8,
        top_k_experts=2,
        moe_intermediate_size=32,
    )


def _ernie4_5_vl_moe() -> tuple[nn.Module, object]:
    special = ["<unk>", "<s>", "</s>", "<|begin_of_sentence|>", "<|end_of_sentence|>"]
    marks = {
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
    }
    tokenizer = fast_tokenizer(
        sentencepiece_tokenizer([*special, *marks.values()], bos="<s>", prefix_space=False),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=[*special[3:], *marks.values()],
        extra_special_tokens=marks,
    )
    config = transformers.Ernie4_5_VLMoeConfig(
        text_config=text_config(
            tokenizer,
            num_hidden_layers=3,
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 500_000.0,
            },
            moe_intermediate_size=[32, 16],
            moe_k=2,
            moe_num_experts=8,
            moe_num_shared_experts=1,
        ),
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
        },
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()},
        tie_word_embeddings=False,
    )
    own_class = without_video(transformers.Ernie4_5_VLMoeProcessor)
    # Its own way to save copies a font for videos, too
    saved_plainly = {"save_pretrained": transformers.ProcessorMixin.save_pretrained}
    processor = type(own_class.__name__, (own_class,), saved_plainly)(
        transformers.Ernie4_5_VLMoeImageProcessorPil(
            size={"shortest_edge": 4 * 16**2, "longest_edge": 16 * 16**2}, patch_size=8
        ),
        tokenizer,
        chat_template=ERNIE_TEMPLATE,
    )
    return transformers.Ernie4_5_VLMoeForConditionalGeneration(config), processor


def _hunyuan_vl() -> tuple[nn.Module, object]:
    special = ["<|hy_begin|>", "<|hy_end|>", "<|hy_pad|>", "<|hy_User|>", "<|hy_Assistant|>"]
    marks = {
        "image_start_token": "<|hy_im_start|>",
        "image_end_token": "<|hy_im_end|>",
        "image_token": "<|hy_image|>",
    }
    tokenizer = fast_tokenizer(
        byte_level_tokenizer([*special, *marks.values()]),
        bos_token="<|hy_begin|>",
        eos_token="<|hy_end|>",
        pad_token="<|hy_pad|>",
        additional_special_tokens=[*special[3:], *marks.values()],
        extra_special_tokens=marks,
    )
    start, end, image = _ids(tokenizer, *marks.values())
    config = transformers.HunYuanVLConfig(
        text_config=text_config(
            tokenizer,
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [1, 1, 1, 1],
                "rope_theta": 10_000.0,
            },
        ),
        vision_config={
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "out_hidden_size": HIDDEN_SIZE,
            "patch_size": 8,
            "max_image_size": 128,
        },
        image_token_id=image,
        image_start_token_id=start,
        image_end_token_id=end,
        tie_word_embeddings=False,
    )
    processor = transformers.HunYuanVLProcessor(
        transformers.HunYuanVLImageProcessorPil(
            size={"shortest_edge": 4 * 16**2, "longest_edge": 16 * 16**2}, patch_size=8
        ),
        tokenizer,
        chat_template=HUNYUAN_TEMPLATE,
    )
    return transformers.HunYuanVLForConditionalGeneration(config), processor


def _janus() -> tuple[nn.Module, object]:
    special = ["<bos>", "<eos>", "<pad>", "<|User|>", "<|Assistant|>"]
    marks = {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = fast_tokenizer(
        byte_level_tokenizer([*special, *marks.values()], bos="<bos>"),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=[*special[3:], *marks.values()],
        extra_special_tokens=marks,
    )
    config = transformers.JanusConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={
            "hidden_size": HIDDEN_SIZE,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": HIDDEN_SIZE,
            "num_image_tokens": 16,
        },
        vq_config={  # of its half that draws pictures
            "embed_dim": 4,
            "num_embeddings": 8,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "num_patches": 4,
            "projection_dim": HIDDEN_SIZE,
            "image_token_embed_dim": HIDDEN_SIZE,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    processor = transformers.JanusProcessor(
        transformers.JanusImageProcessorPil(size=square(32)),
        tokenizer,
        num_image_tokens=16,
        chat_template=JANUS_TEMPLATE,
    )
    return transformers.JanusForConditionalGeneration(config), processor


BUILDERS: dict[str, Builder] = {
    "ovis2": _ovis2,
    "aya_vision": _aya_vision,
    "granite4_vision": _granite4_vision,
    "paddleocr_vl": _paddleocr_vl,
    "deepseek_vl": _deepseek_vl,
    "vipllava": _vipllava,
    "video_llama_3": _video_llama_3,
    "exaone4_5": _exaone4_5,
    "ernie4_5_vl_moe": _ernie4_5_vl_moe,
    "hunyuan_vl": _hunyuan_vl,
    "janus": _janus,
    "gemma4_small": _gemma4_small,
    "gemma4_large": _gemma4_large,
    "gemma4_moe": _gemma4_moe,
}
