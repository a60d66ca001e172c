"""A text tower that means its tokens, inside a dual encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_encoders import MAX_LENGTH, TEXTS, tiny_tokenizer
from tiny_models.parts import square
from torch.nn import functional as F

from ragvl.retriever import DualEncoder
from ragvl.retriever.mean_pooled import MeanPooledBertConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower["intermediate_size"] = 32
    text = MeanPooledBertConfig(vocab_size=400, max_position_embeddings=MAX_LENGTH, **tower)
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **tower)
    config = transformers.VisionTextDualEncoderConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=12
    )
    made = tmp_path_factory.mktemp("dual_encoder")
    transformers.VisionTextDualEncoderModel(config).save_pretrained(made)
    tiny_tokenizer(attention_mask=True).save_pretrained(made)
    transformers.CLIPImageProcessorPil(size=square(32), do_center_crop=False).save_pretrained(made)
    return made


def test_a_dual_encoder_reads_the_mean_of_a_texts_tokens(folder: Path) -> None:
    encoder = DualEncoder.from_pretrained(folder, device="cpu", dtype="float32")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    bert = transformers.BertModel(model.config.text_config, add_pooling_layer=False).eval()
    bert.load_state_dict(model.text_model.state_dict())
    together = encoder.encode_texts(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        ids = encoder.tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        with torch.inference_mode():
            mean = bert(torch.tensor([ids])).last_hidden_state.mean(1)
            alone = F.normalize(model.text_projection(mean), dim=-1).numpy()
        np.testing.assert_allclose(vector, alone[0], atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_without_a_mask_nothing_is_padding(folder: Path) -> None:
    text = transformers.AutoModel.from_pretrained(folder).eval().text_model
    ids = torch.tensor([[1, 7, 9, 2]])
    with torch.inference_mode():
        vector = text(ids).pooler_output
        assert torch.equal(vector, text(ids, attention_mask=torch.ones_like(ids)).pooler_output)
        padded = torch.tensor([[1, 7, 9, 2, 0, 0]])
        mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
        torch.testing.assert_close(text(padded, attention_mask=mask).pooler_output, vector)
