"""Steerings whose maps come from elsewhere: empty ones that policies fill, and those of vectors of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.analysis.steering import Steering
from radiant_lens.detectors.detector import require_fitted
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.models.identity import require_bridge, signature
from radiant_lens.policies.head_sample import detector_scores
from radiant_lens.policies.heads import HeadChoice, choose_heads, heads_of_shape, require_collected
from radiant_lens.sites import HeadSite, as_sites, checked_sites
from radiant_lens.steering.gates import GATES, HeadScores, require_joint
from radiant_lens.steering.maps import Certificate, RankOneMaps

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from radiant_lens.detectors.detector import RiskAwareDetector


def steering_template(
    model: TransformerBridge, heads: HeadChoice, gate: str, detector: RiskAwareDetector | None, method: str
) -> Steering:
    """A steering that moves no head yet.

    Args:
        model: from `load_model`.
        heads: those to move; without a detector "all", "layer:I", heads by name, or pairs `(layer, head)`.
        gate: one of `GATES`.
        detector: fitted; needed for every gate but "none".
        method: for the certificates.

    Raises:
        InvalidArgumentError: a gate without a detector, heads that the model does not have, a detector for heads of
            another shape, or under a gate a head of a layer that it has not seen.
        NotFittedError: the detector is not fitted.
    """
    if gate != "none" and detector is None:
        raise InvalidArgumentError(f"`gate` {gate!r} needs a detector: give `detector=...`.")
    config = model.cfg
    if detector is None:
        sites = heads_of_shape(heads, config.n_layers, config.n_heads)
        # No head ever flags, and the gate "none" does not ask.
        biases = torch.full((config.n_layers, config.n_heads), -1.0)
        weights = torch.zeros((*biases.shape, config.d_head))
        scores = HeadScores(weights, biases, torch.ones(config.n_layers, dtype=torch.long))
    else:
        require_shape(detector, (config.n_layers, config.n_heads, config.d_head))
        sites = choose_heads(detector, heads)
        if gate != "none":
            require_collected((site.layer for site in sites), detector.collected_layers_, "the detector's data")
        scores = detector_scores(detector)
        require_joint(gate, scores.joint is not None)
    groups = set(detector.training_groups_) | set(detector.validation_groups_) if detector is not None else set()
    meta = {
        "model": signature(model),
        "positions": "answer",
        "seen_groups": sorted(groups),
        **({} if detector is None else {"detector": detector.get_params()}),
    }
    nothing = RankOneMaps.translation(torch.zeros((len(sites), config.d_head), dtype=torch.float64))
    return Steering(sites, nothing, scores, gate, tuple(Certificate(method) for _ in sites), meta=meta)


def require_shape(detector: RiskAwareDetector, shape: tuple[int, ...]) -> None:
    """Raise for a detector that is not fitted, or of other numbers of layers and heads or another `d_head`."""
    require_fitted(detector)
    own = tuple(detector.weights_.shape)
    if own != shape:
        raise InvalidArgumentError(
            f"`detector` is for {own[0]} layers of {own[1]} heads of {own[2]}, and the model has {shape[0]} of "
            f"{shape[1]} of {shape[2]}. Give one that was fitted on this model's activations."
        )


def vector_steering(
    model: TransformerBridge,
    vectors: Mapping[str | tuple[int, int], Float[Tensor, " d_head"] | Sequence[float]],
    *,
    gate: str = "none",
    detector: RiskAwareDetector | None = None,
) -> Steering:
    """A steering that adds vectors of your own to the activations of heads, as `hook_z` has them.

    The result is like any other: scale it (`scaled`, `at_kl`), put it under a gate, save it, measure and serve it.

    Args:
        model: from `load_model`.
        vectors: `d_head` finite numbers for each head, by name ("L12H3") or by pair `(layer, head)`.
        gate: "none" adds them everywhere; "head", "vote", "layer" and "joint" where the detector flags.
        detector: fitted; needed for every gate but "none".

    Raises:
        InvalidArgumentError: no vector, a head that the model does not have or that has two, a vector of another
            length or of complex numbers, a gate without a detector, a detector for heads of another shape, or under a
            gate a head of a layer that it has not seen.
        NotFittedError: the detector is not fitted.
        DataError: a vector that is not finite.

    Example:
        >>> steering = vector_steering(model, {"L2H5": direction})  # doctest: +SKIP
        >>> with radiant_lens.steer(model, steering, strength=2.0):  # doctest: +SKIP
        ...     model.generate("Q: What do bees make? A:")
    """
    require_bridge(model)
    _checks.choice("gate", gate, GATES)
    _checks.instance("vectors", vectors, Mapping, hint='such as {"L2H5": vector}')
    if not vectors:
        raise InvalidArgumentError("`vectors` must have at least one head, such as {'L2H5': vector}; got none.")
    by_site: dict[HeadSite, Tensor] = {}
    for head, vector in vectors.items():
        site = _site(head, model.cfg.n_layers, model.cfg.n_heads)
        if site in by_site:
            raise InvalidArgumentError(f"`vectors` must have one vector for each head; got two for {site}.")
        by_site[site] = _vector(site, vector, model.cfg.d_head)
    template = steering_template(model, list(by_site), gate, detector, "given")
    shifts = torch.stack([by_site[site] for site in template.sites])
    policy = {"name": "given vectors", "gate": gate, "heads": [list(site) for site in template.sites]}
    return replace(template, head_maps=RankOneMaps.translation(shifts), meta={**template.meta, "policy": policy})


def _site(head: Any, n_layers: int, n_heads: int) -> HeadSite:
    try:
        (site,) = checked_sites(as_sites([head]), n_layers, n_heads)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"`vectors` must have heads of this model as keys, by name such as 'L2H5' or by pair (layer, head), with "
            f"{n_layers} layers of {n_heads} heads; got {head!r:.60}."
        ) from error
    return site


def _vector(site: HeadSite, values: Any, d_head: int) -> Float[Tensor, " d_head"]:
    try:
        # Of NumPy's arrays, torch refuses those that run backwards.
        vector = torch.as_tensor(values.copy() if isinstance(values, np.ndarray) else values)
        if vector.dtype.is_complex or vector.dtype == torch.bool:
            raise TypeError(vector.dtype)
        vector = vector.detach().to_dense().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"The vector of {site} must be {d_head} real numbers; got {values!r:.60}."
        ) from error
    if vector.shape != (d_head,):
        raise InvalidArgumentError(f"The vector of {site} must have shape ({d_head},); got {tuple(vector.shape)}.")
    _checks.finite(f"the vector of {site}", vector)
    return vector
