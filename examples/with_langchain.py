"""Retrieve, rerank and answer with LangChain, pictures included.

On the demo's drawn world, with the tiny models that come along:

    pip install "ragvl[cpu,langchain]"
    python examples/with_langchain.py
"""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

import ragvl
from ragvl.integrations.langchain import RagVLReranker
from ragvl.server.stages import load_demo

demo = load_demo()


class Pictures(BaseRetriever):
    """Any retriever will do whose documents have their picture in the metadata."""

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        found = [hit.document for hit in demo.retriever.retrieve(query, 20)]
        return [Document(one.caption, metadata={"image": one.image}, id=one.id) for one in found]


reranker = RagVLReranker(model=demo.reranker, top_n=2, threshold="natural")


def rerank(state: dict[str, Any]) -> list[Document]:
    return reranker.compress_documents(state["documents"], state["question"])


def answer(state: dict[str, Any]) -> str:
    evidence = [ragvl.Document(d.metadata["image"], d.page_content) for d in state["documents"]]
    return demo.generator.answer(state["question"], evidence)


chain = (
    {"question": RunnablePassthrough(), "documents": Pictures()}
    | RunnablePassthrough.assign(documents=RunnableLambda(rerank))
    | RunnablePassthrough.assign(answer=RunnableLambda(answer))
)

result = chain.invoke(demo.examples[0])
print(result["question"])
for document in result["documents"]:
    print(f"  {document.metadata['relevance_score']:.3f}  {document.page_content}")
print(result["answer"])
