"""From a decoder's output to relevance, by the answers a checkpoint was trained to give."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ragvl.mllm import MLLM
from ragvl.ops import relevance_head


class AnswerHead:
    """The rows of a model's head that spell its answers, behind its final norm.

    Args:
        mllm: the model.
        yes_token_ids: the tokens that are read for relevant; see `answers.resolve_answers`.
        no_token_ids: those for not relevant.
    """

    def __init__(
        self, mllm: MLLM, yes_token_ids: Sequence[int], no_token_ids: Sequence[int]
    ) -> None:
        self._num_yes = len(yes_token_ids)
        self._rows, self._bias = mllm.head.rows([*yes_token_ids, *no_token_ids])
        self._norm = mllm.head.final_norm
        self._softcap = mllm.head.softcap

    def relevance(self, hidden: Tensor, last_index: Tensor) -> Tensor:
        """(B,) float32: the probability of the first answer.

        Args:
            hidden: (N, D) the decoder's output before its final norm.
            last_index: (B,) the row of each prompt's last token.
        """
        _, relevance = relevance_head(
            hidden,
            last_index,
            self._norm.weight,
            self._rows,
            num_yes=self._num_yes,
            eps=self._norm.eps,
            norm=self._norm.kind,
            norm_bias=self._norm.bias,
            head_bias=self._bias,
            softcap=self._softcap,
        )
        return relevance
