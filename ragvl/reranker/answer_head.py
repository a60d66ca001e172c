"""From a decoder's output to relevance, by the answers a checkpoint was trained to give."""

from __future__ import annotations

from torch import Tensor

from ragvl.mllm import MLLM, Prompt
from ragvl.ops import relevance_head


class AnswerHead:
    """The two rows of a model's head that spell its answers, behind its final norm.

    Args:
        mllm: the model.
        answers: the words for relevant and not relevant.
        answer_tokens: the tokens that are read, as the vocabulary spells them; where it has not
            both, or by default, those that the prompt calls for.

    Attributes:
        yes_token_ids: the token that is read for the first answer, in a list.
        no_token_ids: the same for the second.

    Raises:
        AnswerTokenError: the tokenizer cannot spell `answers` with distinct first tokens.
    """

    def __init__(
        self,
        mllm: MLLM,
        answers: tuple[str, str],
        answer_tokens: tuple[str, str] | None = None,
    ) -> None:
        named = None if answer_tokens is None else mllm.named_token_ids(*answer_tokens)
        self.yes_token_ids, self.no_token_ids = named or mllm.answer_token_ids(*answers)
        self._mllm = mllm
        self._rows, self._bias = mllm.head_rows(self.yes_token_ids + self.no_token_ids)
        self._norm = mllm.final_norm
        self._softcap = mllm.softcap

    def share(self, prompt: Prompt) -> float:
        """How much of the next token's probability the two answers hold after `prompt`."""
        return self._mllm.next_token_share(prompt, self.yes_token_ids + self.no_token_ids)

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
            num_yes=len(self.yes_token_ids),
            eps=self._norm.eps,
            norm=self._norm.kind,
            norm_bias=self._norm.bias,
            head_bias=self._bias,
            softcap=self._softcap,
        )
        return relevance
