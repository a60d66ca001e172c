"""sentence-transformers' CrossEncoder on the same checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from torch import nn

from ragvl import Document, Reranker

# Where CrossEncoder puts the two halves of a (query, document) pair: a message of role "query" and
# one of role "document", whose picture the processor takes from its content.
_QUERY = "{{ messages[0].content[0].text }}"
_CAPTION = "{{ (messages[1].content | selectattr('type', 'equalto', 'text') | first).text }}"


class CrossEncoderBaseline:
    """CrossEncoder with its image-text-to-text module and LogitScore: log-odds, then a sigmoid.

    The documented way to give it a prompt of one's own is a chat template that renders the roles
    query and document; here that is the reranker's prompt, with blanks where the two go.
    """

    def __init__(self, folder: Path, reranker: Reranker, *, batch_size: int = 20) -> None:
        (yes,), (no,) = reranker.yes_token_ids, reranker.no_token_ids
        document = Document(Image.new("RGB", (1, 1)), caption=_CAPTION)
        # Jinja drops a template's last newline, which matters to a prompt that ends in one
        template = reranker.prompt(_QUERY, document) + "{{ '' }}"
        transformer = Transformer(
            str(folder),
            transformer_task="any-to-any",
            model_kwargs={"dtype": reranker.mllm.dtype},
            processor_kwargs={"chat_template": template},
        )
        self.model = CrossEncoder(
            modules=[transformer, LogitScore(yes, no)],
            device=str(reranker.mllm.device),
            activation_fn=nn.Sigmoid(),
        )
        self.batch_size = batch_size
        # To CrossEncoder `<image>` in a caption is a picture
        self.escape = reranker.mllm.prompting.escape

    def score(self, query: str, documents: Sequence[Document]) -> list[float]:
        query = self.escape(query)
        pairs = [(query, {"image": d.load(), "text": self.escape(d.caption)}) for d in documents]
        scores = self.model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False)
        return scores.tolist()
