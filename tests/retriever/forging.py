"""Saved indexes with other contents and right checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ragvl.retriever.storage import MANIFEST


def write_manifest(folder: Path, body: dict[str, Any]) -> None:
    body = {key: value for key, value in body.items() if key != "sha256"}
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({**body, "sha256": checksum}))


def forge(folder: Path, file: str, change: Any) -> None:
    """Gives a file of a saved index another content, or its metadata other entries."""
    body = json.loads((folder / MANIFEST).read_text())
    if file == "metadata":
        body["metadata"] |= change
    else:
        (folder / body["state"] / file).write_bytes(change)
        digest = hashlib.sha256(change).hexdigest()
        body["files"][file] = {"bytes": len(change), "sha256": digest}
    write_manifest(folder, body)
