"""Fisher blocks of heads: how far what the model says changes when a head is moved, for the geometry "output"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._files import sha256
from radiant_lens.analysis.sensitivity import score_batches
from radiant_lens.analysis.steering import Steering
from radiant_lens.analysis.strength import desirable_statements
from radiant_lens.caches import HeadCache
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.distributed import progress_bar
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.models.identity import require_bridge
from radiant_lens.models.lengths import fit_context
from radiant_lens.policies.head_sample import detector_scores
from radiant_lens.policies.heads import HeadChoice
from radiant_lens.policies.least_kl import LeastKLPolicy
from radiant_lens.policies.policy import Policy
from radiant_lens.policies.radiant import RadiantPolicy
from radiant_lens.sites import HeadSite
from radiant_lens.solvers.least_kl import RIDGES, ridged_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class FisherBlocks:
    """The Fisher information of what the model says, one block for each head.

    A displacement `d` of a head, where the gate passes it, changes the model's predictions by a KL of `d' F d / 2` in
    nats a token, to second order.

    Attributes:
        sites: the heads.
        blocks: `F` of each head, without a ridge.
        ridge: share of the mean of a block's diagonal that `regularised` adds to the diagonal.
        gate: rule for the positions that count.
        meta: data, numbers of texts and tokens, groups, draws and seed.
        gate_hash: hash of the detector that the gate asks; "" for the gate "none".
    """

    sites: tuple[HeadSite, ...]
    blocks: Float[Tensor, "site d_head d_head"]
    ridge: float
    gate: str
    meta: dict[str, Any]
    gate_hash: str = ""

    def regularised(self, sites: tuple[HeadSite, ...]) -> Float[Tensor, "site d_head d_head"]:
        """Blocks of some heads with the ridge; of a head whose gate passes nothing, the identity.

        Raises:
            InvalidArgumentError: a head that was not measured.
        """
        missing = [str(site) for site in sites if site not in self.sites]
        if missing:
            raise InvalidArgumentError(
                f"`fisher` has no block of {', '.join(missing)}: measure it with `fisher_blocks(..., heads='all')`."
            )
        return ridged_blocks(self.blocks[[self.sites.index(site) for site in sites]], self.ridge)

    def check(self, gate: str, detector: RiskAwareDetector) -> None:
        """Refuse blocks that were measured under another gate than that of a fit.

        Raises:
            InvalidArgumentError: another gate, or another detector that the gate asks.
        """
        if self.gate != gate:
            raise InvalidArgumentError(
                f"`fisher` was measured under the gate {self.gate!r}, and the policy has the gate {gate!r}: measure it "
                f"with `fisher_blocks(..., gate={gate!r})`."
            )
        if self.gate_hash != _gate_hash(gate, detector):
            raise InvalidArgumentError(
                "`fisher` was measured under the gate of another detector: measure it with "
                "`fisher_blocks(model, data, detector)`."
            )

    def provenance(self) -> dict[str, Any]:
        """The record of the measurement in a steering."""
        return {"ridge": self.ridge, "gate": self.gate, **{k: v for k, v in self.meta.items() if k != "groups"}}

    def __repr__(self) -> str:
        """Counts, in one line."""
        return (
            f"FisherBlocks({len(self.sites)} heads, gate {self.gate!r}, {self.meta['n_texts']} texts with "
            f"{self.meta['n_tokens']} tokens of {self.meta['data']!r})"
        )


def fisher_blocks(
    model: TransformerBridge,
    data: Dataset,
    detector: RiskAwareDetector | None = None,
    *,
    gate: str = "head",
    heads: HeadChoice = "all",
    ridge: float = RIDGES[0],
    n_draws: int = 2,
    seed: int = 0,
    max_tokens: int | None = None,
    progress: bool = False,
) -> FisherBlocks:
    """Measure the Fisher information of every head at `hook_z`, for `RadiantPolicy(geometry="output")`.

    `F = E[s s']` for each token of the answers, with `s` the gradient of the log-probability of tokens that are drawn
    from the model, summed over the positions that the gate passes (Amari, "Natural gradient works efficiently in
    learning", 1998). One pass over the data, and a backward pass for each draw; only one block for each head and the
    scores of one pass are in memory.

    Args:
        model: from `load_model`.
        data: statements; with the gate "none" the desirable ones count, on which the KL of a steering is measured,
            else all, since a gate is nearly shut on desirable text. Texts beyond the model's context are skipped with a
            warning, or what else `on_long` of the data set says.
        detector: fitted; whose flags the gate asks. The gate "none" needs none.
        gate: that of the policy.
        heads: "all", or another choice of heads of `RadiantPolicy`.
        ridge: share of the mean of a block's diagonal that is added to the diagonal, positive.
        n_draws: draws of tokens for each text, at least 1.
        seed: of the draws.
        max_tokens: tokens in one pass, padding included; None: 1024 on the CPU, else 4096.
        progress: show a progress bar.

    Raises:
        InvalidArgumentError: a number out of its range, an unknown gate, or a gate without a detector.
        DataError: no statements that count, or all of them (with the rule "error", one) longer than the context.

    Example:
        >>> fisher = rl.fisher_blocks(model, train, detector)  # doctest: +SKIP
        >>> rl.RadiantPolicy(geometry="output").fit(cache, detector, fisher=fisher)  # doctest: +SKIP
    """
    _checks.instance("data", data, Dataset, hint="`load_dataset` makes one")
    _checks.between("ridge", ridge, 0)
    LeastKLPolicy(gate=gate, n_draws=n_draws, seed=seed).check()
    require_bridge(model)
    statements = desirable_statements(data) if gate == "none" else data.statements
    if not statements:
        raise DataError(f"Data set {data.name!r} has no statements: the Fisher information is measured on them.")
    family = LeastKLPolicy(heads=heads, gate=gate).make_family(model, data, detector)
    texts = fit_context(model, statements, data.on_long).records
    d_head = family.n_parameters
    total, n_tokens = torch.zeros((len(family.sites), d_head, d_head), dtype=torch.float64), 0
    with progress_bar(shown=progress) as bar:
        for batch in score_batches(model, texts, family, n_draws=n_draws, seed=seed, max_tokens=max_tokens, bar=bar):
            scores = batch.scores.double()
            total += torch.einsum("nsi,nsj->sij", scores, scores)
            n_tokens += int(batch.n_tokens.sum())
    counts = {"n_texts": len(texts), "n_tokens": n_tokens // n_draws, "n_draws": n_draws, "seed": seed}
    meta = {"data": data.name, **counts, "groups": sorted({text.group for text in texts})}
    return FisherBlocks(family.sites, total / n_tokens, ridge, gate, meta, _gate_hash(gate, detector))


def fit_with_model(
    policy: Policy, model: TransformerBridge, data: Dataset, cache: HeadCache, detector: RiskAwareDetector
) -> Steering:
    """Fit a policy; measure the Fisher blocks of its heads on `data` if its geometry asks for them."""
    if isinstance(policy, RadiantPolicy) and policy.geometry == "output":
        policy.check()
        fisher = fisher_blocks(model, data, detector, gate=policy.gate, heads=policy.sites(detector))
        return policy.fit(cache, detector, fisher=fisher)
    return policy.fit(cache, detector)


def _gate_hash(gate: str, detector: RiskAwareDetector | None) -> str:
    if gate == "none" or detector is None:
        return ""
    tensors = detector_scores(detector).used(joint=gate == "joint")
    return sha256(tensor.detach().cpu().contiguous().numpy().data for tensor in tensors)[:16]
