"""`python -m ragvl.cli`, as torchrun and accelerate start it."""

from __future__ import annotations

from ragvl.cli.entry import main

if __name__ == "__main__":
    main()
