"""Names of weights cover every byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from ragvl.weights import UnnamedWeightsError, weights_name


def named(tensor: Tensor, name: str = "w") -> str:
    return weights_name({name: tensor})


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool]
)
def test_every_value_counts(dtype: torch.dtype) -> None:
    values = torch.zeros(5, 7).to(dtype)
    names = {named(values)}
    for i in range(values.numel()):
        edited = values.clone()
        edited.view(-1)[i] = 1
        names.add(named(edited))
    assert len(names) == 1 + values.numel()


def test_names_shapes_and_dtypes_count() -> None:
    x = torch.arange(6, dtype=torch.int32)
    others = [named(x.view(2, 3)), named(x.view(torch.float32)), named(x, "v")]
    assert len({named(x), *others, named(x[:5])}) == 5
    assert named(torch.tensor(0.0)) != named(torch.tensor(-0.0)), "bits, not values"


def test_order_tying_and_layout_do_not_count() -> None:
    x, y = torch.randn(6, 4), torch.randn(3)
    assert weights_name({"x": x, "y": y}) == weights_name({"y": y.clone(), "x": x})
    assert weights_name({"x": x, "z": x}) == weights_name({"x": x, "z": x.clone()})
    assert named(x) == named(x.T.contiguous().T)
    assert named(x.T) != named(x)
    assert named(torch.empty(0, 3)) != named(torch.empty(0, 4))


def test_large_tensors_are_hashed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragvl.weights.names._PIECE_BYTES", 64)
    x = torch.randn(10, 10)
    names = {named(x), named(x.T)}
    for i in (0, 15, 16, 17, 63, 64, 99):
        edited = x.clone()
        edited.view(-1)[i] += 1
        names.add(named(edited))
    assert len(names) == 9
    assert named(x.T) == named(x.T.contiguous())


def test_a_tensor_subclass_is_what_it_is_made_of() -> None:
    a, b = torch.randn(4), torch.randn(4)
    first = named(TwoTensor(a, b))
    assert named(TwoTensor(a.clone(), b.clone())) == first
    assert len({first, named(TwoTensor(b, a)), named(TwoTensor(a, a)), named(a)}) == 4


class Scaled(nn.Parameter):
    """As bitsandbytes' parameters: what its values mean is said by an attribute."""

    def __new__(cls, values: Tensor, scale: object) -> Scaled:
        self = torch.Tensor._make_subclass(cls, values)
        self.scale = scale
        return self


def test_what_a_subclass_carries_beside_its_values_counts() -> None:
    values = torch.ones(3)
    names = [named(Scaled(values, torch.tensor(s))) for s in (1.0, 2.0, 1.0)]
    assert names[0] == names[2] != names[1]
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]  # as bitsandbytes' know theirs, which is no content
    assert named(Scaled(values, layers[0])) == named(Scaled(values, layers[1]))
    with pytest.raises(UnnamedWeightsError, match=r"weight 'w' holds a function"):
        named(Scaled(values, lambda: None))


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.empty(3, device="meta"), r"'layer\.w' is on the 'meta' device"),
        (torch.eye(3).to_sparse(), r"'layer\.w' is a torch\.sparse_coo tensor"),
        (nn.parameter.UninitializedParameter(), r"'layer\.w' has no values yet"),
    ],
)
def test_weights_without_readable_values_are_refused_by_name(tensor: Tensor, why: str) -> None:
    with pytest.raises(UnnamedWeightsError, match=why):
        named(tensor, "layer.w")
