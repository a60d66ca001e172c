"""Supplies pictures with their visual tokens: for prompts that have no prefix to be reused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property, partial
from weakref import WeakValueDictionary

from ragvl.data.images import ImageError
from ragvl.data.picture import Picture
from ragvl.identity import name_of
from ragvl.mllm import MLLM, ImageInputs, encode_picture
from ragvl.mllm.inputs import probe_image
from ragvl.prefix_cache.cache import PrefixCache
from ragvl.prefix_cache.lru import LruTier
from ragvl.prefix_cache.payloads import UnusableRecordError, form_of, picture_of, picture_record
from ragvl.prefix_cache.record import PrefixRecord, are_finite
from ragvl.prefix_cache.reuse import features_problem
from ragvl.workers import Workers

logger = logging.getLogger(__name__)


class PictureSupply:
    """Takes pictures' visual tokens from a cache's tiers, and computes what none has.

    They are always computed of one picture alone, so that prompts have the same bits whether they
    were kept or not.

    Args:
        mllm: the model.
        cache: keeps them.
        model: names the model as it is, and what it is computed with.
    """

    def __init__(self, mllm: MLLM, cache: PrefixCache, *, model: str) -> None:
        self._mllm = mllm
        self._cache = cache
        self._model = model

    @cached_property
    def problem(self) -> str | None:
        """Why this model's visual tokens cannot be kept, or None where they can.

        Pictures are then supplied with their pixels, and nothing of them is kept.
        """
        return features_problem(self._mllm)

    def call(self, workers: Workers) -> PictureCall:
        """Supplies the pictures of one call, which `workers` prepare."""
        return PictureCall(self, workers)

    def has(self, picture: Picture) -> bool:
        """Whether a tier has its visual tokens.

        Raises:
            ImageError: it cannot be read.
        """
        if self.problem is not None:
            return False
        key = self.key(picture.digest())
        return key in self._memory or key in self._cache.below

    # --- for a call -----------------------------------------------------------------------------

    def take(self, picture: Picture, digest: str, key: str, workers: Workers) -> SuppliedPicture:
        """A picture that nobody in this call has taken."""
        encode = partial(self._encoded, picture, digest)
        if self.problem is not None:
            return SuppliedPicture(workers.submit(encode).result, None, known=False)
        look = partial(self._look, key)
        if (kept := self._memory.get(key)) is not None:
            return SuppliedPicture(lambda: kept, None, known=True)
        if key in self._cache.below:
            return SuppliedPicture(partial(self._loaded, key, encode), look, known=True)
        return SuppliedPicture(workers.submit(encode).result, look, known=False)

    def key(self, digest: str) -> str:
        """Names the visual tokens of a picture of this digest."""
        return name_of("visual tokens", digest, self._model)

    # --- inside ---------------------------------------------------------------------------------

    @cached_property
    def _memory(self) -> LruTier[ImageInputs]:
        return self._cache.attach_pictures(self._mllm)

    @cached_property
    def _form(self) -> object:
        """What is the same of every picture's features."""
        inputs = self._mllm.prompting.encode_image(probe_image())
        return form_of(self._mllm.with_features(inputs))

    def _encoded(self, picture: Picture, digest: str) -> ImageInputs:
        inputs = encode_picture(self._mllm.prompting, picture)
        if picture.digest() != digest:
            raise ImageError(f"{picture.name} was changed while it was read")
        return inputs

    def _loaded(self, key: str, encode: Callable[[], ImageInputs]) -> ImageInputs:
        return self._cache.below.load(key, self._restore) or encode()

    def _restore(self, record: PrefixRecord) -> ImageInputs:
        image = picture_of(record, self._mllm.device)
        prompting = self._mllm.prompting
        (expanded,) = prompting.tokenize([image.expansion])
        if expanded.count(prompting.image_token_id) != image.num_tokens:
            raise UnusableRecordError("its record has other visual tokens than it says")
        if form_of(image) != self._form:
            raise UnusableRecordError("its record does not fit the model")
        return image

    def _look(self, key: str, image: ImageInputs) -> ImageInputs:
        """The picture with its features, which every tier then has."""
        if image.features is None:
            image = self._mllm.with_features(image)
            if not are_finite((image.features or {}).values()):
                logger.warning("the visual tokens %s are not kept: NaN or infinity", key)
                return image
            if self._cache.below:
                self._cache.below.put(key, picture_record(image))
        self._memory.put(key, image)
        return image


class PictureCall:
    """The pictures of one call: each is prepared and looked at once while anybody holds it."""

    def __init__(self, supply: PictureSupply, workers: Workers) -> None:
        self._supply = supply
        self._workers = workers
        self._at_work: WeakValueDictionary[str, SuppliedPicture] = WeakValueDictionary()

    def take(self, picture: Picture) -> SuppliedPicture:
        """A picture; what no tier has of it is being prepared when this returns."""
        try:
            digest = picture.digest()
        except ImageError as error:  # reported in its turn
            return SuppliedPicture(partial(_raise, error), None, known=False)
        key = self._supply.key(digest)
        supplied = self._at_work.get(key)
        if supplied is None:
            supplied = self._supply.take(picture, digest, key, self._workers)
            self._at_work[key] = supplied
        return supplied


class SuppliedPicture:
    """A picture on its way into prompts.

    Args:
        prepared: gives it, with its features or ready for the vision tower, or raises why it cannot
            be used.
        look: computes the features of what `prepared` gave; None where there is nothing to be done.

    Attributes:
        known: whether a tier had its features.
    """

    def __init__(
        self,
        prepared: Callable[[], ImageInputs],
        look: Callable[[ImageInputs], ImageInputs] | None,
        *,
        known: bool,
    ) -> None:
        self.known = known
        self._prepared = prepared
        self._look = look
        self._image: ImageInputs | None = None

    @property
    def inputs(self) -> ImageInputs:
        """It as far as it is ready; what stands for it in a prompt's text is known.

        Raises:
            ImageError: it cannot be used.
        """
        if self._image is None:
            self._image = self._prepared()
        return self._image

    def seen(self) -> ImageInputs:
        """It with its visual tokens, where this model's can be kept; computed once.

        Raises:
            ImageError: it cannot be used.
        """
        if self._look is not None:
            image = self._image = self._look(self.inputs)
            self._prepared, self._look = lambda: image, None  # what they hold are its pixels
        return self.inputs


def _raise(error: ImageError) -> ImageInputs:
    raise error
