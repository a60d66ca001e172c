"""Order the pictures of a folder by a question:

    python examples/own_pictures.py FOLDER QUESTION [MODEL]

Without MODEL by a tiny one that comes along and knows drawn places only; give a hub id or a folder.
"""

from __future__ import annotations

import sys

from ragvl import Reranker
from ragvl.data.sources import Documents
from ragvl.server.settings import TINY_RERANKER

folder, question, model = [*sys.argv[1:], TINY_RERANKER][:3]
reranker = Reranker.from_pretrained(model)
pictures = list(Documents(folder))
for place, result in enumerate(reranker.rank(question, pictures, top_k=5), 1):
    print(place, f"{result.score:.3f}", result.document.id)
