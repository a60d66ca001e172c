"""`python -m ragvl.cli`, as torchrun and accelerate start it."""

from __future__ import annotations

from ragvl.cli import app

if __name__ == "__main__":
    app()
