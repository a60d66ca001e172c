"""The first stage: encoders and an index find the candidates for a query."""

from __future__ import annotations

from ragvl.retriever.disk_store import DiskStore
from ragvl.retriever.documents import (
    DOCUMENTS_AT_ONCE,
    Encoded,
    encode_blocks,
    encode_each,
    encoding_works,
)
from ragvl.retriever.dual_encoder import DualEncoder, check_encoder
from ragvl.retriever.encoding import Encoder, text_of
from ragvl.retriever.faiss_store import FaissStore
from ragvl.retriever.fusion import (
    FUSED,
    ORDERS,
    Fusion,
    Order,
    OrderHits,
    ReciprocalRank,
    WeightedSum,
    estimate_weight,
    fuse,
    parse_fusion,
)
from ragvl.retriever.index import VectorIndex
from ragvl.retriever.kinds import MixedIndex, taking_turns
from ragvl.retriever.mean_pooled import MeanPooledBertConfig, MeanPooledBertModel
from ragvl.retriever.milvus import MilvusAddress, MilvusError, MilvusStore
from ragvl.retriever.opening import (
    check_index,
    check_place,
    is_saved_index,
    new_retriever,
    open_index,
    saved_encoders,
)
from ragvl.retriever.retriever import (
    DocumentRetriever,
    FusedRetriever,
    IndexMismatchError,
    RetrievedDocument,
    Retriever,
)
from ragvl.retriever.storage import IndexFileError
from ragvl.retriever.store import Hits, VectorStore, Where
from ragvl.retriever.text_encoder import TextEncoder, check_text_encoder
from ragvl.retriever.upkeep import Upkeep, bring_up_to_date
from ragvl.retriever.views import (
    View,
    estimated_fusion,
    retriever_name,
    search_fused,
    search_views,
)

__all__ = [
    "DOCUMENTS_AT_ONCE",
    "FUSED",
    "ORDERS",
    "DiskStore",
    "DocumentRetriever",
    "DualEncoder",
    "Encoded",
    "Encoder",
    "FaissStore",
    "FusedRetriever",
    "Fusion",
    "Hits",
    "IndexFileError",
    "IndexMismatchError",
    "MeanPooledBertConfig",
    "MeanPooledBertModel",
    "MilvusAddress",
    "MilvusError",
    "MilvusStore",
    "MixedIndex",
    "Order",
    "OrderHits",
    "ReciprocalRank",
    "RetrievedDocument",
    "Retriever",
    "TextEncoder",
    "Upkeep",
    "VectorIndex",
    "VectorStore",
    "View",
    "WeightedSum",
    "Where",
    "bring_up_to_date",
    "check_encoder",
    "check_index",
    "check_place",
    "check_text_encoder",
    "encode_blocks",
    "encode_each",
    "encoding_works",
    "estimate_weight",
    "estimated_fusion",
    "fuse",
    "is_saved_index",
    "new_retriever",
    "open_index",
    "parse_fusion",
    "retriever_name",
    "saved_encoders",
    "search_fused",
    "search_views",
    "taking_turns",
    "text_of",
]
