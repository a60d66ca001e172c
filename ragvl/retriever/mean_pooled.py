"""A BERT whose text vector is the mean over its tokens, as sentence-transformers have it.

Hugging Face's own takes the first token's, through a layer that these models never trained. It is
registered with transformers' auto classes, so that a `VisionTextDualEncoderModel` may hold it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class MeanPooledBertConfig(BertConfig):
    """A `BertConfig`."""

    model_type = "mean_pooled_bert"


class MeanPooledBertModel(BertModel):
    """Texts to vectors: the mean of the last layer's tokens, without padding.

    Args:
        config: its sizes.
    """

    config_class = MeanPooledBertConfig

    def __init__(self, config: MeanPooledBertConfig) -> None:
        super().__init__(config, add_pooling_layer=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Vectors of texts.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 at padding; None where there is none.
            kwargs: as of `BertModel`.

        Returns:
            `last_hidden_state` (B, T, hidden_size) and `pooler_output` (B, hidden_size).
        """
        outputs = super().forward(input_ids, attention_mask=attention_mask, **kwargs)
        tokens = outputs.last_hidden_state
        if attention_mask is None:
            outputs.pooler_output = tokens.mean(1)
        else:
            weights = attention_mask[..., None].to(tokens.dtype)
            outputs.pooler_output = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
        return outputs


AutoConfig.register(MeanPooledBertConfig.model_type, MeanPooledBertConfig)
AutoModel.register(MeanPooledBertConfig, MeanPooledBertModel)
