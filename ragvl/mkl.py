"""Has MKL, which torch multiplies with on x86, add up alike however many rows a product has."""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLE, _STRICT = "MKL_CBWR", "AUTO,STRICT"  # conditional numerical reproducibility


def ask_for_strict_sums() -> None:
    """Lets a row's bits not depend on how many other rows there are, on Intel's CPUs.

    There MKL splits sums as suits a product's size, unless it is told not to. It reads the
    environment at its first product, and so do processes that this one starts; a setting that is
    there stays. On other makers' CPUs it does not split them, and the same setting would choose
    slower instructions.

    Source: Intel's oneMKL developer guide, "Reproducibility Conditions".
    """
    if _maker() == "GenuineIntel":
        os.environ.setdefault(_VARIABLE, _STRICT)


def _maker() -> str:
    """Who made this CPU, as Linux names it; empty where that is not known."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            named = next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return ""
    return named.partition(":")[2].strip()
