"""Names of weights cover every byte, and changes are noticed."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from ragvl.weights import UnnamedWeightsError, Watch, model_tensors, weights_name


def named(tensor: Tensor, name: str = "w") -> str:
    return weights_name({name: tensor})


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(40, 50)
        self.other = nn.Linear(50, 40)
        self.register_buffer("kept", torch.ones(3))
        self.register_buffer("frequencies", torch.ones(3), persistent=False)


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
    monkeypatch.setattr("ragvl.weights._PIECE_BYTES", 64)
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


def test_weights_that_accelerate_keeps_on_the_cpu_are_read_there() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = Model()
    before = weights_name(model_tensors(model)[0])
    accelerate.cpu_offload(model, execution_device="cpu")
    assert model.one.weight.device.type == "meta"
    watch = Watch(model)
    assert watch.saved_name == before
    model.one(torch.ones(40))
    assert not watch.look(), "a pass moves them to and fro"


def test_saved_and_computed_tensors_are_told_apart() -> None:
    saved, computed = model_tensors(Model())
    assert set(saved) == {*Model().state_dict()}
    assert set(computed) == {"frequencies"}


# --- changes ------------------------------------------------------------------------------------


def add_in_place(model: Model) -> None:
    with torch.no_grad():
        model.one.weight.view(-1)[7] += 1


def scale_data(model: Model) -> None:
    model.one.weight.data.mul_(1.5)


def set_data(model: Model) -> None:
    model.one.weight.data = model.one.weight.data * 2


def write_with_numpy(model: Model) -> None:
    model.one.weight.detach().numpy()[:] *= 1.5


def replace_parameter(model: Model) -> None:
    model.one.weight = nn.Parameter(model.one.weight.detach() * 2)


def replace_module(model: Model) -> None:
    model.one = nn.Linear(40, 50)


def replace_buffer(model: Model) -> None:
    model.frequencies = torch.full((3,), 2.0)


def write_buffer(model: Model) -> None:
    model.frequencies.mul_(2)


def step_fused(model: Model) -> None:
    model.other.weight.grad = torch.ones_like(model.other.weight)
    torch.optim.AdamW([model.other.weight], lr=0.1, fused=True).step()


def change_dtype(model: Model) -> None:
    model.to(torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    [
        add_in_place,
        scale_data,
        set_data,
        write_with_numpy,
        replace_parameter,
        replace_module,
        replace_buffer,
        write_buffer,
        step_fused,
        change_dtype,
    ],
    ids=lambda change: change.__name__,
)
def test_a_change_is_noticed_and_named(change: Callable[[Model], None]) -> None:
    model = Model()
    watch = Watch(model)
    first = watch.name
    assert not watch.look()
    change(model)
    assert watch.look()
    assert watch.name != first
    assert watch.name == Watch(model).name
    assert not watch.look()


def test_weights_are_read_again_only_where_they_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[set[str]] = []

    def note(weights: dict[str, Tensor]) -> str:
        read.append(set(weights))
        return weights_name(weights)

    monkeypatch.setattr("ragvl.weights.weights_name", note)
    model = Model()
    watch = Watch(model)
    assert watch.name == watch.name
    assert read == [{*model.state_dict()}, {"frequencies"}]
    write_buffer(model)
    assert watch.look() and watch.name
    assert read[2:] == [{"frequencies"}], "rotary frequencies change with a prompt's length"
    step_fused(Model())
    assert not watch.look(), "another model's step"


def test_the_form_changes_with_modules_and_dtypes_only() -> None:
    model = Model()
    watch = Watch(model)
    forms = [watch.form]
    for change in (add_in_place, replace_parameter, replace_module, change_dtype):
        change(model)
        assert watch.look()
        forms.append(watch.form)
    assert forms[0] is forms[1] is forms[2]
    assert len(set(forms)) == 3


def test_released_weights_are_not_held() -> None:
    model = Model()
    watch = Watch(model)
    assert watch.name
    old = weakref.ref(model.one.weight)
    watch.release()
    model.one.weight = nn.Parameter(torch.zeros(50, 40))
    gc.collect()
    assert old() is None
    assert watch.look()


def test_what_no_look_can_see_is_read_after_a_release() -> None:
    model = Model()
    watch = Watch(model)
    before = watch.name
    model.one.weight.detach().numpy()[0, 0] += 1  # documented: none of the sampled values
    assert not watch.look()
    watch.release()
    assert watch.look()
    assert watch.name != before


def test_a_copy_watches_its_own_weights() -> None:
    model = Model()
    watch = Watch(model)
    for copied in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        assert copied.name == watch.name
        copied.model.one.weight.data.mul_(2)
        assert copied.look()
        assert not watch.look()


def test_what_changes_nothing_is_no_change() -> None:
    """An encoder's name, and so its indexes, outlive what a library leaves in its modules."""
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    watch = Watch(model)
    name = watch.name
    model.train(not model.training)
    model[1].eps = model[1].eps * 2 / 2
    model[0]._forward_hooks[7] = torch.nn.functional.relu
    assert not watch.look()
    assert watch.name == name
    model[1].eps = 0.5
    assert watch.look()
    assert watch.name != name
