"""Opens a saved index with the encoders that built it, which it remembers by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ragvl.data.document import DocumentLike
from ragvl.messages import shown
from ragvl.retriever.disk_store import DISK_MANIFEST
from ragvl.retriever.dual_encoder import DualEncoder, check_encoder
from ragvl.retriever.encoding import Encoder
from ragvl.retriever.fusion import FUSED, ORDERS, Fusion, Order
from ragvl.retriever.index import IndexKind, SearchDevice
from ragvl.retriever.milvus import MilvusAddress, MilvusStore, check_kind
from ragvl.retriever.retriever import FusedRetriever, Retriever, open_store
from ragvl.retriever.storage import MANIFEST, IndexFileError, read_metadata
from ragvl.retriever.text_encoder import TextEncoder, check_text_encoder

_OPTIONS: dict[Order, str] = {"picture": "encoder", "caption": "text encoder"}
_READS: dict[Order, str] = {"picture": "pictures", "caption": "captions"}


def check_index(
    folder: str | Path,
    *,
    encoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    fusion: Fusion | None = None,
) -> dict[Order, dict[str, str]]:
    """Sees whether a saved index can be opened: its files' sizes, and encoders; nothing is loaded.

    Args:
        folder: see `open_index`.
        encoder: see `open_index`.
        text_encoder: see `open_index`.
        fusion: see `open_index`.

    Returns:
        By order, arguments of the encoder's `from_pretrained`.

    Raises:
        FileNotFoundError: there is no saved index in `folder`, or an encoder is not there.
        IndexFileError: the index is damaged.
        ValueError: something was given that the index has no use for, or an encoder is of another
            kind, or neither given nor remembered.
    """
    given = {"picture": encoder, "caption": text_encoder}
    saved = saved_encoders(folder)
    found: dict[Order, dict[str, str]] = {}
    for order in ORDERS:
        path, what = given[order], _OPTIONS[order]
        if order not in saved:
            if path is not None:
                raise ValueError(
                    f"the {what} {shown(path)} is of no use: the index in {shown(folder)} was not "
                    f"built of {_READS[order]}"
                )
            continue
        found[order] = {"path": str(path)} if path is not None else saved[order]
        if not found[order]:
            raise ValueError(
                f"the index in {shown(folder)} does not know where the {what} is that built it: "
                "name it"
            )
    if fusion is not None and len(found) < 2:
        (order,) = found
        raise ValueError(
            f"fusion={fusion.name}: the index in {shown(folder)} was built of {_READS[order]} alone"
        )
    for order, location in found.items():
        (check_encoder if order == "picture" else check_text_encoder)(**location)
    return found


def open_index(
    folder: str | Path,
    *,
    encoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    fusion: Fusion | None = None,
    documents: Iterable[DocumentLike] = (),
    device: str = "auto",
    search_device: SearchDevice = "auto",
) -> Retriever | FusedRetriever:
    """Loads a saved index and its encoders.

    Args:
        folder: where it was saved, or see `MilvusAddress`.
        encoder: the encoder of pictures that built it, in place of the one that it remembers.
        text_encoder: the same of texts.
        fusion: in place of the one that was saved, of an index of both.
        documents: see `Retriever.load`.
        device: of the encoders.
        search_device: where to search; see `VectorIndex`.

    Raises:
        FileNotFoundError, IndexFileError, ValueError: see `check_index` and `Retriever.load`.
        MilvusError, ImportError: see `MilvusStore.open`.
        IndexMismatchError: an encoder is not the one that built it.
    """
    found = check_index(folder, encoder=encoder, text_encoder=text_encoder, fusion=fusion)
    others: dict[str, Any] = {"documents": documents, "device": search_device}
    encoders: list[Encoder] = []
    for order, location in found.items():
        kind: Any = DualEncoder if order == "picture" else TextEncoder
        encoders.append(kind.from_pretrained(**location, device=device))
    if len(encoders) == 2:
        return FusedRetriever.load(folder, *encoders, fusion=fusion, **others)
    return Retriever.load(folder, encoders[0], **others)


def is_saved_index(place: str | Path) -> bool:
    """Whether a place has a saved index, whole or not; an address of Milvus counts as one."""
    manifests = (MANIFEST, DISK_MANIFEST)
    return MilvusAddress.find(place) is not None or any(
        (Path(place) / manifest).is_file() for manifest in manifests
    )


def new_retriever(
    encoders: Mapping[Order, Encoder],
    place: str | Path,
    *,
    kind: IndexKind = "exact",
    fusion: Fusion | None = None,
) -> Retriever | FusedRetriever:
    """An empty retriever, which `save` makes the index of a place, and `close` drops if unsaved.

    Args:
        encoders: one, or two for an index of both.
        place: a folder, or see `MilvusAddress`.
        kind: see `VectorIndex`.
        fusion: makes one order of two.

    Raises:
        ImportError, OSError, ValueError: see `MilvusStore.create_draft`.
    """
    address = MilvusAddress.find(place)
    if address is None:
        of_order = [Retriever(encoder, kind=kind) for encoder in encoders.values()]
    else:
        check_place(place, kind, num_encoders=len(encoders))
        (encoder,) = encoders.values()
        store = MilvusStore.create_draft(address, encoder, kind=kind)
        of_order = [Retriever(encoder, store=store)]
    if len(of_order) == 1:
        return of_order[0]
    picture, caption = of_order
    return FusedRetriever(picture, caption, fusion)


def check_place(place: str | Path, kind: IndexKind, *, num_encoders: int) -> None:
    """Refuses an index that a place cannot have, before anything is loaded or connected.

    Raises:
        ValueError: Milvus has none of that kind, or none of two encoders, or it is no address.
    """
    address = MilvusAddress.find(place)
    if address is None:
        return
    check_kind(address, kind)
    if num_encoders > 1:
        raise ValueError(
            f"{address}: a collection of Milvus is of one encoder: name --encoder or "
            "--text-encoder, or a folder for an index of both"
        )


def _store_metadata(place: str | Path) -> dict[str, Any] | None:
    """What a store at a place says of itself; None of another index."""
    if (store := open_store(place)) is None:
        return None
    try:
        return store.metadata
    finally:
        store.close()


def saved_encoders(folder: str | Path) -> dict[Order, dict[str, str]]:
    """By order, what finds the encoder that built an index; empty where that is not known.

    Raises:
        FileNotFoundError: there is no saved index in `folder`.
        IndexFileError: it is damaged.
    """
    metadata = _store_metadata(folder) or read_metadata(folder)
    views: Any = metadata.get("views") if metadata.get("order") == FUSED else None
    if views is None:  # an index of one encoder; of pictures, where it is an older one
        views = {metadata.get("order", "picture"): metadata}
    try:
        origins = {order: _origin(view) for order, view in views.items()}
    except (AttributeError, TypeError) as error:
        raise IndexFileError(f"{shown(folder)} holds no index of ragvl's") from error
    if not origins or not origins.keys() <= set(ORDERS):
        raise IndexFileError(f"{shown(folder)} holds an index of {shown(', '.join(origins))}")
    return origins


def _origin(view: Mapping[str, Any]) -> dict[str, str]:
    origin = view.get("encoder", {})
    allowed = {"path", "revision", "subfolder"}
    if not origin.keys() <= allowed or not all(isinstance(x, str) for x in origin.values()):
        raise TypeError("it names an encoder otherwise")
    return dict(origin)
