"""Retrieve, rerank and answer with LlamaIndex, pictures included.

On the demo's drawn world, with the tiny models that come along:

    pip install "ragvl[cpu,llama-index]"
    python examples/with_llama_index.py
"""

from __future__ import annotations

import base64

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.response import Response
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import ImageNode

import ragvl
from ragvl.integrations.llama_index import RagVLRerank
from ragvl.server.stages import load_demo

demo = load_demo()
encoder = demo.retriever.encoder


class DualEncoderEmbedding(BaseEmbedding):
    """Embeds questions as the pictures were embedded."""

    def _get_query_embedding(self, query: str) -> list[float]:
        return encoder.encode_queries([query])[0].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)


class Engine(CustomQueryEngine):
    """Answers from what is left after reranking."""

    retriever: BaseRetriever
    reranker: RagVLRerank

    def custom_query(self, query_str: str) -> Response:
        found = self.retriever.retrieve(query_str)
        nodes = self.reranker.postprocess_nodes(found, query_str=query_str)
        evidence = [
            ragvl.Document(base64.b64decode(one.node.image), one.node.text) for one in nodes
        ]
        return Response(demo.generator.answer(query_str, evidence), source_nodes=nodes)


documents = list(demo.retriever.documents.values())
vectors = encoder.encode_documents(documents, progress=False)
nodes = [
    ImageNode(
        id_=document.id,
        text=document.caption,
        image=base64.b64encode(document.image).decode(),
        embedding=vector.tolist(),
    )
    for document, vector in zip(documents, vectors, strict=True)
]
index = VectorStoreIndex(nodes, embed_model=DualEncoderEmbedding())
engine = Engine(
    retriever=index.as_retriever(similarity_top_k=20),
    reranker=RagVLRerank(model=demo.reranker, top_n=2, threshold="natural"),
)

question = demo.examples[0]
response = engine.query(question)
print(question)
for one in response.source_nodes:
    print(f"  {one.score:.3f}  {one.node.text}")
print(response)
