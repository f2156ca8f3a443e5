"""`RadiantPolicy`: the least edit after which a head's detector is satisfied with a stated probability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.analysis.steering import Steering
from radiant_lens.caches import HeadCache
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Statement
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import ConvergenceError, InvalidArgumentError, NothingToEditError
from radiant_lens.linalg import Moments, quadratic_form, row_slices
from radiant_lens.policies.head_sample import SHRINK_BELOW, HeadSample, assemble, prepare
from radiant_lens.policies.heads import HeadChoice, choose_heads
from radiant_lens.policies.margin import Calibration, calibrated
from radiant_lens.policies.sequential import SequentialFit, fit_sequential
from radiant_lens.policies.shared_solve import solve_shared
from radiant_lens.sites import HeadSite
from radiant_lens.solvers.certificates import MapCertificate, certify_transport
from radiant_lens.solvers.problem import UncertifiedError
from radiant_lens.solvers.procrustes import solve_procrustes
from radiant_lens.solvers.procrustes_problem import certify_procrustes
from radiant_lens.solvers.solutions import TransportSolution
from radiant_lens.solvers.transport import solve_transport
from radiant_lens.steering.gates import GATES, TrustRegion
from radiant_lens.steering.maps import Certificate, DenseMaps, HeadMaps, RankOneMaps

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from radiant_lens.policies.fisher import FisherBlocks

GEOMETRIES = ("mahalanobis", "wasserstein", "output", "procrustes")
FLOORS = ("desirable", None)
TAILS = ("gaussian", "cantelli")
RIDGE = 1e-6


@dataclass(frozen=True)
class RadiantPolicy:
    """The least affine edit of each head whose image is desirable with probability `1 - gamma`.

    The guarantee is about the head's own detector under the fitted moments, one position at a time; it says
    nothing about later layers or the text. Activations that a detector flagged are not Gaussian, so a Gaussian
    `gamma` is nominal: `Steering.certify` measures the actual share.

    Args:
        gamma: allowed share still flagged, in (0, 0.5).
        margin: `kappa` itself, positive, in place of `gamma` and `tail`.
        geometry: the meaning of "least": "mahalanobis" (in units of the activations' own spread), "wasserstein"
            (squared 2-Wasserstein distance), "output" (KL of what the model says, to second order; `fit` needs
            `fisher`), or "procrustes" (the paper's problem, RADIANT section 4).
        floor: "desirable" keeps at least the spread of the desirable activations; None lets the image
            shrink onto the boundary.
        tail: "gaussian" (`kappa = Phi^{-1}(1 - gamma)`) or "cantelli" (`sqrt((1 - gamma) / gamma)`, for any
            distribution with the fitted moments).
        heads: "significant", "layer", a number of heads of least risk, or a list of heads.
        n_layers: with heads "layer", the number of layers of least mean risk.
        gate: "head" (a head is edited where it flags), "vote" (and its layer votes), "layer" (its layer
            votes), "joint" (the joint score of its layer flags), "none" (everywhere).
        trust: quantile of the fitted activations' Mahalanobis distance, in (0, 1), beyond which activations are not
            edited; None to edit everything the gate passes. On the embedded models it cost truth and saved KL in the
            same proportion (tests/benchmarks/depth_and_trust.py), so it is off.

    Example:
        >>> RadiantPolicy(gamma=0.05).kappa > RadiantPolicy(gamma=0.1).kappa
        True
    """

    gamma: float = 0.01
    margin: float | None = None
    geometry: str = "mahalanobis"
    floor: str | None = "desirable"
    tail: str = "gaussian"
    heads: HeadChoice = "significant"
    n_layers: int = 1
    gate: str = "head"
    trust: float | None = None

    @classmethod
    def paper(cls, margin: float = 10.0) -> RadiantPolicy:
        """The paper's recipe: one voted layer, its map; to be used with `positions="last"`."""
        return cls(margin=margin, geometry="procrustes", heads="layer", n_layers=1, gate="vote")

    @property
    def kappa(self) -> float:
        """Standard deviations by which the mean score must lie below the boundary."""
        if self.margin is not None:
            return float(self.margin)
        if self.tail == "gaussian":
            return float(stats.norm.ppf(1 - self.gamma))
        return math.sqrt((1 - self.gamma) / self.gamma)

    def fit(
        self,
        cache: HeadCache,
        detector: RiskAwareDetector,
        *,
        calibrate: HeadCache | None = None,
        confidence: float = 0.95,
        max_margin: float = 1000.0,
        fisher: FisherBlocks | None = None,
    ) -> Steering:
        """Compute the map of every chosen head from the activations that its gate passes.

        Args:
            cache: training activations.
            detector: fitted on the same heads.
            calibrate: activations of further groups. The margin of all heads is raised until the upper bound of the
                share still flagged (over all heads, as `Steering.certify` counts it) is at most `gamma` on them. The
                bound holds for the fitted heads as a set: choose heads first.
            confidence: of that bound, in (0, 1).
            max_margin: largest `kappa` that calibration may try.
            fisher: from `fisher_blocks`, under this policy's gate; for the geometry "output" and no other.

        Raises:
            InvalidArgumentError: a parameter out of its range, a head whose weight is zero, a head of a layer that was
                not collected, or `fisher` missing, not asked for, without a head, or measured under another gate.
            NothingToEditError: no head to edit, or every map is the identity; says why.
            ConvergenceError: a solution that misses its tolerance; names the layer and the head.
            LeakageError: a calibration group took part in the fit.
            GuaranteeError: too few calibration groups for any margin, or no margin up to `max_margin` meets the bound.
        """
        self.check()
        self._check_fisher(fisher, detector)
        calibration = None if calibrate is None else Calibration(calibrate, self.gamma, confidence, max_margin)
        if calibration is not None:
            calibration.check(self.kappa)
        sample = prepare(cache, detector, self.sites, self.gate)
        blind = [str(site) for site, weight in zip(sample.sites, sample.weights) if not bool(weight.any())]
        if blind:
            raise InvalidArgumentError(
                f"The detector's weight is zero at {', '.join(blind)}, so no direction changes its score. Choose "
                "`heads` without it."
            )
        moments = sample.gated_moments().ridged(RIDGE)
        if not bool((moments.count > 0).any()):
            raise NothingToEditError(
                f"No training activation passes the gate {self.gate!r} of any chosen head: there is nothing to edit. "
                "The gate 'none' passes all, and a detector with a larger `fnr_weight` flags more."
            )
        trust = None if self.trust is None else _trust_region(sample, _usable(moments), self.trust)
        metric = self._metric(sample, fisher)

        def at(kappa: float) -> Steering:
            maps, certificates = self._maps(sample, _usable(moments), metric, kappa)
            settings = self._settings(kappa)
            steering = assemble(
                "radiant", settings, sample, maps, certificates, cache, detector, gate=self.gate, trust=trust
            )
            return steering if fisher is None else _with_provenance(steering, fisher)

        return at(self.kappa) if calibration is None else calibrated(at, self.kappa, calibration)

    def fit_sequential(
        self,
        model: TransformerBridge,
        data: Dataset | Sequence[Statement],
        detector: RiskAwareDetector,
        *,
        positions: str | Sequence[int] = "answer",
        max_tokens: int | None = None,
        progress: bool = False,
    ) -> SequentialFit:
        """Fit the layers in order of depth, each on activations under the earlier layers' edits.

        `radiant_lens.fit_sequential` with this policy; its arguments, result and errors are the same.
        """
        return fit_sequential(
            model, data, detector, self, positions=positions, max_tokens=max_tokens, progress=progress
        )

    def sites(self, detector: RiskAwareDetector) -> tuple[HeadSite, ...]:
        """Choose the heads that `fit` edits with this detector."""
        return choose_heads(detector, self.heads, self.n_layers)

    def _check_fisher(self, fisher: FisherBlocks | None, detector: RiskAwareDetector) -> None:
        if (fisher is not None) != (self.geometry == "output"):
            remedy = f"give `fit(..., fisher=fisher_blocks(model, data, detector, gate={self.gate!r}))`"
            raise InvalidArgumentError(
                f'The geometry "output" needs the Fisher blocks of the heads: {remedy}, or use `radiant_lens.fit`.'
                if fisher is None
                else f'`fisher` goes with the geometry "output" and with no other; got {self.geometry!r}.'
            )
        if fisher is not None:
            fisher.check(self.gate, detector)

    def _metric(self, sample: HeadSample, fisher: FisherBlocks | None) -> Float[Tensor, "site d_head d_head"] | None:
        """`M` of a transport geometry, whose cost is measured in `M^{-1}`; None: the identity."""
        if fisher is not None:
            return torch.cholesky_inverse(torch.linalg.cholesky(fisher.regularised(sample.sites)))
        return sample.within_class_covariance() if self.geometry == "mahalanobis" else None

    def _maps(
        self, sample: HeadSample, moments: Moments, metric: Tensor | None, kappa: float
    ) -> tuple[HeadMaps, list[Certificate]]:
        desirable = sample.class_moments(undesirable=False)
        spread = quadratic_form(sample.weights, desirable.covariance).sqrt()
        # Without a floor any margin of 1 or more gives an image on the boundary itself, where half of it would be
        # flagged by rounding: the bias moves the boundary by a thousandth of a deviation.
        biases = sample.biases if self.floor else sample.biases + 1e-3 * spread
        inputs = (moments.mean, moments.covariance, sample.weights, biases, torch.full_like(biases, kappa))
        floor: dict[str, Tensor | None]
        if self.geometry == "procrustes":
            floor = {"floor": desirable.covariance if self.floor else None}
        else:
            floor = {"metric": metric, "floor_std": spread if self.floor else None}
        return self._solve(sample, moments, inputs, floor)

    def _solve(
        self, sample: HeadSample, moments: Moments, inputs: Sequence[Tensor], options: dict[str, Tensor | None]
    ) -> tuple[HeadMaps, list[Certificate]]:
        """Solve for all heads, and certify the maps in the form in which the steering stores them."""
        try:
            if self.geometry == "procrustes":
                solution = solve_shared(solve_procrustes, *inputs, **options)
                eye = torch.eye(sample.weights.shape[-1], dtype=torch.float64)
                maps: HeadMaps = DenseMaps(solution.G - eye, solution.g)
                proof = (solution.root, solution.bound)
            else:
                solution = solve_shared(solve_transport, *inputs, **options)
                maps, proof = rank_one(solution), ()
        except UncertifiedError as error:
            raise _with_heads(error, sample.sites) from error
        kappa, empty = float(inputs[-1][0]), moments.count == 0
        if bool((solution.identity | empty).all()):
            raise NothingToEditError(
                "Every map is the identity: the activations that the gate passes are desirable already, "
                f"by a margin of {kappa:.3g}."
            )
        maps = _silenced(maps, empty)
        certificate = _certify_stored(maps, sample.sites, ~empty, inputs, proof, options)
        return maps, self._certificates(certificate, solution.identity, moments, kappa)

    def _certificates(
        self, certificate: MapCertificate, identity: Bool[Tensor, " site"], moments: Moments, kappa: float
    ) -> list[Certificate]:
        """List the certificate of each head; heads without activations get the identity's, without a slack."""
        empty = moments.count == 0
        value, gap = torch.zeros_like(moments.count), torch.zeros_like(moments.count)
        slack = torch.full_like(moments.count, torch.nan)
        value[~empty], gap[~empty], slack[~empty] = certificate.value, certificate.gap, certificate.slack
        ridge = moments.covariance.diagonal(dim1=-2, dim2=-1).mean(-1) * RIDGE
        shrunk = moments.count < SHRINK_BELOW * moments.mean.shape[-1]
        return [
            Certificate(
                method="identity" if identity[i] or empty[i] else self.geometry,
                margin=kappa,
                value=float(value[i]),
                gap=float(gap[i]),
                slack=float(slack[i]),
                n_flagged=int(moments.count[i]),
                ridge=float(ridge[i]),
                shrunk=bool(shrunk[i]),
            )
            for i in range(len(identity))
        ]

    def _settings(self, kappa: float) -> dict[str, Any]:
        heads = self.heads if isinstance(self.heads, (str, int)) else [list(pair) for pair in self.heads]
        return {**asdict(self), "heads": heads, "kappa": kappa}

    def check(self) -> None:
        """Raise `InvalidArgumentError` for a parameter out of its range; `fit` calls it first."""
        _checks.between("gamma", self.gamma, 0, 0.5)
        if self.margin is not None:
            _checks.between("margin", self.margin, 0)
        _checks.choice("geometry", self.geometry, GEOMETRIES)
        if self.floor not in FLOORS:
            raise InvalidArgumentError(f"`floor` must be 'desirable' or None; got {self.floor!r}.")
        _checks.choice("tail", self.tail, TAILS)
        _checks.choice("gate", self.gate, GATES)
        if self.trust is not None:
            _checks.between("trust", self.trust, 0, 1)


def rank_one(solution: TransportSolution) -> RankOneMaps:
    """Convert transports to displacements, without building their matrices."""
    gain = solution.scale - 1
    return RankOneMaps(solution.direction, gain[:, None] * solution.theta, gain * solution.bias + solution.offset)


def _certify_stored(
    maps: HeadMaps,
    sites: Sequence[HeadSite],
    gated: Bool[Tensor, " site"],
    inputs: Sequence[Tensor],
    proof: Sequence[Tensor],
    options: Mapping[str, Tensor | None],
) -> MapCertificate:
    """Certify the stored tensors of the maps of `gated` heads; the others have no moments to certify them against.

    Args:
        maps: of all heads.
        sites: the heads.
        gated: heads with activations.
        inputs, options: the problems, as for the solver.
        proof: for dense maps, root and dual bound of their solutions.

    Raises:
        ConvergenceError: a map that is not the solution of its problem; names the head.
    """
    index = gated.nonzero()[:, 0]
    stored, inputs = maps.take(index), [x[index] for x in inputs]
    options = {name: None if x is None else x[index] for name, x in options.items()}
    try:
        if isinstance(stored, RankOneMaps):
            return solve_shared(certify_transport, *inputs, stored.write, stored.read, stored.shift, **options)
        proof = [x[index] for x in proof]
        return solve_shared(certify_procrustes, *inputs, *stored.matrices(), *proof, **options)
    except UncertifiedError as error:
        raise _with_heads(error, [sites[i] for i in index.tolist()]) from error


def _usable(moments: Moments) -> Moments:
    """Give heads whose gate passes nothing a unit covariance, for the solver; their maps become the identity."""
    eye = torch.eye(moments.mean.shape[-1], dtype=torch.float64)
    covariance = torch.where((moments.count == 0)[:, None, None], eye, moments.covariance)
    return Moments(moments.count, moments.mean, covariance)


def _silenced(maps: HeadMaps, empty: Bool[Tensor, " site"]) -> HeadMaps:
    """Replace the maps of heads whose gate passes nothing by the identity: all stored tensors are 0 there."""
    tensors = {
        name: torch.where(empty.view(-1, *[1] * (t.ndim - 1)), torch.zeros_like(t), t)
        for name, t in maps.tensors().items()
    }
    return type(maps)(**tensors)


def _trust_region(sample: HeadSample, moments: Moments, quantile: float) -> TrustRegion:
    whiten = torch.linalg.inv(torch.linalg.cholesky(moments.covariance))
    distance2 = torch.cat(
        [
            torch.einsum("sij,nsj->nsi", whiten, sample.rows[rows].double() - moments.mean).square().sum(-1)
            for rows in row_slices(sample.rows.shape)
        ]
    )
    # A head whose gate passes nothing has no quantile: radius 0 trusts no activation, so it is never edited.
    radius2 = distance2.masked_fill(~sample.gated, torch.nan).nanquantile(quantile, dim=0).nan_to_num(0.0)
    return TrustRegion(moments.mean, whiten, radius2)


def _with_provenance(steering: Steering, fisher: FisherBlocks) -> Steering:
    """Record the measurement of the Fisher blocks; its groups count as seen."""
    seen = sorted({*steering.meta["seen_groups"], *fisher.meta["groups"]})
    return replace(steering, meta={**steering.meta, "seen_groups": seen, "fisher": fisher.provenance()})


def _with_heads(error: UncertifiedError, sites: Sequence[HeadSite]) -> ConvergenceError:
    """Name the heads of the failed problems."""
    names = ", ".join(str(sites[i]) for (i,) in error.index)
    return ConvergenceError(f"{names}: {error}")
