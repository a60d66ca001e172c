"""Batches as Ray Data hands them over, in each of its formats: columns read, columns added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ragvl.messages import quoted, shown

if TYPE_CHECKING:
    import pyarrow

Batch = Any
"""A `pandas.DataFrame`, a `pyarrow.Table`, or a dict of numpy arrays."""


class UnknownColumnError(ValueError):
    """A batch lacks a column; the message names it, and those that there are."""


def column_names(batch: Batch) -> list[str]:
    """The columns' names, in order."""
    if isinstance(batch, dict):
        return list(batch)
    names = batch.column_names if hasattr(batch, "column_names") else batch.columns
    return [str(name) for name in names]


def check_column(batch: Batch, name: str) -> None:
    """Refuses a name of no column; a batch without rows may have none at all.

    Raises:
        UnknownColumnError: there is no such column.
    """
    names = column_names(batch)
    if names and name not in names:
        raise UnknownColumnError(f"there is no column {quoted(name)}, but {shown(names)}")


def column(batch: Batch, name: str) -> list[Any]:
    """A column's values as Python's own, and arrays; None where there is none.

    Of a mapping the entries without a value are left out, which a table's schema has put there.

    Raises:
        UnknownColumnError: there is no such column.
    """
    check_column(batch, name)
    if not column_names(batch):
        return []
    held = batch[name]
    values = held.to_pylist() if hasattr(held, "to_pylist") else list(held)
    return [_plain(value) for value in values]


def with_columns(batch: Batch, columns: Mapping[str, pyarrow.Array]) -> Batch:
    """The batch, in its own format, with columns that are new or in the place of others."""
    if isinstance(batch, dict):
        arrays = {name: _numpy(values) for name, values in columns.items()}
        return {**batch, **arrays}
    if hasattr(batch, "column_names"):
        for name, values in columns.items():
            batch = batch.drop_columns([name]) if name in batch.column_names else batch
            batch = batch.append_column(name, values)
        return batch
    return batch.assign(**{name: list(_numpy(values)) for name, values in columns.items()})


def texts(values: Sequence[str | None]) -> pyarrow.Array:
    """A column of texts."""
    import pyarrow as pa

    return pa.array(values, type=pa.string())


def numbers(values: Sequence[float | None]) -> pyarrow.Array:
    """A column of float32, each of which is one already."""
    import pyarrow as pa

    return pa.array(values, type=pa.float32())


def vectors(values: Sequence[np.ndarray | None], dim: int) -> pyarrow.Array:
    """A column of float32 vectors (dim,)."""
    import pyarrow as pa

    return pa.array(values, type=pa.list_(pa.float32(), dim))


def _numpy(values: pyarrow.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or _is_missing(value):
        return None
    if isinstance(value, Mapping):
        plain = ((key, _plain(one)) for key, one in value.items())
        return {key: one for key, one in plain if one is not None}
    if isinstance(value, list | tuple) or (
        isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1
    ):
        return [_plain(one) for one in value]
    return value.to_numpy() if type(value).__name__ == "TensorArrayElement" else value


def _is_missing(value: Any) -> bool:
    """Whether it is what pandas and numpy have in the place of a null."""
    if isinstance(value, float):
        return value != value
    return type(value).__name__ in ("NAType", "NaTType")
