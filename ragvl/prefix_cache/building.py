"""Computes prefixes into a pool's pages, several at once where that changes no bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ragvl.mllm import MLLM, Features, Prefilled, Prompt, WriteKv
from ragvl.prefix_cache.image_tokens import kept_tokens, num_dropped
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
        image_tokens: the share of each picture's tokens whose keys and values are kept; where it is
            less than 1, prefixes with pictures are computed one by one.
    """

    def __init__(
        self, mllm: MLLM, pool: PagePool, *, exact: bool, image_tokens: float = 1.0
    ) -> None:
        self._mllm = mllm
        self._pool = pool
        self._exact = exact
        self._image_tokens = image_tokens
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
            selects = self._image_tokens < 1 and bool(prefixes[places[0]].images)
            if len(places) == 1 or selects or not self._together:
                results = self._one_by_one(*part)
            elif not self._exact or (len(places), *shape) in self._same:
                results = self._at_once(*part)
            else:
                results = self._compared(*part)
            done |= zip(places, results, strict=True)
        return [done[i] for i in range(len(prefixes))]

    def num_dropped(self, sizes: Sequence[int]) -> int:
        """How many tokens of pictures of these sizes have no keys and values in the pages."""
        return num_dropped(sizes, self._image_tokens)

    def compute(
        self,
        prefix: Prompt,
        pages: Sequence[int],
        sizes: Sequence[int],
        features: Features | None = None,
    ) -> Prefilled:
        """Computes one prefix into its pages.

        Args:
            prefix: the prefix.
            pages: room for all of its tokens but those that are dropped.
            sizes: how many tokens each of its pictures has.
            features: see `MLLM.prefill`.
        """
        if self.num_dropped(sizes):
            done = self._prefill_fewer(prefix, pages, sizes, features)
        else:
            write = self._pool.writer([pages], [len(prefix)])
            (done,) = self._mllm.prefill([prefix], write, features)
        return self._with_states([done], [pages])[0]

    def _prefill_fewer(
        self,
        prefix: Prompt,
        pages: Sequence[int],
        sizes: Sequence[int],
        features: Features | None,
    ) -> Prefilled:
        """Prefills the whole prefix, and writes what is kept once the last layer has been seen."""
        held: list[tuple[Tensor, Tensor]] = []
        token = self._mllm.prompting.image_token_id
        (done,) = self._mllm.prefill(
            [prefix], lambda _, keys, values: held.append((keys, values)), features
        )
        every = [keys[0] for keys, _ in held]
        kept = kept_tokens(prefix.input_ids, token, sizes, every, self._image_tokens)
        write = self._pool.writer([pages], [len(kept)])
        for place, (keys, values) in enumerate(held):
            write(place, keys.index_select(2, kept), values.index_select(2, kept))
        return done

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
            self.compute(prefix, own, [image.num_tokens for image in prefix.images])
            for prefix, own in zip(prefixes, pages, strict=True)
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
