"""Predictions of answers by a pass: log-probabilities, draws and KL, from logits in the model's own precision.

Over a vocabulary of 262,144 the arithmetic of these alone costs as much as a small model, and their memory more: the
log-probabilities of 1,000 tokens take a gigabyte. So logits are read a few rows at a time, which stay in the cache of
the processor, in single precision; what is kept is a number for each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits that are read at a time: four megabytes in single precision on a CPU, a gigabyte elsewhere.
_AT_A_TIME = {"cpu": 2**20}
_AT_A_TIME_ELSEWHERE = 2**28


@dataclass(frozen=True)
class Predictions:
    """Logits where answers' tokens are predicted.

    Answers to the same prompt share the place that predicts their first tokens.

    Attributes:
        logits: of each place, in the model's precision.
        place_of: number of the place that makes each prediction.
    """

    logits: Float[Tensor, "place vocab"]
    place_of: Int[Tensor, " predicted"]

    def place_log_probs(self) -> Float[Tensor, "place vocab"]:
        """Log-probabilities of all tokens in single precision; all at once, so they take much memory."""
        return self.logits.float().log_softmax(-1)

    def log_probs(self) -> Float[Tensor, "predicted vocab"]:
        """The same for each prediction."""
        return self.place_log_probs()[self.place_of]

    def log_prob(self, tokens: Int[Tensor, " predicted"]) -> Float[Tensor, " predicted"]:
        """Log-probability of one token for each prediction, in single precision; it can be differentiated once."""
        return _LogProb.apply(self.logits, self.place_of, tokens.to(self.logits.device))

    def draw(self, uniform: Float[Tensor, "draw predicted"]) -> Int[Tensor, "draw predicted"]:
        """Draw tokens: for each prediction those at which its distribution reaches shares in [0, 1)."""
        uniform = uniform.to(self.logits.device)
        drawn = torch.empty(uniform.shape, dtype=torch.long, device=uniform.device)
        for part in _parts(self.logits.detach(), self.place_of):
            heights = part.logits.softmax(-1).cumsum(-1)[part.place]
            below = uniform[:, part.own].T * heights[:, -1:]
            tokens = torch.searchsorted(heights, below.contiguous(), right=True)
            drawn[:, part.own] = tokens.clamp_max(heights.shape[1] - 1).T
        return drawn

    def kl_from(self, plain: Float[Tensor, "place vocab"]) -> Float[Tensor, " predicted"]:
        """KL in nats from other logits of the same places to these, for each prediction; not differentiated."""
        with torch.no_grad():
            kl = [
                token_kl(*(some.to(self.logits).float().log_softmax(-1) for some in (plain[rows], self.logits[rows])))
                for rows in _slices(self.logits)
            ]
        return torch.cat(kl)[self.place_of]


def token_kl(
    plain: Float[Tensor, "predicted vocab"], steered: Float[Tensor, "predicted vocab"]
) -> Float[Tensor, " predicted"]:
    """KL from the plain to the steered distribution, of log-probabilities, in nats."""
    # A token of probability 0 adds 0 to the KL, but -inf - -inf is NaN.
    return (plain.exp() * (plain - steered)).masked_fill(plain.isneginf(), 0).sum(-1)


class _Part(NamedTuple):
    """Some rows of logits, and the predictions that are made there.

    Attributes:
        rows: of all logits.
        logits: in single precision.
        own: numbers of the predictions.
        place: their places among these rows.
    """

    rows: slice
    logits: Float[Tensor, "row vocab"]
    own: Int[Tensor, " own"]
    place: Int[Tensor, " own"]


def _slices(logits: Float[Tensor, "place vocab"]) -> Iterator[slice]:
    """A few rows at a time; one slice without rows where there are none."""
    n = max(1, _AT_A_TIME.get(logits.device.type, _AT_A_TIME_ELSEWHERE) // logits.shape[1])
    for first in range(0, max(1, len(logits)), n):
        yield slice(first, first + n)


def _parts(logits: Float[Tensor, "place vocab"], place: Int[Tensor, " predicted"]) -> Iterator[_Part]:
    order = place.argsort(stable=True)
    ends = torch.bincount(place, minlength=len(logits)).cumsum(0).tolist()
    begin = 0
    for rows in _slices(logits):
        some = logits[rows].float()
        end = ends[rows.start + len(some) - 1] if len(some) else 0
        own = order[begin:end].to(logits.device)
        yield _Part(rows, some, own, place.to(logits.device)[own] - rows.start)
        begin = end


class _LogProb(torch.autograd.Function):
    """`log_softmax(logits)[place, tokens]`, without log-probabilities of all tokens in either direction."""

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "place vocab"], place: Int[Tensor, " predicted"], tokens: Tensor
    ) -> Float[Tensor, " predicted"]:
        normaliser = torch.cat([logits[rows].float().logsumexp(-1) for rows in _slices(logits)])
        place = place.to(logits.device)
        ctx.save_for_backward(logits, place, tokens, normaliser)
        return logits[place, tokens].float() - normaliser[place]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator hides the names)
        ctx: Any, *grad_outputs: Float[Tensor, " predicted"]
    ) -> tuple[Tensor, None, None]:
        (gradient,) = grad_outputs
        logits, place, tokens, normaliser = ctx.saved_tensors
        weight = torch.zeros_like(normaliser).index_add_(0, place, gradient)
        result = torch.empty_like(logits)
        for part in _parts(logits, place):
            # In single precision until both terms are in: for a token of probability near 1 they nearly cancel.
            change = (part.logits - normaliser[part.rows, None]).exp_().mul_(-weight[part.rows, None])
            change.index_put_((part.place, tokens[part.own]), gradient[part.own], accumulate=True)
            result[part.rows] = change
        return result, None, None
