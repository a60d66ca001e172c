"""Supplies the prefixes that a call needs: looked up, loaded or computed, and held while in use."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Generic, Protocol, TypeVar

from ragvl.data.images import DocumentError
from ragvl.messages import reason
from ragvl.mllm import MLLM, Prompt, PromptTooLongError
from ragvl.prefix_cache.building import PrefixBuilder
from ragvl.prefix_cache.cache import PrefixCache
from ragvl.prefix_cache.device import CachedPrefix, Lease, LeaseFullError, PrefixTooLargeError
from ragvl.prefix_cache.payloads import UnusableRecordError, features_of, kind_of, prefix_of
from ragvl.prefix_cache.record import PrefixRecord, are_finite
from ragvl.runtime import is_out_of_memory, record_event
from ragvl.workers import Workers, ahead

logger = logging.getLogger(__name__)

_GROUP = 8  # prefixes that are computed together, while the next ones' pictures are prepared
_BLOCK = 32  # prefixes from which on a block is full


class Wanted(Protocol):
    """Whose prefix is wanted, such as a document."""

    @property
    def name(self) -> str:
        """What to call it in a message."""

    def key(self) -> str:
        """Names the prefix by all that it depends on, in 64 hexadecimal digits.

        Raises:
            DocumentError: a picture of it cannot be read.
        """

    def prefix(self) -> Prompt:
        """The tokens that every prompt about it begins with, and its pictures.

        Called after `key`, in another thread, and only where no tier has the prefix.

        Raises:
            DocumentError: it cannot be used.
            PromptTooLongError: nothing could follow its prefix.
        """


W = TypeVar("W", bound=Wanted)
Refuse = Callable[[W, Exception], None]


@dataclass(frozen=True)
class Supplied(Generic[W]):
    """What was wanted with its prefix.

    Attributes:
        wanted: what.
        prefix: its prefix.
        known: whether a tier had it.
    """

    wanted: W
    prefix: CachedPrefix
    known: bool


Block = list[Supplied[W]]


@dataclass(frozen=True)
class _Item(Generic[W]):
    """Something wanted, a few places before it is looked up.

    Attributes:
        wanted: what.
        key: its prefix's name; None where it has none.
        known: whether a tier has the prefix.
        prompt: gives the prefix to compute, or raises why there is none.
    """

    wanted: W
    key: str | None
    known: bool
    prompt: Callable[[], Prompt]


@dataclass
class _Call(Generic[W]):
    """What a call still needs.

    Attributes:
        coming: what has not been looked up.
        refuse: takes the error of what cannot be used.
        group: the next of them.
        lacking: what no tier has: prefixes by their keys, and who wants them.
    """

    coming: Iterator[_Item[W]]
    refuse: Refuse[W]
    group: deque[_Item[W]] = field(default_factory=deque)
    lacking: dict[str, tuple[Prompt, list[W]]] = field(default_factory=dict)

    def goes_on(self) -> bool:
        self.group.extend(islice(self.coming, _GROUP - len(self.group)))
        return bool(self.group or self.lacking)


class PrefixSupply:
    """Takes prefixes from a cache's tiers, and computes what none has.

    Args:
        mllm: a model whose prefixes can be reused.
        cache: keeps them.
        exact: prefixes are computed together only where that changes no bit.
    """

    def __init__(self, mllm: MLLM, cache: PrefixCache, *, exact: bool) -> None:
        self._mllm = mllm
        self._cache = cache
        self._device = cache.attach(mllm)
        self.pool = self._device.pool
        share = cache.image_tokens_of(mllm)
        self._compute = PrefixBuilder(mllm, self.pool, exact=exact, image_tokens=share)

    def blocks(self, wanted: Iterable[W], refuse: Refuse[W]) -> Iterator[Block[W]]:
        """All that is wanted with its prefix, as many at once as the device has room for.

        A block's prefixes are held until the next block is taken. It is empty where none of its
        documents can be used.

        Args:
            wanted: in this order, but for those of a block.
            refuse: is called with each that cannot be used and its error; it may raise that.

        Raises:
            PrefixCacheBusyError: other calls held the device's memory for too long.
        """
        with Workers() as workers:
            yield from self._blocks(self._items(wanted, workers), refuse)

    def warm(
        self, wanted: Iterable[W], refuse: Refuse[W]
    ) -> Iterator[tuple[W, CachedPrefix | None, bool]]:
        """Brings prefixes into the cache; each, and whether a tier had it. See `blocks`.

        The prefix is None where it stays in a lower tier, for the device keeps none.
        """
        with Workers() as workers:
            for known, items in groupby(self._items(wanted, workers), lambda item: item.known):
                if known and self._cache.is_scratch:
                    yield from ((item.wanted, None, True) for item in items)
                    continue
                for block in self._blocks(items, refuse):
                    yield from ((one.wanted, one.prefix, known) for one in block)

    def __contains__(self, key: str) -> bool:
        """Whether a tier has a prefix of this name, without counting as a use."""
        return key in self._cache

    def forget_broken(self, prefixes: Iterable[CachedPrefix]) -> set[str]:
        """Forgets prefixes that hold NaN or infinity, in every tier; returns their keys.

        A record on a disk may hold NaN and a checksum that is right: written by a process whose
        memory was at fault, or by hand.
        """
        broken = set()
        for prefix in prefixes:
            if prefix.key not in broken and not are_finite(self.pool.read(prefix.pages).values()):
                logger.warning("the prefix %s holds NaN or infinity and is forgotten", prefix.key)
                self._cache.drop(prefix.key)
                broken.add(prefix.key)
        return broken

    # --- looking up -----------------------------------------------------------------------------

    def _items(self, wanted: Iterable[W], workers: Workers) -> Iterator[_Item[W]]:
        """What is wanted; the next few that no tier has are being prepared."""
        return ahead((self._item(one, workers) for one in wanted), _GROUP)

    def _item(self, wanted: W, workers: Workers) -> _Item[W]:
        try:
            key = wanted.key()
        except DocumentError as error:  # reported in its turn
            return _Item(wanted, None, False, partial(_raise, error))
        if key in self:
            return _Item(wanted, key, True, wanted.prefix)
        return _Item(wanted, key, False, workers.submit(wanted.prefix).result)

    def _blocks(self, items: Iterable[_Item[W]], refuse: Refuse[W]) -> Iterator[Block[W]]:
        call = _Call(iter(items), refuse)
        while call.goes_on():
            with self._device.lease() as lease:
                block: Block[W] = []
                with contextlib.suppress(LeaseFullError):  # what is left comes into the next
                    while len(block) < _BLOCK and call.goes_on():
                        if call.lacking:
                            self._build(call, lease, block)
                        else:
                            self._look_up(call, lease, block)
                yield block

    def _look_up(self, call: _Call[W], lease: Lease, block: Block[W]) -> None:
        """Takes what of the next group some tier has; what none has is then lacking."""
        while call.group:
            item = call.group[0]  # until it is done: there may be no room for it in this lease
            if item.key in call.lacking:
                call.lacking[item.key][1].append(item.wanted)
            elif prefix := self._use(item.key, lease):
                block.append(Supplied(item.wanted, prefix, item.known))
            else:
                try:
                    prompt = item.prompt()
                    self._check_fits(item.wanted, prompt)
                except (DocumentError, PromptTooLongError, PrefixTooLargeError) as error:
                    call.refuse(item.wanted, error)
                else:
                    assert item.key is not None  # else its prompt() has raised
                    call.lacking[item.key] = prompt, [item.wanted]
            call.group.popleft()

    def _use(self, key: str | None, lease: Lease) -> CachedPrefix | None:
        """The prefix, on the device and held by `lease`; None if no tier has it."""
        if key is None:
            return None
        if (prefix := self._device.use(key, lease)) is not None:
            return prefix
        return self._cache.below.load(key, lambda record: self._restore(key, record, lease))

    def _check_fits(self, wanted: W, prompt: Prompt) -> None:
        try:
            self._device.check_fits(len(prompt) - self._num_dropped(prompt))
        except PrefixTooLargeError as error:
            raise PrefixTooLargeError(f"{wanted.name}: {error}") from None

    # --- bringing to the device -----------------------------------------------------------------

    def _build(self, call: _Call[W], lease: Lease, block: Block[W]) -> None:
        """Computes as many of the lacking prefixes as there is room for, into every tier."""
        # Visual tokens, and the time that one prefix takes, are known of prefixes built alone
        count = len(call.lacking) if self._cache.below.hold_kv else 1
        keys = list(islice(call.lacking, count))
        prompts = [call.lacking[key][0] for key in keys]
        dropped = list(map(self._num_dropped, prompts))
        lengths = [len(prompt) - fewer for prompt, fewer in zip(prompts, dropped, strict=True)]
        pages = self._device.reserve(lengths, lease)
        if len(pages) < count:
            # Batches of few sizes: a new one is computed twice, to see whether it changes a bit
            count = 1 << (len(pages).bit_length() - 1)
            for own in pages[count:]:
                self._device.give_back(own, lease)
        keys, prompts, pages = keys[:count], prompts[:count], pages[:count]
        every = self._compute(prompts, pages)
        ready = record_event(self.pool.device)
        for key, prompt, own, done, fewer in zip(
            keys, prompts, pages, every, dropped[:count], strict=True
        ):
            expansions = tuple(image.expansion for image in prompt.images)
            prefix = CachedPrefix(
                key, prompt.input_ids, expansions, done.next_position, own, ready, fewer
            )
            self._cache.below.keep(prefix, prompt, done, self.pool)
            prefix = self._device.insert(prefix, lease)
            _, waiting = call.lacking.pop(key)
            block += [Supplied(wanted, prefix, False) for wanted in waiting]

    def _num_dropped(self, prompt: Prompt) -> int:
        return self._compute.num_dropped([image.num_tokens for image in prompt.images])

    def _restore(self, key: str, record: PrefixRecord, lease: Lease) -> CachedPrefix:
        """The prefix that a record holds, on the device.

        Raises:
            UnusableRecordError: it is no record of this model's.
        """
        input_ids, expansions, next_position = prefix_of(record)
        expanded = self._mllm.prompting.tokenize(expansions)
        image_token = self._mllm.prompting.image_token_id
        sizes = [ids.count(image_token) for ids in expanded]
        if sum(sizes) != input_ids.count(image_token):
            raise UnusableRecordError("its record has other visual tokens than it says")
        dropped = self._compute.num_dropped(sizes)
        try:
            (pages,) = self._device.reserve([len(input_ids) - dropped], lease)
        except PrefixTooLargeError:
            raise UnusableRecordError("it is larger than the device tier") from None
        try:
            if kind_of(record) == "kv":
                ready = self.pool.load(pages, record.tensors)
            else:
                prompt, features = features_of(record, self._mllm.device)
                self._compute.compute(prompt, pages, sizes, features)
                ready = record_event(self.pool.device)
        # Whatever a foreign record trips in a model
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            self.pool.synchronize()  # before others write to these pages
            self._device.give_back(pages, lease)
            raise UnusableRecordError(f"its record does not fit ({reason(error)})") from error
        prefix = CachedPrefix(key, input_ids, expansions, next_position, pages, ready, dropped)
        return self._device.insert(prefix, lease)


def _raise(error: Exception) -> Prompt:
    raise error
