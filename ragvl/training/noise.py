"""What is noised in training, and the loss that the noised pass weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput

from ragvl.mllm import MLLM, Features, UnsupportedModelError
from ragvl.mllm.vision import vision_pass
from ragvl.ops import (
    diffusion_noise,
    visual_gaps,
    visual_weighted_cross_entropy,
    visual_weights,
)
from ragvl.ops.diffusion_noise import alphas_cumprod
from ragvl.training.examples import IGNORE
from ragvl.training.fewer_image_tokens import (
    PICTURE_SIZES,
    PREFIX_LENGTHS,
    fewer_image_tokens,
)
from ragvl.training.token_weights import TokenWeights

NoiseKind = Literal["diffusion", "scaled", "gaussian", "drop"]

_ROWS_AT_ONCE = 256  # whose logits are held while accuracy is counted
_RELEASED_CLAMP = (1.0, 5.0)
_RELEASED_WINDOW = 3


@dataclass(frozen=True)
class NoiseSettings:
    """Noise-injected training: section 3.3 of the paper.

    Args:
        data_level: how many pictures each generator sample has at least: irrelevant ones are added
            until there are so many. 0 adds none.
        hard_negatives: the pictures added are the data set's own distractors, where it lists any;
            otherwise drawn at random.
        token_level: what a second pass sees noised: "tokens", the projected visual tokens, which
            needs no second pass of the vision tower; "pixels"; "none", no second pass.
        kind: "diffusion", the paper's, which supposes features of unit variance; "scaled", the same
            with noise of the features' own standard deviation, so that a timestep takes the same
            share of any model's signal; "gaussian", noise of the same strength against the signal
            added to what is left as large as it is; "drop", visual tokens put to zero, as many of
            them as the share of the signal's power that diffusion takes.
        timestep: how much noise, 0 to 999, in every kind.
        gap: what of an answer's token is compared without and with noise: its "logit", the paper's,
            or its "log_probability", which also falls where something else becomes likely; that
            needs the logits of all labelled tokens over the vocabulary, twice.
        clamp_low: the least weight of an answer's token.
        clamp_high: the largest.
        window: how many neighbouring tokens a weight is averaged over; odd.
        as_released: the arithmetic of RagVL's released code in place of the paper's; see
            `released_loss`.
    """

    data_level: int = 0
    hard_negatives: bool = True
    token_level: Literal["none", "pixels", "tokens"] = "none"
    kind: NoiseKind = "diffusion"
    timestep: int = 500
    gap: Literal["logit", "log_probability"] = "logit"
    clamp_low: float = 1.0
    clamp_high: float = 5.0
    window: int = 3
    as_released: bool = False

    def __post_init__(self) -> None:
        if self.data_level < 0:
            raise ValueError(f"data_level={self.data_level}: it must not be negative")
        if self.token_level not in ("none", "pixels", "tokens"):
            raise ValueError(
                f"token_level={self.token_level!r}: expected 'none', 'pixels' or 'tokens'"
            )
        if self.kind not in get_args(NoiseKind):
            *others, last = map(repr, get_args(NoiseKind))
            raise ValueError(f"kind={self.kind!r}: expected {', '.join(others)} or {last}")
        if self.kind == "drop" and self.token_level == "pixels":
            raise ValueError("kind='drop' drops visual tokens; there are none among the pixels")
        if self.gap not in ("logit", "log_probability"):
            raise ValueError(f"gap={self.gap!r}: expected 'logit' or 'log_probability'")
        if self.as_released and self.gap != "logit":
            raise ValueError("as_released compares logits: gap must be 'logit'")
        if not 0 <= self.timestep < 1000:
            raise ValueError(f"timestep={self.timestep}: it must lie in 0 to 999")
        if not 0 < self.clamp_low <= self.clamp_high < float("inf"):
            raise ValueError(
                f"clamp_low={self.clamp_low} and clamp_high={self.clamp_high}: expected positive "
                "numbers, the lower first"
            )
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"window={self.window}: it must be odd and positive")
        if self.token_level == "none":
            plain = {"kind": "diffusion", "gap": "logit", "as_released": False}
            for name, value in plain.items():
                if getattr(self, name) != value:
                    raise ValueError(f"{name} is about token_level, which is 'none'")


# The rows of an ablation table; `release` is the paper's method as its released code does it
ARMS = {
    "plain": NoiseSettings(),
    "data": NoiseSettings(data_level=2),
    "token": NoiseSettings(token_level="tokens"),
    "both": NoiseSettings(data_level=2, token_level="tokens"),
    "release": NoiseSettings(data_level=2, token_level="tokens", as_released=True),
}


def install_loss(mllm: MLLM, noise: NoiseSettings, *, image_tokens: float = 1.0) -> TokenWeights:
    """Makes `mllm.model` return its training loss where it is given labels.

    The loss is computed inside the forward pass, so that whatever wraps the model (PEFT, DDP, FSDP,
    DeepSpeed) sees an ordinary model. Logits over the vocabulary are not held. In eval mode nothing
    is noised, and the output's `logits` are (B,): 1 where every token of the answer is the
    likeliest one, else 0.

    Args:
        mllm: changed in place. `uninstall_loss` undoes it.
        noise: what is noised.
        image_tokens: the share of pictures' tokens that prompts' ends see, of batches that mark
            prefixes; see `fewer_image_tokens`.

    Returns:
        What gathers the weights of the answers' tokens, on this process; empty without a noised
        pass.

    Raises:
        UnsupportedModelError: the model's logits are more than its head on its last hidden states.
    """
    if mllm.head.softcap is not None:
        raise UnsupportedModelError(
            f"{type(mllm.model).__name__} bounds its logits with a softcap, which the training "
            "loss does not know"
        )
    uninstall_loss(mllm)
    model: Any = mllm.model
    plain_forward = model.forward
    token_weights = TokenWeights()

    @functools.wraps(plain_forward)
    def forward(*args: Any, labels: Tensor | None = None, **inputs: Any) -> Any:
        if labels is None:
            return plain_forward(*args, **inputs)
        inputs["use_cache"] = False
        # As in Hugging Face, labels come at the position of their own token
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        token_level = noise.token_level if model.training else "none"
        lengths, sizes = (inputs.pop(name, None) for name in (PREFIX_LENGTHS, PICTURE_SIZES))
        hiding: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if image_tokens < 1:
            hiding = fewer_image_tokens(mllm, inputs, lengths, sizes, image_tokens)
        with hiding, vision_pass() as vision:
            hidden = model.base_model(**inputs).last_hidden_state
        noisy = hidden.detach()  # no gap: every token weighs the same
        if token_level != "none" and "pixel_values" in inputs:
            noisy = _noisy_pass(model, inputs, vision.features, noise)
        head = _head(model, mllm.head.scale, hidden)
        if model.training:
            if token_level != "none":
                _note_weights(token_weights, hidden.detach(), noisy, targets, head, noise)
            return ModelOutput(loss=_loss(hidden, noisy, targets, *head, noise))
        loss = _loss(hidden, noisy, targets, *head, ARMS["plain"])
        return ModelOutput(loss=loss, logits=_answered_right(hidden, targets, *head))

    # On the object, since its class's forward is what others of that class keep
    model.forward = forward
    return token_weights


def uninstall_loss(mllm: MLLM) -> None:
    """Gives the model its own forward again; nothing happens where `install_loss` was not."""
    vars(mllm.model).pop("forward", None)


class TokenGaps(NamedTuple):
    """How far each answer token falls under noise, (N,) float32 each, sequence after sequence.

    Attributes:
        logit: of its logit, by which training weighs it.
        log_probability: of its log-probability, which knows what else became likely.
    """

    logit: Tensor
    log_probability: Tensor


@torch.no_grad()
def token_gaps(
    mllm: MLLM, batch: Mapping[str, Tensor], noises: Sequence[NoiseSettings]
) -> list[TokenGaps]:
    """How far the answers' tokens fall under each noise.

    Args:
        mllm: the model, as it is.
        batch: of a `Collator`, with pictures.
        noises: with noise at the token level.

    Returns:
        For each noise the labelled tokens of the batch.
    """
    model: Any = mllm.model
    inputs: dict[str, Any] = {name: value.to(mllm.device) for name, value in batch.items()}
    labels = inputs.pop("labels")
    inputs["use_cache"] = False
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
    labelled = targets != IGNORE
    label = targets[labelled]
    with vision_pass() as vision:
        hidden = model.base_model(**inputs).last_hidden_state
    head = _head(model, mllm.head.scale, hidden)

    rows = hidden[labelled]
    gaps = []
    for noise in noises:
        noisy = _noisy_pass(model, dict(inputs), vision.features, noise)[labelled]
        by_probability = _label_losses(noisy, label, *head) - _label_losses(rows, label, *head)
        gaps.append(TokenGaps(visual_gaps(rows, noisy, head[0][label]), by_probability))
    return gaps


@torch.no_grad()
def _noisy_pass(
    model: Any, inputs: dict[str, Any], features: Features | None, noise: NoiseSettings
) -> Tensor:
    """The decoder's output over noised pictures, (B, T, D).

    Args:
        model: the model.
        inputs: of its forward; changed.
        features: what its vision tower gave for them.
        noise: at the token level.
    """
    noised = None
    if noise.token_level == "pixels":
        inputs["pixel_values"] = _noised(inputs["pixel_values"], noise)
    else:
        noised = _noised_features(features, noise)
    with vision_pass(noised):
        return model.base_model(**inputs).last_hidden_state


def released_loss(logits: Tensor, noisy_logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of RagVL's released code (its InternVL path), defects included; for ablations.

    Three things differ from `visual_weighted_cross_entropy`: a position's gap is that of column 0
    of the vocabulary instead of the label's; neighbours are positions of the batch in one row,
    labelled or not, so that one sequence runs into the next; and the sum of weights is that of all
    positions, so that the loss shrinks with the share of unlabelled ones.

    Args:
        logits: (B, T, V).
        noisy_logits: (B, T, V).
        labels: (B, T) int64, shifted.

    Returns:
        The loss, () float32.
    """
    gap = (logits[..., 0] - noisy_logits[..., 0]).detach().float().flatten()
    weights = _released_weights(gap)
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return (losses * weights).sum() / (weights.sum() + 1e-6)


def _released_weights(gap: Tensor) -> Tensor:
    """Weights of all positions of a batch in one row, (B * T,), from their gaps."""
    clamped = gap.clamp(*_RELEASED_CLAMP)[None]
    reach = _RELEASED_WINDOW // 2
    return F.avg_pool1d(
        clamped, _RELEASED_WINDOW, stride=1, padding=reach, count_include_pad=False
    )[0]


@torch.no_grad()
def _note_weights(
    token_weights: TokenWeights,
    hidden: Tensor,
    noisy: Tensor,
    targets: Tensor,
    head: tuple[Tensor, Tensor | None],
    noise: NoiseSettings,
) -> None:
    """Adds a batch's labelled tokens to `token_weights`, as the loss weighs them."""
    labelled, (weight, bias) = targets != IGNORE, head
    if noise.as_released:
        rows, noisy_rows = (x.to(weight.dtype).flatten(0, 1) for x in (hidden, noisy))
        gap = visual_gaps(rows, noisy_rows, weight[0].expand_as(rows))
        counted = labelled.flatten()
        token_weights.add(gap[counted], _released_weights(gap)[counted], *_RELEASED_CLAMP)
        return
    sequence, position = labelled.nonzero(as_tuple=True)
    label = targets[sequence, position]
    rows, noisy_rows = (x[sequence, position].to(weight.dtype) for x in (hidden, noisy))
    if noise.gap == "logit":
        gap = visual_gaps(rows, noisy_rows, weight[label])
    else:
        gap = _label_losses(noisy_rows, label, weight, bias) - _label_losses(
            rows, label, weight, bias
        )
    low, high = noise.clamp_low, noise.clamp_high
    weights = visual_weights(gap.clamp(low, high), sequence, noise.window)
    token_weights.add(gap, weights, low, high)


def _noised(x: Tensor, noise: NoiseSettings) -> Tensor:
    # Drawn from torch's generator, whose state a checkpoint holds; another on each process
    seed = int(torch.randint(2**62, ()))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        seed ^= torch.distributed.get_rank()
    x = x.detach()
    if noise.kind == "diffusion":
        return diffusion_noise(x, timestep=noise.timestep, seed=seed)
    kept = float(alphas_cumprod()[noise.timestep])  # of the signal's power
    if noise.kind == "scaled":
        # Of a picture's tokens, or of one of its colours
        own = x.float().std(dim=(-2, -1), keepdim=True)
        drawn = diffusion_noise(
            torch.zeros_like(x, dtype=torch.float32), timestep=noise.timestep, seed=seed
        )
        return (kept**0.5 * x.float() + own * drawn).to(x.dtype)
    generator = torch.Generator(x.device).manual_seed(seed)
    if noise.kind == "drop":
        stays = torch.rand(x.shape[:-1], generator=generator, device=x.device) < kept
        return x * stays[..., None]
    drawn = torch.randn(x.shape, generator=generator, device=x.device, dtype=torch.float32)
    return x + ((1 - kept) / kept) ** 0.5 * drawn.to(x.dtype)


def _noised_features(features: Features | None, noise: NoiseSettings) -> Features | None:
    return features and {
        path: _noised(x, noise) if x.is_floating_point() else x for path, x in features.items()
    }


def _head(model: Any, scale: float, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """The head's weight and bias in the dtype that its product is to be in."""
    head = model.get_output_embeddings()
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype

    def scaled(parameter: Tensor) -> Tensor:
        return (parameter if scale == 1 else parameter * scale).to(dtype)

    bias = getattr(head, "bias", None)
    return scaled(head.weight), None if bias is None else scaled(bias)


def _loss(
    hidden: Tensor,
    noisy: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    noise: NoiseSettings,
) -> Tensor:
    hidden, noisy = hidden.to(weight.dtype), noisy.to(weight.dtype)
    if noise.as_released:
        with torch.no_grad():
            noisy_logits = F.linear(noisy, weight, bias)
        return released_loss(F.linear(hidden, weight, bias), noisy_logits, targets)
    if noise.gap == "log_probability":
        return _weighted_by_log_probability(hidden, noisy, targets, weight, bias, noise)
    return visual_weighted_cross_entropy(
        hidden,
        noisy,
        weight,
        targets,
        head_bias=bias,
        clamp=(noise.clamp_low, noise.clamp_high),
        window=noise.window,
    )


def _weighted_by_log_probability(
    hidden: Tensor,
    noisy: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    noise: NoiseSettings,
) -> Tensor:
    """The loss as `visual_weighted_cross_entropy` has it, but for what the gap is of."""
    sequence, position = (targets != IGNORE).nonzero(as_tuple=True)
    label = targets[sequence, position]
    losses = _label_losses(hidden[sequence, position], label, weight, bias)
    with torch.no_grad():
        gap = _label_losses(noisy[sequence, position], label, weight, bias) - losses
        weights = visual_weights(
            gap.clamp(noise.clamp_low, noise.clamp_high), sequence, noise.window
        )
    return (weights * losses).sum() / weights.sum().clamp_min(noise.clamp_low)


def _label_losses(rows: Tensor, label: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N,) float32: what each row's label has for a cross-entropy."""
    return F.cross_entropy(F.linear(rows, weight, bias).float(), label, reduction="none")


@torch.no_grad()
def _answered_right(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B,) float32: 1 where every labelled position's likeliest token is its target."""
    sequence, position = (targets != IGNORE).nonzero(as_tuple=True)
    rows = hidden[sequence, position].to(weight.dtype).split(_ROWS_AT_ONCE)
    likeliest = torch.cat([F.linear(part, weight, bias).argmax(1) for part in rows])
    right = torch.ones(len(targets), device=hidden.device)
    right[sequence[likeliest != targets[sequence, position]]] = 0
    return right
