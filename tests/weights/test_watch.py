"""Changes of a model are noticed, and what has changed is named anew."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ragvl.weights import Watch, model_tensors, weights_name


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(40, 50)
        self.other = nn.Linear(50, 40)
        self.register_buffer("kept", torch.ones(3))
        self.register_buffer("frequencies", torch.ones(3), persistent=False)


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


def test_saved_and_computed_tensors_are_kept_apart() -> None:
    saved, computed = model_tensors(Model())
    assert set(saved) == {*Model().state_dict()}
    assert set(computed) == {"frequencies"}


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

    monkeypatch.setattr("ragvl.weights.watch.weights_name", note)
    model = Model()
    watch = Watch(model)
    assert watch.name == watch.name
    assert read == [{*model.state_dict()}, {"frequencies"}]
    write_buffer(model)
    assert watch.look() and watch.name
    assert read[2:] == [{"frequencies"}], "rotary frequencies change with a prompt's length"


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


@pytest.mark.slow
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
