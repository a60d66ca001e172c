"""Retrieve, rerank by the library `rerankers` and answer, pictures included.

On the demo's drawn world, with the tiny models that come along:

    pip install "ragvl[cpu,rerankers]"
    python examples/with_rerankers.py
"""

from __future__ import annotations

import base64

from rerankers import Document

from ragvl.integrations.rerankers import RagVLRanker
from ragvl.server.stages import load_demo

demo = load_demo()
ranker = RagVLRanker(demo.reranker)

question = demo.examples[0]
found = [hit.document for hit in demo.retriever.retrieve(question, 20)]
ranking = ranker.rank(
    question,
    [
        Document(
            text=document.caption,
            doc_id=document.id,
            document_type="image",
            base64=base64.b64encode(document.image).decode(),
        )
        for document in found
    ],
)
best = [result for result in ranking.top_k(2) if result.score >= 0.5]
answer = demo.generator.answer(question, [demo.retriever.get(result.doc_id) for result in best])

print(question)
for result in best:
    print(f"  {result.score:.3f}  {result.text}")
print(answer)
