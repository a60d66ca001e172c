"""A vision tower of convolutions: EfficientNet-Lite, and smaller ones of the same blocks.

    stem      convolution of stride 2
    stages    inverted residuals (MobileNetV2, arXiv 1801.04381): widen by a pointwise convolution,
              look around by a depthwise one, narrow by a pointwise one
    head      pointwise convolution to the tokens' features
    classes   what a classifier says of each token, beside its features

Published models of this kind hold ImageNet weights in few bytes, and a few thousand small pictures
are enough to train one. Hugging Face's own EfficientNet has attention over channels, which
EfficientNet-Lite has not, and gives maps where a LLaVA wants tokens. It is registered with
transformers' auto classes: any configuration that takes a vision model by its type may hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling

# Of EfficientNet-Lite0: (channels, kernel, stride, expansion, repeats)
_LITE0 = (
    (16, 3, 1, 1, 1),
    (24, 3, 2, 6, 2),
    (40, 5, 2, 6, 2),
    (80, 3, 2, 6, 3),
    (112, 5, 1, 6, 3),
    (192, 5, 2, 6, 4),
    (320, 3, 1, 6, 1),
)


class ConvolutionalVisionConfig(PreTrainedConfig):
    """Sizes of a `ConvolutionalVisionModel`; EfficientNet-Lite0's by default.

    Args:
        stages: each as (channels, kernel, stride, expansion, repeats); only a stage's first block
            has its stride.
        stem_channels: of the first convolution, 3 x 3 of stride 2.
        hidden_size: of the tokens, classes included.
        num_classes: a classifier's probabilities that follow the features of each token; what a
            linear layer reads off them is no linear function of the features. 0 for none.
        pool: tokens are means over squares of so many places of the last map.
        picture_token: a token of the whole picture, which is the mean over all places, comes first.
        image_size: height and width of pictures, in pixels; others are taken too.
        num_channels: of pictures.
        hidden_act: the activation.
        norm: "group" normalises each picture after each convolution, for training from nothing;
            "none" where the weights hold a normalisation already.
        initializer_range: unused but by heads that transformers adds.
    """

    model_type = "convolutional_vision"

    def __init__(
        self,
        stages: Sequence[Sequence[int]] = _LITE0,
        stem_channels: int = 32,
        hidden_size: int = 1280,
        image_size: int = 224,
        num_channels: int = 3,
        hidden_act: str = "relu6",
        norm: Literal["none", "group"] = "none",
        num_classes: int = 0,
        pool: int = 1,
        picture_token: bool = False,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        if norm not in ("none", "group"):
            raise ValueError(f"norm is 'none' or 'group', not {norm!r}")
        self.stages = [list(stage) for stage in stages]
        for stage in self.stages:
            if len(stage) != 5 or min(stage) < 1:
                raise ValueError(
                    f"a stage is (channels, kernel, stride, expansion, repeats), not {stage}"
                )
        self.stem_channels = stem_channels
        self.hidden_size = hidden_size
        self.image_size = image_size
        self.num_channels = num_channels
        self.hidden_act = hidden_act
        self.norm = norm
        if not 0 <= num_classes < hidden_size or pool < 1:
            raise ValueError(
                f"num_classes={num_classes}, pool={pool}: expected at least 0 and fewer than "
                f"hidden_size={hidden_size}, and at least 1"
            )
        self.num_classes = num_classes
        self.pool = pool
        self.picture_token = picture_token
        self.initializer_range = initializer_range
        super().__init__(**kwargs)


class _Convolution(nn.Module):
    """A convolution, its normalisation and activation; padded as TensorFlow's "same"."""

    def __init__(
        self,
        config: ConvolutionalVisionConfig,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        activation: bool = True,
    ) -> None:
        super().__init__()
        # Where as much is missing before as after, the convolution itself can pad
        self._pads_itself = stride == 1 and kernel % 2 == 1
        self.convolution = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding=kernel // 2 if self._pads_itself else 0,
            groups=inputs if depthwise else 1,
        )
        self.norm = nn.GroupNorm(1, outputs) if config.norm == "group" else nn.Identity()
        self.activation = ACT2FN[config.hidden_act] if activation else nn.Identity()
        if isinstance(self.activation, nn.Hardtanh | nn.ReLU):
            self.activation.inplace = True  # what it is given is not read again
        self._kernel, self._stride = kernel, stride

    def _padding(self, size: int) -> tuple[int, int]:
        """Before and after: the odd pixel goes after, where PyTorch would put it before."""
        steps = -(-size // self._stride)
        total = max((steps - 1) * self._stride + self._kernel - size, 0)
        return total // 2, total - total // 2

    def forward(self, x: Tensor) -> Tensor:
        if not self._pads_itself:
            height, width = x.shape[-2:]
            x = F.pad(x, (*self._padding(width), *self._padding(height)))
        x = self.convolution(x)
        return self.activation(self.norm(x))


class _InvertedResidual(nn.Module):
    def __init__(
        self,
        config: ConvolutionalVisionConfig,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int,
        expansion: int,
    ) -> None:
        super().__init__()
        width = inputs * expansion
        self.widen = _Convolution(config, inputs, width) if expansion > 1 else nn.Identity()
        self.look = _Convolution(config, width, width, kernel=kernel, stride=stride, depthwise=True)
        self.narrow = _Convolution(config, width, outputs, activation=False)
        self._adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.look(self.widen(x)))
        return x + y if self._adds else y


class ConvolutionalVisionModel(PreTrainedModel):
    """Pictures to tokens, a token for each square of the last map, row by row from the top left.

    Args:
        config: its sizes.
    """

    config_class = ConvolutionalVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities: ClassVar = ("image",)
    _no_split_modules: ClassVar = ["_InvertedResidual"]

    def __init__(self, config: ConvolutionalVisionConfig) -> None:
        super().__init__(config)
        self.stem = _Convolution(
            config, config.num_channels, config.stem_channels, kernel=3, stride=2
        )
        self.blocks = nn.ModuleList()
        inputs = config.stem_channels
        for channels, kernel, stride, expansion, repeats in config.stages:
            for number in range(repeats):
                block = _InvertedResidual(
                    config,
                    inputs,
                    channels,
                    kernel=kernel,
                    stride=stride if number == 0 else 1,
                    expansion=expansion,
                )
                self.blocks.append(block)
                inputs = channels
        features = config.hidden_size - config.num_classes
        self.head = _Convolution(config, inputs, features)
        self.classifier = nn.Linear(features, config.num_classes) if config.num_classes else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He's initialisation (arXiv 1502.01852); transformers calls it for weights not loaded."""
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(
        self,
        pixel_values: Tensor,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """Tokens of pictures.

        Args:
            pixel_values: (B, C, H, W), as the model's image processor makes them.
            _: what transformers asks of other towers: the last layer's hidden states are always
                given, and the output can be indexed as a tuple.

        Returns:
            `last_hidden_state` (B, T, hidden_size), also as the one item of `hidden_states`, where
            T is the number of squares of the last map, and one more for the picture's token;
            `pooler_output` (B, hidden_size), of the mean over all places.
        """
        # Channels last: convolutions are nearly twice as fast on a CPU so
        x = self.stem(pixel_values.to(self.dtype, memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        places = self.head(x)
        mean = self.with_classes(places.flatten(2).mean(2))
        if self.config.pool > 1:  # the last square of a row or column may be a part of one
            places = F.avg_pool2d(places, self.config.pool, ceil_mode=True)
        tokens = self.with_classes(places.flatten(2).transpose(1, 2))
        if self.config.picture_token:
            tokens = torch.cat([mean[:, None], tokens], dim=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=mean, hidden_states=(tokens,)
        )

    def with_classes(self, features: Tensor) -> Tensor:
        """Features (..., hidden_size - num_classes) with the classifier's probabilities behind."""
        if self.classifier is None:
            return features
        return torch.cat([features, self.classifier(features).softmax(-1)], dim=-1)


AutoConfig.register(ConvolutionalVisionConfig.model_type, ConvolutionalVisionConfig)
AutoModel.register(ConvolutionalVisionConfig, ConvolutionalVisionModel)
