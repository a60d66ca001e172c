"""What cached keys and values may be compressed to.

Known without torch, so that commands can list the choices before they load anything.
"""

from __future__ import annotations

from typing import Literal, get_args

Compression = Literal["int8", "int4"]

COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
"""Every one of them, the more exact first."""


def page_tokens(compression: Compression | None) -> int:
    """How many tokens a page of a prefix cache holds.

    Few enough that half an unused page is little, and one AVX-512 vector of keys. In int4 all keys
    of a page share a scale and a minimum, of which twice as many tokens make half as many.
    """
    return 32 if compression == "int4" else 16
