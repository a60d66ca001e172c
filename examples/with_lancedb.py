"""Retrieve from LanceDB, rerank and answer, pictures included.

On the demo's drawn world, with the tiny models that come along:

    pip install "ragvl[cpu,lancedb]"
    python examples/with_lancedb.py
"""

from __future__ import annotations

import tempfile

import lancedb

import ragvl
from ragvl.integrations.lancedb import RagVLReranker
from ragvl.server.stages import load_demo

demo = load_demo()
encoder = demo.retriever.encoder
reranker = RagVLReranker(demo.reranker)

documents = list(demo.retriever.documents.values())
vectors = encoder.encode_documents(documents, progress=False)
rows = [
    {"id": document.id, "text": document.caption, "image": document.image, "vector": vector}
    for document, vector in zip(documents, vectors, strict=True)
]
question = demo.examples[0]

with tempfile.TemporaryDirectory() as folder:
    table = lancedb.connect(folder).create_table("pictures", rows)
    search = table.search(encoder.encode_queries([question])[0], query_type="vector")
    found = search.limit(20).rerank(reranker, question).to_list()

best = [row for row in found[:2] if row["_relevance_score"] >= 0.5]
evidence = [ragvl.Document(row["image"], row["text"]) for row in best]
answer = demo.generator.answer(question, evidence)

print(question)
for row in best:
    print(f"  {row['_relevance_score']:.3f}  {row['text']}")
print(answer)
