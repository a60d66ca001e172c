"""A module for each group of routes; its `router` is what the application takes."""

from __future__ import annotations
