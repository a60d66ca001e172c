"""Computes prefixes into a pool's pages, several at once where that changes no bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ragvl.mllm import MLLM, Prefilled, Prompt, WriteKv
from ragvl.prefix_cache.pages import PagePool

Shape = tuple[object, ...]
Pages = Sequence[Sequence[int]]  # of each prefix


class PrefixBuilder:
    """Computes prefixes.

    A matrix product may add up in another order when more rows stand beside a prefix's own, which
    depends on the library, the processor and the shapes. So the first batch of each shape is
    computed one by one as well: if any bit differs, this model's prefixes are computed one by one
    from then on.

    Args:
        mllm: the model.
        pool: where keys and values go.
        exact: False computes together whatever has one shape, and compares nothing.
    """

    def __init__(self, mllm: MLLM, pool: PagePool, *, exact: bool) -> None:
        self._mllm = mllm
        self._pool = pool
        self._exact = exact
        self._same: set[Shape] = set()  # shapes of batches that changed nothing
        self._together = True

    def __call__(self, prefixes: Sequence[Prompt], pages: Pages) -> list[Prefilled]:
        """Computes each prefix into its pages."""
        by_shape: dict[Shape, list[int]] = {}
        for i, prefix in enumerate(prefixes):
            by_shape.setdefault(self._shape(prefix), []).append(i)
        done: dict[int, Prefilled] = {}
        for shape, places in by_shape.items():
            part = [prefixes[i] for i in places], [pages[i] for i in places]
            if len(places) == 1 or not self._together:
                results = self._one_by_one(*part)
            elif not self._exact or (len(places), *shape) in self._same:
                results = self._at_once(*part)
            else:
                results = self._compared(*part)
            done |= zip(places, results, strict=True)
        return [done[i] for i in range(len(prefixes))]

    def _shape(self, prefix: Prompt) -> Shape:
        tensors = [(name, x.shape) for image in prefix.images for name, x in image.tensors.items()]
        return (torch.get_num_threads(), self._mllm.padded_length(len(prefix)), *tensors)

    def _at_once(self, prefixes: Sequence[Prompt], pages: Pages) -> list[Prefilled]:
        write = self._pool.writer(pages, list(map(len, prefixes)))
        return self._with_states(self._mllm.prefill(prefixes, write), pages)

    def _with_states(self, every: list[Prefilled], pages: Pages) -> list[Prefilled]:
        """Puts what has been prefilled into its pages, keys and values apart, which are there."""
        for done, own in zip(every, pages, strict=True):
            self._pool.write_states(own, done.states)
            done.states.clear()  # they may be large, and are not needed again
        return every

    def _one_by_one(self, prefixes: Sequence[Prompt], pages: Pages) -> list[Prefilled]:
        return [
            done
            for prefix, own in zip(prefixes, pages, strict=True)
            for done in self._at_once([prefix], [own])
        ]

    def _compared(self, prefixes: Sequence[Prompt], pages: Pages) -> list[Prefilled]:
        """One by one, and also together, to find out whether that gives the same."""
        together: list[tuple[Tensor, Tensor]] = []
        batch = self._mllm.prefill(prefixes, lambda _, k, v: together.append((k, v)))
        same = torch.ones((), dtype=torch.bool, device=self._pool.device)
        every = []
        for row, (prefix, own) in enumerate(zip(prefixes, pages, strict=True)):
            write = self._pool.writer([own], [len(prefix)])

            def write_and_compare(
                layer: int, keys: Tensor, values: Tensor, row: int = row, write: WriteKv = write
            ) -> None:
                write(layer, keys, values)
                for alone, batch in zip((keys, values), together[layer], strict=True):
                    same.logical_and_((alone[0] == batch[row]).all())

            (done,) = self._mllm.prefill([prefix], write_and_compare)
            for state, batch_state in zip(done.states, batch[row].states, strict=True):
                for name, x in state.items():
                    same.logical_and_((x == batch_state[name]).all())
            every += self._with_states([done], [own])
        if same:
            self._same.add((len(prefixes), *self._shape(prefixes[0])))
        else:
            self._together = False
        return every
