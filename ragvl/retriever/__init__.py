"""The first stage: encoders and an index find the candidates for a query."""

from __future__ import annotations

from ragvl.retriever.documents import encode_documents
from ragvl.retriever.dual_encoder import DualEncoder, check_encoder
from ragvl.retriever.encoding import Encoder, text_of
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
from ragvl.retriever.kinds import Hits, kinds_of, search_in_turn
from ragvl.retriever.mean_pooled import MeanPooledBertConfig, MeanPooledBertModel
from ragvl.retriever.opening import check_index, open_index, saved_encoders
from ragvl.retriever.retriever import (
    DocumentRetriever,
    FusedRetriever,
    IndexMismatchError,
    RetrievedDocument,
    Retriever,
)
from ragvl.retriever.storage import IndexFileError, is_saved_index
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
    "FUSED",
    "ORDERS",
    "DocumentRetriever",
    "DualEncoder",
    "Encoder",
    "FusedRetriever",
    "Fusion",
    "Hits",
    "IndexFileError",
    "IndexMismatchError",
    "MeanPooledBertConfig",
    "MeanPooledBertModel",
    "Order",
    "OrderHits",
    "ReciprocalRank",
    "RetrievedDocument",
    "Retriever",
    "TextEncoder",
    "Upkeep",
    "VectorIndex",
    "View",
    "WeightedSum",
    "bring_up_to_date",
    "check_encoder",
    "check_index",
    "check_text_encoder",
    "encode_documents",
    "estimate_weight",
    "estimated_fusion",
    "fuse",
    "is_saved_index",
    "kinds_of",
    "open_index",
    "parse_fusion",
    "retriever_name",
    "saved_encoders",
    "search_fused",
    "search_in_turn",
    "search_views",
    "text_of",
]
