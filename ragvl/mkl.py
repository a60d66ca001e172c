"""Has MKL, which torch multiplies with on x86, give a row of a product bits of its own."""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLE, _STRICT = "MKL_CBWR", "AUTO,STRICT"  # conditional numerical reproducibility


def ask_for_strict_sums() -> None:
    """Lets a row's bits not depend on how many other rows there are, on Intel's CPUs.

    There MKL splits sums as suits a product's size, unless it is told not to; it is as fast then.
    It reads the environment at its first product. On other makers' CPUs it does not do that, and
    the same setting would choose slower instructions.

    Source: Intel's oneMKL developer guide, "Reproducibility Conditions".
    """
    if _maker() == "GenuineIntel":
        os.environ.setdefault(_VARIABLE, _STRICT)


def _maker() -> str:
    """Who made this CPU, as Linux names it; empty where that is not known."""
    facts = Path("/proc/cpuinfo")
    if not facts.exists():
        return ""
    with facts.open() as lines:
        named = next((line for line in lines if line.startswith("vendor_id")), "")
    return named.partition(":")[2].strip()
