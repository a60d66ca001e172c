"""Which of a picture's tokens a prefix keeps, where it does not keep all.

Those that are least like each other, by their keys of all layers:

    d(i, j)  = sum over layers and heads of |key_i - key_j|^2
    first    = argmax_i  sum_j d(i, j)
    next     = argmax_i  min over the tokens kept so far of d(i, kept)

That is the farthest-point heuristic for k-center (Gonzalez 1985). Keys have their positions
applied, so that tokens of every part of a picture are kept. No question is needed, nor any text.
`benchmarks/bench_image_tokens.py` compares it with other choices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def num_dropped(sizes: Sequence[int], share: float) -> int:
    """How many tokens of pictures of these sizes are dropped; of each at least one is kept."""
    return sum(size - _num_kept(size, share) for size in sizes)


def _num_kept(size: int, share: float) -> int:
    return max(1, round(share * size))


def kept_tokens(
    input_ids: Sequence[int],
    image_token_id: int,
    sizes: Sequence[int],
    keys: Sequence[Tensor],
    share: float,
) -> Tensor:
    """The places of a prefix's tokens to keep, in order: all text, and a share of each picture.

    Args:
        input_ids: the prefix's tokens.
        image_token_id: the token that stands for a picture's.
        sizes: how many tokens each of its pictures has.
        keys: of each layer that computes its own, (G, T, D); T is no less than the prefix's length.
        share: how much of each picture is kept.

    Returns:
        (len(input_ids) - num_dropped(sizes, share),) int64, on the keys' device.
    """
    device = keys[0].device
    is_image = torch.tensor(input_ids) == image_token_id
    kept = [(~is_image).nonzero()[:, 0].to(device)]
    for places in is_image.nonzero()[:, 0].split(list(sizes)):
        places = places.to(device)
        own = [layer.index_select(1, places).transpose(0, 1).flatten(1) for layer in keys]
        kept.append(places[_unlike(own, _num_kept(len(places), share))])
    return torch.cat(kept).sort().values


def _unlike(layers: Sequence[Tensor], count: int) -> Tensor:
    """(count,) int64: the rows of tensors (n, D) that are farthest apart; see the module's head.

    Nothing of it is read from a GPU.
    """
    distances = sum(map(_squared_distances, layers), torch.zeros((), device=layers[0].device))
    nearest = distances.sum(1)
    chosen: list[Tensor] = []
    for number in range(count):
        row = nearest.argmax()
        chosen.append(row)
        to_row = distances.index_select(0, row[None])[0]
        nearest = torch.minimum(nearest, to_row) if number else to_row
        nearest = nearest.index_fill(0, row[None], -torch.inf)
    return torch.stack(chosen)


def _squared_distances(rows: Tensor) -> Tensor:
    """(n, n) of rows (n, D), in float32 or better."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    norms = rows.square().sum(1)
    return norms[:, None] + norms - 2 * rows @ rows.mT
