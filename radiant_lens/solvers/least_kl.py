"""The least change in what the model says, for a gain in the log-share of correct answers: a closed form.

With a displacement `d` of all heads together, the same at all edited positions:

    gain(d) = g . d                        first order, `g` the gradient of the gain;
    KL(d)   = 1/2 d' F d                   second order, in nats a token, `F` the Fisher information;
    F       = sum_i s_i s_i' / n_tokens    from the scores `s_i` of texts (see `radiant_lens.analysis.sensitivity`).

The most gain for a given KL, and the least KL for a given gain, have the same direction `d = c A^{-1} g`; the budget of
KL sets `c`. `A` estimates `F`, which has more entries than texts can fill:

    A = B + ridge + coupling F,    B = the blocks of F within each head,
    ridge = rho mean(diag B_h) I for each head.

Blocks alone (`coupling = 0`) treat heads as independent. They are not along `g`, where all heads pull the same way:
there the KL is tens of times what blocks predict. `F` alone has no more directions than texts, and looks free in all
others. A coupling between the two is chosen on texts and prompts that took no part in `A` and `g`
(`choose_regularisation`).

`A` is a block matrix plus one of rank `n_rows`, so Woodbury's identity inverts it with one small matrix for each head
and one system of the size of the sample, which serves all couplings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.errors import DataError, InvalidArgumentError

RIDGES = (0.1, 0.5)
COUPLINGS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class LeastKLSolution:
    """Displacements of least KL for their gain.

    Attributes:
        displacement: `d` at the budget, for each head.
        gain: predicted, `g . d`, in nats of log-share.
        kl: predicted on the texts of the scores, `d' F d / 2`, in nats a token: the budget.
        residual: largest entry of `A d / c - g`, relative to that of `g`; 0 up to rounding.
        condition: largest over smallest eigenvalue of each head's block of `A`.
    """

    displacement: Float[Tensor, "site k"]
    gain: float
    kl: float
    residual: float
    condition: Float[Tensor, " site"]


@dataclass(frozen=True)
class Sample:
    """Scores of texts for the heads to be moved, with the number of tokens that they are spread over."""

    scores: Float[Tensor, "text site k"]
    n_tokens: int

    def kl(self, displacement: Float[Tensor, "site k"]) -> float:
        """Second-order KL of a displacement on these texts, in nats a token."""
        projected = torch.einsum("nsd,sd->n", self.scores.double(), displacement.double())
        return float(0.5 * projected.square().sum() / self.n_tokens)


def solve_least_kl(
    gradient: Float[Tensor, "site k"],
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
        coupling: weight of the information across heads, at least 0.

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
    _checks.between("coupling", coupling, 0, closed="low")
    g = gradient.double()
    _checks.finite("gradient", g)
    _checks.finite("scores", sample.scores)
    if not len(sample.scores) or sample.n_tokens < 1:
        raise DataError("`scores` holds no text: there is nothing to measure the KL on.")
    if not bool(g.any()):
        raise InvalidArgumentError("`gradient` is zero for all heads: no displacement changes the gain.")
    system = _System.make(sample, ridge)
    direction = system.solve(g, coupling)
    scale = (budget / sample.kl(direction)) ** 0.5
    values = torch.linalg.eigvalsh(system.blocks)
    return LeastKLSolution(
        displacement=scale * direction,
        gain=scale * float((g * direction).sum()),
        kl=budget,
        residual=float((system.apply(direction, coupling) - g).abs().max() / g.abs().max()),
        condition=values[:, -1] / values[:, 0],
    )


def choose_regularisation(
    gradients: tuple[Float[Tensor, "site k"], Float[Tensor, "site k"]],
    samples: tuple[Sample, Sample],
    *,
    ridge: float | None = None,
    coupling: float | None = None,
) -> tuple[float, float]:
    """Choose ridge and coupling by the gain for its KL on the half of the data that a displacement was not made from.

    Args:
        gradients: of the gain, from either half of the prompts.
        samples: scores, from either half of the texts; no group is in both halves.
        ridge: None to choose among `RIDGES`, or a number that is settled.
        coupling: None to choose among `COUPLINGS`, or a number that is settled.

    Returns:
        Ridge and coupling.
    """
    ridges, couplings = (RIDGES if ridge is None else (ridge,)), (COUPLINGS if coupling is None else (coupling,))
    if len(ridges) == len(couplings) == 1:
        return ridges[0], couplings[0]
    ratios = {rho: crossed_ratios(gradients, samples, ridge=rho, couplings=couplings) for rho in ridges}
    grid = [(rho, weight) for rho in ridges for weight in couplings]
    return max(grid, key=lambda pair: ratios[pair[0]][couplings.index(pair[1])])


def crossed_ratios(
    gradients: tuple[Float[Tensor, "site k"], Float[Tensor, "site k"]],
    samples: tuple[Sample, Sample],
    *,
    ridge: float,
    couplings: Sequence[float],
) -> list[float]:
    """Gain over the root of twice the KL on the other half of the data, averaged over both directions."""
    ratios = []
    for own, other in ((0, 1), (1, 0)):
        system = _System.make(samples[own], ridge)
        directions = [system.solve(gradients[own].double(), coupling) for coupling in couplings]
        gains = [float((gradients[other].double() * d).sum()) for d in directions]
        ratios.append([gain / (2 * samples[other].kl(d)) ** 0.5 for gain, d in zip(gains, directions)])
    return [sum(pair) / 2 for pair in zip(*ratios)]


def ridged_blocks(blocks: Float[Tensor, "site k k"], ridge: float) -> Float[Tensor, "site k k"]:
    """Add `ridge` times the mean of each block's diagonal to the diagonal; a block of zeros becomes the identity."""
    mean = blocks.diagonal(dim1=-2, dim2=-1).mean(-1)
    # A head that no prediction depends on has neither scores nor a gradient: any ridge leaves it where it is.
    added = torch.where(mean > 0, ridge * mean, 1.0)
    return blocks + added[:, None, None] * torch.eye(blocks.shape[-1], dtype=blocks.dtype)


@dataclass(frozen=True)
class _System:
    """`A` for one ridge and any coupling.

    Attributes:
        blocks: `B + ridge`.
        rows: `U`, the scores over the root of the number of tokens, so that `F = U' U`.
        moved: `U C`, with `C` the inverse blocks.
        gram: `U C U'`.
    """

    blocks: Float[Tensor, "site k k"]
    inverse: Float[Tensor, "site k k"]
    rows: Float[Tensor, "row site k"]
    moved: Float[Tensor, "row site k"]
    gram: Float[Tensor, "row row"]

    @classmethod
    def make(cls, sample: Sample, ridge: float) -> _System:
        """Factorise what all couplings share."""
        rows = sample.scores.double() / sample.n_tokens**0.5
        blocks = torch.einsum("nsi,nsj->sij", rows, rows)
        blocks = ridged_blocks(blocks, ridge)
        inverse = torch.linalg.inv(blocks)
        moved = torch.einsum("nsi,sij->nsj", rows, inverse)
        return cls(blocks, inverse, rows, moved, moved.flatten(1) @ rows.flatten(1).T)

    def solve(self, g: Float[Tensor, "site k"], coupling: float) -> Float[Tensor, "site k"]:
        """`A^{-1} g` by Woodbury: `C g - coupling C U' (I + coupling U C U')^{-1} U C g`."""
        direction = torch.einsum("sij,sj->si", self.inverse, g)
        small = torch.eye(len(self.gram), dtype=g.dtype) + coupling * self.gram
        weights = torch.linalg.solve(small, torch.einsum("nsi,si->n", self.rows, direction))
        return direction - coupling * torch.einsum("nsi,n->si", self.moved, weights)

    def apply(self, d: Float[Tensor, "site k"], coupling: float) -> Float[Tensor, "site k"]:
        """`A d`, which a solution must give `g`."""
        across = torch.einsum("nsi,n->si", self.rows, torch.einsum("nsi,si->n", self.rows, d))
        return torch.einsum("sij,sj->si", self.blocks, d) + coupling * across
