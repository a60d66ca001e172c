"""Checkpoints with quantised weights: what loads them, and what they are no good for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from ragvl.messages import quoted, reason, shown
from ragvl.mllm.structure import decoder_layers
from ragvl.model_files import CONFIG, UnsupportedModelError

_ROWS = 32


def is_quantized(config: PretrainedConfig) -> bool:
    """Whether a checkpoint's weights are quantised, by its configuration."""
    return getattr(config, "quantization_config", None) is not None


def check_quantization(folder: Path, config: PretrainedConfig, device: torch.device) -> None:
    """Sees whether quantised weights can be loaded here; those that are not always can.

    Raises:
        ImportError: a package that this takes is not installed; the message names it.
        UnsupportedModelError: transformers does not know them, or cannot run them on the device.
    """
    if not is_quantized(config):
        return
    settings: Any = config.quantization_config
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    how = quoted(settings.get("quant_method"))
    what = f"{shown(folder / CONFIG)}: the weights are quantised ({how})"
    try:
        quantizer = AutoHfQuantizer.from_config(dict(settings), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device})
    except ImportError as error:
        advice = "install what is missing, or load the model that is not quantised"
        raise ImportError(f"{what}, and {reason(error)}: {advice}", name=error.name) from error
    except Exception as error:
        raise UnsupportedModelError(
            f"{what}, and cannot be loaded on {device}: {reason(error)}"
        ) from error


@torch.no_grad()  # in inference mode it would leave tensors whose changes are not counted
def finish_loading(folder: Path, model: PreTrainedModel) -> None:
    """Brings quantised weights into the form in which they are multiplied.

    Packages leave that to the first call: a fingerprint would change with it, several threads
    would get in each other's way, and calls of a model's parts would go without.

    Raises:
        UnsupportedModelError: there is a product that cannot be computed.
    """
    if hasattr(model, "ct_decompress_hook"):
        _decompress(model)
    for name, product in model.named_modules():
        if not hasattr(product, "in_features"):
            continue
        if _is_dense(product):
            _check_dtype(folder, model, name, product.weight)
            continue
        try:
            shape = (1, _ROWS, product.in_features)  # some kernels take no fewer rows
            product(torch.zeros(shape, device=model.device, dtype=model.dtype))
        except Exception as error:
            raise UnsupportedModelError(
                f"{shown(folder)}: the quantised products of {type(product).__name__} cannot be "
                f"computed on {model.device}, as of {shown(name)}: {reason(error)}. If it is not "
                f"quantised, {CONFIG} has to say so under the name that it has here "
                "(modules_to_not_convert, llm_int8_skip_modules or ignore); else load the model on "
                "another device, or the one that is not quantised"
            ) from error


def _check_dtype(folder: Path, model: PreTrainedModel, name: str, weight: Any) -> None:
    """Refuses a mixture of dtypes: of some packages, dense weights stay as they were saved."""
    kept = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    if weight.dtype != model.dtype and not any(part in name for part in kept):
        dtype = str(weight.dtype).removeprefix("torch.")
        raise UnsupportedModelError(
            f"{shown(folder)}: weights that are not quantised stay {dtype} beside {model.dtype}, "
            f"as of {shown(name)}: give dtype={dtype!r}, which they are saved in"
        )


def _decompress(model: Any) -> None:
    """What compressed-tensors does before a model's first call; calls of its parts do not."""
    from compressed_tensors.compressors import decompress_module

    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            decompress_module(module)
    model.hf_quantizer.compressor.remove_decompression_hook(model)


def _is_dense(product: nn.Module) -> bool:
    """Whether it is a model's own product, rather than one that a package has put there."""
    own = ("torch.", "transformers.models.", "transformers_modules.")
    return type(product).__module__.startswith(own) and is_plain(getattr(product, "weight", None))


def is_plain(weight: object) -> bool:
    """Whether a weight holds its own values, and rows of it can be taken."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return False
    return type(weight).__torch_dispatch__ is Tensor.__torch_dispatch__


def check_head_weight(head: nn.Module) -> None:
    """Refuses a language-model head whose rows cannot be taken, since they are quantised.

    Raises:
        UnsupportedModelError: they are.
    """
    weight = getattr(head, "weight", None)
    if not is_plain(weight):
        raise UnsupportedModelError(
            f"the language-model head is quantised ({type(head).__name__} of "
            f"{type(weight).__name__}), and scores are read off rows of it: quantise the model "
            "without its head (modules_to_not_convert, llm_int8_skip_modules or ignore: lm_head)"
        )


def company_problem(model: PreTrainedModel) -> str | None:
    """Why scores of a quantised model depend on what is scored beside them; None if they do not.

    Products that quantise what they multiply may take one scale, or look for outliers, over all
    rows that they are given.
    """
    if getattr(model, "hf_quantizer", None) is None:
        return None
    kinds: dict[tuple[type, type], Any] = {}
    for module in decoder_layers(model)[0].modules():
        if hasattr(module, "in_features"):
            kinds.setdefault((type(module), type(getattr(module, "weight", None))), module)
    names = [type(x).__name__ for x in kinds.values() if _mixes_rows(x, model.device, model.dtype)]
    return f"products of {', '.join(dict.fromkeys(names))} depend on other rows" if names else None


@torch.inference_mode()
def _mixes_rows(product: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether rows of a product depend on those beside them, tried on rows with outliers."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn((2 * _ROWS, product.in_features), generator=draw)
    rows[_ROWS:, ::3] *= 100
    rows = rows.to(device, dtype)[None]  # as layers hand them on: some take two axes otherwise
    quiet = rows[:, :_ROWS].repeat(1, 2, 1)  # as many rows, so that the sums are the same
    return not torch.equal(product(rows)[:, :_ROWS], product(quiet)[:, :_ROWS])
