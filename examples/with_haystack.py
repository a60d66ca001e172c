"""Retrieve, rerank and answer with Haystack, pictures included.

On the demo's drawn world, with the tiny models that come along:

    pip install "ragvl[cpu,haystack]"
    python examples/with_haystack.py
"""

from __future__ import annotations

from haystack import Document, Pipeline, component
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.dataclasses import ByteStream
from haystack.document_stores.in_memory import InMemoryDocumentStore

import ragvl
from ragvl.integrations.haystack import RagVLRanker
from ragvl.server.stages import load_demo

demo = load_demo()
encoder = demo.retriever.encoder


@component
class QuestionEmbedder:
    """Embeds questions as the pictures were embedded."""

    @component.output_types(embedding=list[float])
    def run(self, question: str) -> dict[str, list[float]]:
        return {"embedding": encoder.encode_queries([question])[0].tolist()}


@component
class Answerer:
    """Answers from what is left after reranking."""

    @component.output_types(answer=str)
    def run(self, question: str, documents: list[Document]) -> dict[str, str]:
        evidence = [ragvl.Document(one.blob.data, one.content) for one in documents]
        return {"answer": demo.generator.answer(question, evidence)}


store = InMemoryDocumentStore(embedding_similarity_function="dot_product")
documents = list(demo.retriever.documents.values())
vectors = encoder.encode_documents(documents, progress=False)
store.write_documents(
    [
        Document(
            id=document.id,
            content=document.caption,
            blob=ByteStream(document.image, mime_type="image/png"),
            embedding=vector.tolist(),
        )
        for document, vector in zip(documents, vectors, strict=True)
    ]
)

pipeline = Pipeline()
pipeline.add_component("embedder", QuestionEmbedder())
pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=20))
pipeline.add_component("ranker", RagVLRanker(demo.reranker, top_k=2, score_threshold=0.5))
pipeline.add_component("answerer", Answerer())
pipeline.connect("embedder.embedding", "retriever.query_embedding")
pipeline.connect("retriever.documents", "ranker.documents")
pipeline.connect("ranker.documents", "answerer.documents")

question = demo.examples[0]
asked = {
    "embedder": {"question": question},
    "ranker": {"query": question},
    "answerer": {"question": question},
}
result = pipeline.run(asked, include_outputs_from={"retriever", "ranker"})
print(question)
for document in result["ranker"]["documents"]:
    print(f"  {document.score:.3f}  {document.content}")
print(result["answerer"]["answer"])
