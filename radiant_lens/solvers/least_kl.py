"""The least change in what the model says, for a gain in log-odds: a closed form.

With a displacement `d` of all heads together, the same at all edited positions:

    gain(d) = g . d                        first order, `g` the gradient of the gain;
    KL(d)   = 1/2 d' F d                   second order, in nats a token, `F` the Fisher information;
    F       = sum_i s_i s_i' / n_tokens    from the scores `s_i` of texts (see `radiant_lens.analysis.sensitivity`).

The most gain for a given KL, and the least KL for a given gain, have the same direction `d = c A^{-1} g`; the budget of
KL sets `c`. `A` estimates `F`, which has more entries than texts can fill:

    A = (1 - coupling) B + coupling F + ridge,    B = the blocks of F within each head,
    ridge = rho mean(diag B_h) I for each head.

Blocks alone (`coupling = 0`) treat heads as independent. They are not along `g`, where all heads pull the same way:
there the KL is tens of times what blocks predict. `F` alone has no more directions than texts, and looks free in all
others. A coupling between the two is chosen on texts and prompts that took no part in `A` and `g`
(`choose_coupling`).

`A` is a block matrix plus one of rank `n_texts`, so Woodbury's identity inverts it with one small matrix for each head
and one system of the size of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import DataError, InvalidArgumentError

COUPLINGS = (0.0, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)


@dataclass(frozen=True)
class LeastKLSolution:
    """Displacements of least KL for their gain.

    Attributes:
        displacement: `d` at the budget, for each head.
        gain: predicted, `g . d`, in nats of log-odds.
        kl: predicted on the texts of the scores, `d' F d / 2`, in nats a token: the budget.
        residual: largest entry of `A d / c - g`, relative to that of `g`; 0 up to rounding.
        condition: largest over smallest eigenvalue of each head's block of `A`.
    """

    displacement: Float[Tensor, "site d_head"]
    gain: float
    kl: float
    residual: float
    condition: Float[Tensor, " site"]


@dataclass(frozen=True)
class Sample:
    """Scores of texts for the heads to be moved, with the number of tokens that they are spread over."""

    scores: Float[Tensor, "text site d_head"]
    n_tokens: int

    def kl(self, displacement: Float[Tensor, "site d_head"]) -> float:
        """Second-order KL of a displacement on these texts, in nats a token."""
        projected = torch.einsum("nsd,sd->n", self.scores.double(), displacement.double())
        return float(0.5 * projected.square().sum() / self.n_tokens)


def solve_least_kl(
    gradient: Float[Tensor, "site d_head"],
    sample: Sample,
    budget: float,
    *,
    ridge: float = 0.1,
    coupling: float = 0.0,
) -> LeastKLSolution:
    """Find the displacements with the most first-order gain among those of a second-order KL.

    Args:
        gradient: of the gain, for each head.
        sample: scores of texts.
        budget: KL in nats a token, positive.
        ridge: `rho`, positive.
        coupling: share of the information across heads, in [0, 1).

    Raises:
        InvalidArgumentError: a number out of its range, or a gradient that is zero for all heads.
        DataError: an input that is not finite, or no scores.

    Example:
        >>> scores = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
        >>> solution = solve_least_kl(torch.ones(1, 2), Sample(scores, 1), 0.5, ridge=1e-9)
        >>> [round(float(x), 3) for x in solution.displacement[0]]
        [0.894, 0.224]
    """
    _checks.between("budget", budget, 0)
    _checks.between("ridge", ridge, 0)
    _checks.between("coupling", coupling, 0, 1, closed="low")
    g = gradient.double()
    _checks.finite("gradient", g)
    _checks.finite("scores", sample.scores)
    if not len(sample.scores) or sample.n_tokens < 1:
        raise DataError("`scores` holds no text: there is nothing to measure the KL on.")
    if not bool(g.any()):
        raise InvalidArgumentError("`gradient` is zero for all heads: no displacement changes the gain.")
    blocks = _blocks(sample, ridge, coupling)
    direction = _solve(blocks, sample, coupling, g)
    scale = (budget / sample.kl(direction)) ** 0.5
    values = torch.linalg.eigvalsh(blocks)
    return LeastKLSolution(
        displacement=scale * direction,
        gain=scale * float((g * direction).sum()),
        kl=budget,
        residual=float((_apply(blocks, sample, coupling, direction) - g).abs().max() / g.abs().max()),
        condition=values[:, -1] / values[:, 0],
    )


def choose_coupling(
    gradients: tuple[Float[Tensor, "site d_head"], Float[Tensor, "site d_head"]],
    samples: tuple[Sample, Sample],
    *,
    ridge: float = 0.1,
    couplings: Sequence[float] = COUPLINGS,
) -> tuple[float, dict[float, float]]:
    """The coupling with the most gain for its KL on the half of the data that the displacement was not made from.

    Args:
        gradients: of the gain, from either half of the prompts.
        samples: scores, from either half of the texts; no group is in both halves.
        ridge: `rho`.
        couplings: to choose from.

    Returns:
        The best coupling, and for each the gain over the root of twice its KL, averaged over both directions.
    """
    ratios = {}
    for coupling in couplings:
        crossed = []
        for own, other in ((0, 1), (1, 0)):
            d = solve_least_kl(gradients[own], samples[own], 1.0, ridge=ridge, coupling=coupling).displacement
            crossed.append(float((gradients[other].double() * d).sum()) / (2 * samples[other].kl(d)) ** 0.5)
        ratios[coupling] = sum(crossed) / 2
    return max(ratios, key=ratios.__getitem__), ratios


def _blocks(sample: Sample, ridge: float, coupling: float) -> Float[Tensor, "site d_head d_head"]:
    """The part of `A` within heads: `(1 - coupling) B + ridge`."""
    scores = sample.scores.double()
    blocks = torch.einsum("nsi,nsj->sij", scores, scores) / sample.n_tokens
    mean = blocks.diagonal(dim1=-2, dim2=-1).mean(-1)
    # A head that no prediction depends on has neither scores nor a gradient: any ridge leaves it where it is.
    added = torch.where(mean > 0, ridge * mean, 1.0)
    return (1 - coupling) * blocks + added[:, None, None] * torch.eye(blocks.shape[-1], dtype=blocks.dtype)


def _solve(
    blocks: Float[Tensor, "site d_head d_head"], sample: Sample, coupling: float, g: Float[Tensor, "site d_head"]
) -> Float[Tensor, "site d_head"]:
    """`A^{-1} g` by Woodbury: `C - C U' (I + U C U')^{-1} U C` with `C` the inverse blocks, `U'U = coupling F`."""
    inverse = torch.linalg.inv(blocks)
    direction = torch.einsum("sij,sj->si", inverse, g)
    if coupling == 0:
        return direction
    u = sample.scores.double() * (coupling / sample.n_tokens) ** 0.5
    moved = torch.einsum("nsi,sij->nsj", u, inverse)
    small = torch.eye(len(u), dtype=u.dtype) + moved.flatten(1) @ u.flatten(1).T
    weights = torch.linalg.solve(small, torch.einsum("nsi,si->n", u, direction))
    return direction - torch.einsum("nsi,n->si", moved, weights)


def _apply(
    blocks: Float[Tensor, "site d_head d_head"], sample: Sample, coupling: float, d: Float[Tensor, "site d_head"]
) -> Float[Tensor, "site d_head"]:
    """`A d`, which a solution must give `g`."""
    scores = sample.scores.double()
    across = torch.einsum("nsi,n->si", scores, torch.einsum("nsi,si->n", scores, d)) / sample.n_tokens
    return torch.einsum("sij,sj->si", blocks, d) + coupling * across
