"""Problems of `solve_procrustes`: their inputs with the roots of their matrices, and the certificate of their maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens.errors import InvalidArgumentError
from radiant_lens.linalg import Root, square_root
from radiant_lens.solvers.certificates import DenseMove, MapCertificate, procrustes_certificate
from radiant_lens.solvers.problem import Problem, UncertifiedError, read_problem, read_symmetric


class ProcrustesProblem(NamedTuple):
    """Checked problems on one batch axis, with the roots of their matrices."""

    batch: torch.Size
    flat: Problem
    root: Root
    least_root: Float[Tensor, "head d d"] | None

    def certify(self, move: DenseMove) -> MapCertificate:
        """Certify the maps; an error names the problems by their places in the caller's batch."""
        try:
            return procrustes_certificate(self.flat, self.root, self.least_root, move)
        except UncertifiedError as error:
            raise self._with_places(error) from None

    def unflatten(self, x: Tensor) -> Tensor:
        """Restore the caller's batch axes."""
        return x.reshape((*self.batch, *x.shape[1:]))

    def _with_places(self, error: UncertifiedError) -> UncertifiedError:
        numbers = torch.arange(len(self.flat.margin)).view(self.batch)
        index = [tuple((numbers == first).nonzero()[0].tolist()) for first, *_ in error.index]
        return UncertifiedError(str(error).replace(f"index {error.index[0]}", f"index {index[0]}"), index)


def read_procrustes(
    mu: Tensor, sigma: Tensor, theta: Tensor, bias: Tensor | float, margin: Tensor | float, floor: Tensor | None
) -> ProcrustesProblem:
    """Check the inputs of `solve_procrustes`, and take the roots of `sigma` and `floor`."""
    problem = read_problem(mu, sigma, theta, bias, margin)
    batch, d = problem.margin.shape, problem.theta.shape[-1]
    flat = Problem(*(x.reshape((-1, *x.shape[len(batch) :])) for x in problem))
    root = _square_root("sigma", flat.sigma)
    if floor is None:
        return ProcrustesProblem(batch, flat, root, None)
    covariance = read_symmetric("floor", floor, batch, d, flat.mu.device)
    return ProcrustesProblem(batch, flat, root, _square_root("floor", covariance.reshape(-1, d, d)).matrix)


def _square_root(name: str, covariance: Float[Tensor, "head d d"]) -> Root:
    root, least = square_root(covariance)
    # Covariances computed in float32 may be indefinite by their own rounding.
    if bool((least < -1e-6 * root.values[:, -1].square()).any()):
        raise InvalidArgumentError(
            f"`{name}` must be positive semidefinite; its least eigenvalue is {float(least.min()):g}."
        )
    return root


@torch.no_grad()
def certify_procrustes(
    mu: Float[Tensor, "*#batch d"],
    sigma: Float[Tensor, "*#batch d d"],
    theta: Float[Tensor, "*#batch d"],
    bias: float | Float[Tensor, "*#batch"],
    margin: float | Float[Tensor, "*#batch"],
    G: Float[Tensor, "*batch d d"],
    g: Float[Tensor, "*batch d"],
    root: Float[Tensor, "*batch d d"],
    bound: Float[Tensor, "*batch"],
    *,
    floor: Float[Tensor, "*#batch d d"] | None = None,
) -> MapCertificate:
    """Certify that `a' = G a + g` solves the paper's problem.

    Args:
        mu, sigma, theta, bias, margin, floor: as for `solve_procrustes`.
        G, g: the maps, one for each problem.
        root, bound: `S` and the dual bound of their solution.

    Raises:
        InvalidArgumentError: inputs that `solve_procrustes` refuses.
        DataError: an input that is not finite.
        UncertifiedError: a map that violates its constraint or its floor, that misses the covariance of its solution,
            or that costs more than the least; or inputs whose own rounding exceeds the tolerance.
    """
    inputs = read_procrustes(mu, sigma, theta, bias, margin, floor)
    d, n = inputs.flat.theta.shape[-1], len(inputs.flat.theta)
    certificate = inputs.certify(
        DenseMove(
            G.double().reshape(n, d, d), g.double().reshape(n, d), root.double().reshape(n, d, d), bound.reshape(n)
        )
    )
    return MapCertificate(**{name: inputs.unflatten(x) for name, x in vars(certificate).items()})
