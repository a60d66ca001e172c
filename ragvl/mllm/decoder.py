"""A model's decoder, run in two halves: a prefix once, then suffixes that attend to what it left.

The layers stay Hugging Face's own. What is put around them: the attention function, which is
registered as an implementation of its own and passes every ordinary call on to the one that the
model had; the last layer's query projection; modules that carry a state from token to token
(`states.py`); and hooks before the last layer and the final norm.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ragvl.mllm.experts import wrap_experts
from ragvl.mllm.inputs import Features, ImageInputs
from ragvl.mllm.states import (
    Group,
    LayerState,
    Mixer,
    StateShape,
    alone,
    shapes_of,
    together,
    wrap_mixers,
)
from ragvl.mllm.structure import decoder_layers, decoder_of
from ragvl.mllm.vision import VisionPass, vision_pass, wrap_image_features
from ragvl.model_files import UnsupportedModelError
from ragvl.ops import PrefixBatch, prefix_attention
from ragvl.ops.backends import choose
from ragvl.runtime import Timer

WriteKv = Callable[[int, Tensor, Tensor], None]
"""Takes a layer's number, and its keys and values of a prompt's tokens."""

ReadStates = Callable[[int, slice], LayerState]
"""Gives a layer's state, by its number, of some of the sequences that are packed."""

LookAtAttention = Callable[[int, Tensor, Any], Any]
"""Takes a layer's number, its keys (B, G, T, D) and the mask of its attention; gives its mask."""

_FEWEST_SLOTS = 16  # of a page
_PREFIX = "ragvl_"  # of the names of attention implementations
_WRAPPED = "_ragvl_wrapped"  # marks a projection that is wrapped already

# Additions to a score that `prefix_attention` does not make
_UNSUPPORTED_TERMS = ("softcap", "s_aux", "position_bias")


# What the forward pass that is under way in this thread is for, and where the norm's hook leaves
# the requested hidden states. Hooks get no argument of ours, and other threads may run the model.
_pass: ContextVar[_Look | _Prefill | _Extend | None] = ContextVar("pass", default=None)
_captured: ContextVar[list[Tensor] | None] = ContextVar("captured", default=None)
_look: ContextVar[LookAtAttention | None] = ContextVar("look", default=None)


class _Finished(Exception):
    """Leaves a forward pass of which all that is needed has been computed.

    Hugging Face's layers have no other exit: what comes after would be computed for nothing.
    """


class KvShape(NamedTuple):
    """A layer's keys of one token, and its values."""

    num_heads: int
    head_dim: int


@dataclass(frozen=True)
class KvLayout:
    """What a decoder keeps of a prefix: keys and values of each token, and states.

    Attributes:
        shapes: of each layer that computes keys and values of its own.
        dtype: of all.
        sources: for each of the decoder's layers, whose keys and values it attends to: a place in
            `shapes`. In some models, as Gemma 4, layers use those of an earlier one. None for a
            layer that carries a state instead.
        states: of each such layer, the tensors of its state, whose size does not depend on how many
            tokens a prefix has.
        window: how many tokens are seen by those of the layer that sees the fewest; None for all.
    """

    shapes: tuple[KvShape, ...]
    dtype: torch.dtype
    sources: tuple[int | None, ...]
    states: tuple[tuple[StateShape, ...], ...] = ()
    window: int | None = None

    @classmethod
    def uniform(
        cls, num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype
    ) -> KvLayout:
        """Of layers that are all alike."""
        shapes = (KvShape(num_heads, head_dim),) * num_layers
        return cls(shapes, dtype, tuple(range(num_layers)))

    @property
    def owners(self) -> tuple[int, ...]:
        """The decoder's layer that computes each of `shapes`."""
        return tuple(map(self.sources.index, range(len(self.shapes))))

    @property
    def last_layer(self) -> int:
        """The last of the decoder's layers that something is kept of."""
        with_states = (layer for layer, source in enumerate(self.sources) if source is None)
        return max((*self.owners, *with_states))

    def bytes_per_token(self) -> int:
        """Bytes of all layers' keys and values of one token."""
        numbers = sum(num_heads * head_dim for num_heads, head_dim in self.shapes)
        return 2 * numbers * self.dtype.itemsize


@dataclass
class Prefilled:
    """What prefilling a prefix gave besides its keys and values.

    Attributes:
        next_position: the position of the token that comes after the prefix.
        features: what the vision tower gave, to prefill from again; None without pictures, and
            where several prefixes were computed together.
        timer: how long the decoder takes, the vision tower not counted; all prefixes together.
        states: of each layer that carries one, the state behind the prefix: tensors (1, ...).
        pictures: the prefix's pictures as one, with `features`; None where there are none.
    """

    next_position: int
    features: Features | None
    timer: Timer
    states: list[LayerState]
    pictures: ImageInputs | None = None


class Decoder:
    """The language model inside an MLLM.

    Args:
        model: the whole model; its decoder's attention is replaced in place. Another `Decoder` may
            be made of it after its modules have changed: what is wrapped stays wrapped.
        norm: the decoder's final norm.

    Attributes:
        layers: the decoder's.

    Raises:
        UnsupportedModelError: the decoder has no list of layers.
    """

    def __init__(self, model: PreTrainedModel, norm: nn.Module) -> None:
        self._model = model
        self._decoder = decoder_of(model)
        self.layers = layers = decoder_layers(model)
        self._last_layer = layers[-1]
        _hook(norm, _before_norm)
        _hook(self._last_layer, _before_last_layer, with_kwargs=True)
        _hook(self._decoder, _before_decoder, with_kwargs=True)
        self._mixers = wrap_mixers(layers, _pass.get)
        _wrap_attention(self._decoder.config)
        _wrap_queries(layers[-1])
        wrap_image_features(model.base_model)
        wrap_experts(layers, lambda: isinstance(_pass.get(), _Extend))

    @property
    def attention(self) -> str:
        """What computes the layers' attention in ordinary passes, as Hugging Face names it."""
        return self._decoder.config._attn_implementation.removeprefix(_PREFIX)

    def hidden_states(
        self, batch: Mapping[str, Tensor], features: Features | None = None
    ) -> Tensor:
        """(B, T, D): what the last layer gives for whole prompts, before the final norm.

        Args:
            batch: `MLLM.model_inputs`.
            features: what the vision tower gives for the batch's pictures; it does not run then.

        Raises:
            ValueError: `features` were given, and the model went on without a look at them.
        """
        with vision_pass(features) as vision:
            hidden = _capture(self._model.base_model, **batch)
        _check_taken(features, vision)
        return hidden

    def features(self, batch: Mapping[str, Tensor]) -> Features:
        """What the vision tower gives for a batch's pictures; the decoder does not run.

        Raises:
            UnsupportedModelError: the model does not ask for it in the way that is known here.
        """
        with vision_pass(only=True) as vision:
            self._model.base_model(**batch, use_cache=False)
        if vision.features is None:
            raise UnsupportedModelError("it looks at pictures in a way of its own")
        return vision.features

    def kv_layout(self, batch: Mapping[str, Tensor]) -> KvLayout:
        """What is kept of a prefix, seen in a pass over `batch`.

        Raises:
            UnsupportedModelError: a layer's keys and values differ in shape, or its attention is
                not called as others' are.
        """
        run = _Look()
        with _passing(run):
            self._model.base_model(**batch, use_cache=False)
        if len(run.sources) != len(self.layers):
            raise UnsupportedModelError(
                f"{len(self.layers) - len(run.sources)} of its {len(self.layers)} layers compute "
                "no keys and values that could be kept, and no state"
            )
        shapes = tuple(KvShape(keys.shape[1], keys.shape[3]) for keys in run.keys)
        states = shapes_of(run.states)
        window = min(run.windows, default=None)
        return KvLayout(shapes, run.keys[0].dtype, tuple(run.sources), states, window)

    def prefill(
        self,
        batch: Mapping[str, Tensor],
        lengths: Sequence[int],
        write: WriteKv,
        layout: KvLayout,
        features: Features | None = None,
    ) -> list[Prefilled]:
        """Computes what is kept of prefixes, and nothing that only their output needs.

        On a GPU they are queued when this returns: nothing waits for them here.

        Args:
            batch: `MLLM.model_inputs` of B prefixes, filled up on the right to T tokens.
            lengths: how many tokens each has.
            write: takes a place in the layout's `shapes`, and the keys and the values there, each
                (B, G, T, D), positions applied; called once for each, in order.
            layout: what `kv_layout` gave.
            features: what an earlier prefill of the same picture gave: its vision is not run again.

        Raises:
            ValueError: `features` were given, and the model went on without a look at them.
        """
        run = _Prefill(write, lengths, layout, Timer(self._model.device))
        with _passing(run), vision_pass(features) as vision, contextlib.suppress(_Finished):
            self._model.base_model(**batch, use_cache=False)
        run.timer.stop()
        _check_taken(features, vision)
        features = vision.features if len(lengths) == 1 else None
        positions = _next_positions(run.position_ids, lengths)
        return [
            Prefilled(position, features, run.timer, states)
            for position, states in zip(positions, run.states, strict=True)
        ]

    @torch.inference_mode()
    def extend(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        last_rows: Tensor,
        prefixes: Sequence[PrefixBatch | None],
        states: ReadStates | None = None,
    ) -> Tensor:
        """(B, D): the last layer's output at the last token of each suffix, before the final norm.

        The last layer computes queries, output projection and MLP for those tokens only.

        Args:
            input_ids: (R,) the suffixes' tokens, packed.
            position_ids: (R,) their positions in their prompts.
            last_rows: (B,) the row of each suffix's last token.
            prefixes: for each layer, the cached prefixes and which rows are whose; None for one
                that carries a state instead.
            states: takes the place of a layer among those that carry a state, and some suffixes;
                gives the layer's state behind their prefixes, tensors (B, ...). None where no layer
                carries one.
        """
        run = self._extend_pass(len(input_ids), last_rows, prefixes, states)
        with _passing(run):
            hidden = _capture(
                self._decoder,
                input_ids=input_ids[None],
                position_ids=position_ids[None],
                attention_mask=_finished_mask(self._model),
            )
        return hidden[0]

    @torch.inference_mode()
    def extend_with_pictures(
        self,
        batch: Mapping[str, Tensor],
        first_position: int,
        last_rows: Tensor,
        prefixes: Sequence[PrefixBatch | None],
        states: ReadStates | None = None,
        features: Features | None = None,
    ) -> Tensor:
        """`extend` for one suffix that has pictures: the model puts them among its tokens.

        Args:
            batch: `MLLM.model_inputs` of the suffix, filled up to R tokens.
            first_position: of its first token in its prompt.
            last_rows: see `extend`.
            prefixes: see `extend`.
            states: see `extend`.
            features: what the vision tower gives for its pictures; it does not run then.

        Raises:
            ValueError: `features` were given, and the model went on without a look at them.
        """
        run = self._extend_pass(batch["input_ids"].shape[1], last_rows, prefixes, states)
        run.first_position = first_position
        run.mask = _finished_mask(self._model)
        with vision_pass(features) as vision, _passing(run):
            hidden = _capture(self._model.base_model, **batch)
        _check_taken(features, vision)
        return hidden[0]

    def _extend_pass(
        self,
        num_rows: int,
        last_rows: Tensor,
        prefixes: Sequence[PrefixBatch | None],
        states: ReadStates | None,
    ) -> _Extend:
        run = _Extend(prefixes, last_rows, self._last_layer, len(self.layers) - 1)
        if self._mixers:
            if states is None:
                raise ValueError("its layers go on from states: `states` must give them")
            run.states = {
                mixer.layer: partial(states, place) for place, mixer in enumerate(self._mixers)
            }
            run.groups = _groups(next(filter(None, prefixes)), num_rows)
        return run


class _Look:
    """A pass over one prompt that sees what each layer keeps, and whose it attends to."""

    skips_queries = False

    def __init__(self) -> None:
        self.keys: list[Tensor] = []  # different tensors, in order
        self.sources: list[int | None] = []
        self.states: list[LayerState] = []
        self.windows: list[int] = []

    def attend(
        self,
        module: Any,
        _query: Tensor,
        key: Tensor,
        value: Tensor,
        _mask: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        if (window := options.get("sliding_window")) is not None:
            self.windows.append(window)
        if module.layer_idx != len(self.sources):
            raise UnsupportedModelError("its layers do not attend once each, in order")
        if key.shape != value.shape:
            raise UnsupportedModelError("its layers' keys and values differ in shape")
        known = (place for place, keys in enumerate(self.keys) if keys is key)
        source = next(known, len(self.keys))
        if source == len(self.keys):
            self.keys.append(key)
        self.sources.append(source)

    def mix(self, mixer: Mixer, hidden: Tensor) -> Tensor:
        if mixer.layer != len(self.sources):
            raise UnsupportedModelError("its layers do not carry one state each, or attend once")
        output, state = mixer.prefill(hidden)
        self.states.append(state)
        self.sources.append(None)
        return output


class _Prefill:
    """A pass over prefixes that hands out keys and values, keeps states and stops after the last.

    Args:
        write: takes keys and values.
        lengths: how many tokens each prefix has.
        layout: says what is kept.
        timer: measures.
    """

    skips_queries = True

    def __init__(
        self, write: WriteKv, lengths: Sequence[int], layout: KvLayout, timer: Timer
    ) -> None:
        self.write = write
        self.lengths = lengths
        self.places = {layer: place for place, layer in enumerate(layout.owners)}
        self.last_layer = layout.last_layer
        self.position_ids: Tensor | None = None
        self.timer = timer
        self.states: list[list[LayerState]] = [[] for _ in lengths]

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor | None:
        place = self.places.get(module.layer_idx)
        if place is not None:
            self.write(place, key, value)
            if module.layer_idx == self.last_layer:
                raise _Finished
        if query.device.type != "cpu" or not _is_causal(module, mask, options):
            return None
        name, _ = choose("prefix_attention", "auto", query.device, query.dtype)
        return self._attend_on_cpu(query, key, value, options) if name == "cpu" else None

    def _attend_on_cpu(
        self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """The same by `prefix_attention`: torch's also multiplies by keys that no token sees."""
        batch, kv_heads, tokens, dim = key.shape
        no_pages = key.new_empty((0, kv_heads, dim, _FEWEST_SLOTS))
        starts = torch.arange(0, batch * tokens, tokens, dtype=torch.int32)
        nothing_before = PrefixBatch(
            key_pages=no_pages,
            value_pages=no_pages.mT.contiguous(),
            page_table=starts.new_empty((batch, 0)),
            prefix_lengths=torch.zeros_like(starts),
            suffix_starts=starts,
            suffix_lengths=torch.tensor(self.lengths, dtype=torch.int32),
            max_suffix_length=tokens,
        )
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        out = prefix_attention(
            q,
            k,
            v,
            nothing_before,
            scale=options["scaling"],
            sliding_window=options.get("sliding_window"),
        )
        return out.unflatten(0, (batch, tokens))

    def mix(self, mixer: Mixer, hidden: Tensor) -> Tensor:
        """Each prefix by itself, up to its own end: what fills it up would be in its state."""
        outputs = []
        for row, length in enumerate(self.lengths):
            output, state = mixer.prefill(hidden[row : row + 1, :length])
            self.states[row].append(state)
            outputs.append(F.pad(output, (0, 0, 0, hidden.shape[1] - length)))
        if mixer.layer == self.last_layer:
            raise _Finished
        return torch.cat(outputs)


class _Extend:
    """A pass over packed suffixes that go on from their prefixes."""

    def __init__(
        self,
        prefixes: Sequence[PrefixBatch | None],
        last_rows: Tensor,
        last_layer: nn.Module,
        last_index: int,
    ) -> None:
        self.prefixes = prefixes
        self.last_rows = last_rows
        self.last_layer = last_layer
        self.last_index = last_index
        self.collecting = False
        # Of the last layer: keys and values, or what a mixer gives for the last rows
        self.collected: tuple[Tensor, ...] = ()
        self.states: dict[int, Callable[[slice], LayerState]] = {}  # by layer
        self.groups: list[Group] = []
        # Of a suffix that the whole model is given, which takes it for a prompt
        self.first_position: int | None = None
        self.mask: Tensor | None = None

    @property
    def skips_queries(self) -> bool:
        return self.collecting

    def moved(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's arguments with positions that start where the prefix ends."""
        if self.first_position is None:
            return kwargs
        positions = kwargs.get("position_ids")
        if positions is None:
            rows = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"))
            given = next(x for x in rows if x is not None)
            positions = torch.arange(given.shape[1], device=given.device)[None]
        first = positions[..., :1].amin()  # some models count from 1
        moved = positions - first + self.first_position
        return {**kwargs, "position_ids": moved, "attention_mask": self.mask}

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _mask: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        if terms := [name for name in _UNSUPPORTED_TERMS if options.get(name) is not None]:
            raise UnsupportedModelError(f"its attention adds {', '.join(terms)} to the scores")
        prefix = self.prefixes[module.layer_idx]
        assert prefix is not None
        if self.collecting:
            self.collected = key, value
            raise _Finished
        if module.layer_idx == self.last_index:
            key, value = self.collected
            prefix = replace(prefix, last_only=True)
        out = prefix_attention(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            prefix,
            scale=options["scaling"],
            sliding_window=options.get("sliding_window"),
        )
        return out[None]

    def mix(self, mixer: Mixer, hidden: Tensor) -> Tensor:
        if mixer.layer == self.last_index and not self.collecting:
            return self.collected[0]
        output = mixer.extend(hidden, self.groups, self.states[mixer.layer])
        if self.collecting:
            self.collected = (output.index_select(1, self.last_rows),)
            raise _Finished
        return output


def _is_causal(module: Any, mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Whether a layer's tokens see all before them, or those in a window, and nothing is added."""
    if mask is not None or options.get("scaling") is None:
        return False
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    return is_causal and not any(options.get(name) is not None for name in _UNSUPPORTED_TERMS)


def _groups(batch: PrefixBatch, num_rows: int) -> list[Group]:
    """How suffixes pass through modules that carry a state.

    Each by itself on a CPU, where many small steps cost little and no bit depends on another. On a
    GPU all at once, in a shape that the chunk's alone decides.
    """
    starts, lengths = batch.suffix_starts, batch.suffix_lengths
    if starts.device.type == "cpu":
        return alone(starts, lengths)
    return together(starts, lengths, num_rows, batch.max_suffix_length)


@contextlib.contextmanager
def looking_at_attention(look: LookAtAttention) -> Iterator[None]:
    """Shows `look` every attention of this thread's ordinary passes, whose masks it may change.

    Of models that a `Decoder` was made of.
    """
    token = _look.set(look)
    try:
        yield
    finally:
        _look.reset(token)


@contextlib.contextmanager
def _passing(run: _Prefill | _Extend | _Look) -> Iterator[None]:
    """`run` is what this thread's pass is for."""
    token = _pass.set(run)
    try:
        yield
    finally:
        _pass.reset(token)


def _finished_mask(model: PreTrainedModel) -> Tensor:
    """Taken for a finished mask by Hugging Face, and read by nothing."""
    return torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=model.device)


def _check_taken(features: Features | None, vision: VisionPass) -> None:
    if features is not None and not vision.requested:
        raise ValueError("the model took no features: its images lack what it looks for")


def _capture(module: nn.Module, **batch: Any) -> Tensor:
    captured: list[Tensor] = []
    token = _captured.set(captured)
    try:
        module(**batch, use_cache=False)
    finally:
        _captured.reset(token)
    return captured[0]


def _hook(module: nn.Module, function: Callable[..., Any], *, with_kwargs: bool = False) -> None:
    """Has `function` called before the module, once however often this is done."""
    if function not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(function, with_kwargs=with_kwargs)


def _before_norm(_norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Takes the norm's input, and leaves the norm one row to work on: nobody reads its output."""
    captured = _captured.get()
    if captured is None or captured:  # not requested, or there already
        return None
    captured.append(args[0])
    return (args[0][:1, :1], *args[1:])


def _before_decoder(
    _decoder: nn.Module, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    run = _pass.get()
    if isinstance(run, _Prefill):
        run.position_ids = kwargs.get("position_ids")
        run.timer.start()
    return args, run.moved(kwargs) if isinstance(run, _Extend) else kwargs


def _before_last_layer(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Keys and values of every row first; then the layer runs on the last tokens alone.

    A layer makes queries, keys and values of one input, so it is called twice: here with all rows,
    up to its attention, which leaves keys and values in `collected`; then by the model with what
    this returns, where its attention takes those. Its own call in here comes to this hook again.
    """
    run = _pass.get()
    if not isinstance(run, _Extend) or layer is not run.last_layer:
        return None
    if run.collecting or run.collected:
        return None
    run.collecting = True
    with contextlib.suppress(_Finished):
        layer(*args, **kwargs)
    run.collecting = False
    kwargs = {
        **kwargs,
        "position_embeddings": tuple(
            x.index_select(-2, run.last_rows) for x in kwargs["position_embeddings"]
        ),
    }
    if isinstance(kwargs.get("position_ids"), Tensor):
        kwargs["position_ids"] = kwargs["position_ids"].index_select(-1, run.last_rows)
    # The hidden states, and what else a layer is given of every row, as Gemma 4's are
    rows = (x.index_select(1, run.last_rows) if isinstance(x, Tensor) else x for x in args)
    return tuple(rows), kwargs


def _wrap_attention(config: Any) -> None:
    usual = config._attn_implementation
    if usual.startswith(_PREFIX):
        return
    name = _PREFIX + usual

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        run = _pass.get()
        if run is not None:
            output = run.attend(module, query, key, value, mask, options)
            if output is not None:
                return output, None
        elif (look := _look.get()) is not None:
            mask = look(module.layer_idx, key, mask)
        # Each modelling file has an eager attention of its own, under this name
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(usual, eager)
        return attend(module, query, key, value, mask, **options)

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[usual])
    config._attn_implementation = name


def _wrap_queries(last_layer: nn.Module) -> None:
    """Lets the last layer's query projection be left out where only keys are wanted.

    A layer that computes queries, keys and values in one product does so as before.
    """
    projection = getattr(getattr(last_layer, "self_attn", None), "q_proj", None)
    if not isinstance(projection, nn.Linear) or hasattr(projection.forward, _WRAPPED):
        return
    project = projection.forward

    def forward(hidden: Tensor) -> Tensor:
        run = _pass.get()
        if run is None or not run.skips_queries:
            return project(hidden)
        return hidden.new_zeros(()).expand(*hidden.shape[:-1], projection.out_features)

    setattr(forward, _WRAPPED, True)
    setattr(projection, "forward", forward)  # noqa: B010 (a method, to mypy)


def _next_positions(position_ids: Tensor | None, lengths: Sequence[int]) -> list[int]:
    """The positions after prefixes of such lengths, given what their decoder was called with."""
    if position_ids is None:
        return list(lengths)
    if position_ids.ndim == 3:
        # Of three axes; a row before them counts tokens, for masks
        position_ids = position_ids[-3:].amax(0)
    rows = position_ids.expand(len(lengths), -1)
    lasts = [row[:length].amax() for row, length in zip(rows, lengths, strict=True)]
    return (torch.stack(lasts) + 1).tolist()  # the one wait for a GPU
