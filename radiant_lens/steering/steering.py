"""`Steering`: the result of a policy's `fit`, ready to be hooked into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Self

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.caches import HeadCache
from radiant_lens.errors import InvalidArgumentError, NothingToEditError
from radiant_lens.sites import Heads, HeadSite, as_sites, hook_name
from radiant_lens.steering.artefact import load_parts, save_parts
from radiant_lens.steering.cached import cached_edits
from radiant_lens.steering.editor import LayerEdit, LayerEditor, make_editor
from radiant_lens.steering.exports import WeightExports
from radiant_lens.steering.gates import RunningScore, TrustRegion
from radiant_lens.steering.held_out import Events, HeldOutCertificate, certificate
from radiant_lens.steering.hub import download, temporary_folder, upload
from radiant_lens.steering.layer_hook import LayerHook, Recorder, Window
from radiant_lens.steering.maps import AffineMap, Certificate
from radiant_lens.steering.model_card import model_card, with_metrics


@runtime_checkable
class RankedHeads(Protocol):
    """Heads with the effect of editing each, as `head_effects` returns them.

    An attribute `group_names`, where there is one, names the groups that the effects were measured on.
    """

    @property
    def sites(self) -> tuple[HeadSite, ...]:
        """The heads."""
        ...

    @property
    def estimated(self) -> Float[Tensor, " site"]:
        """Effect of editing each head."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Steering(WeightExports):
    """Edits of attention heads at `hook_z`, with the gate that decides where they happen.

    Made by a policy's `fit`; use it with `radiant_lens.steer`, or its `hooks()` with `model.hooks`.

    Attributes:
        sites: the edited heads, sorted.
        head_maps: their maps, in the order of `sites`.
        scores: the detector's scores and vote thresholds.
        gate: one of `radiant_lens.steering.gates.GATES`.
        certificates: one for each site.
        trust: if not None, activations outside this region are left alone.
        meta: provenance: policy, detector, training data, groups that were used, model.
    """

    def __repr__(self) -> str:
        """Policy, heads and gate, in one line."""
        names = ", ".join(map(str, self.sites[:6])) + (", ..." if len(self.sites) > 6 else "")
        policy = self.meta.get("policy", {}).get("name", "?")
        return f"Steering({policy}, {len(self.sites)} heads: {names}; gate {self.gate!r})"

    def maps(self) -> dict[HeadSite, AffineMap]:
        """The affine map of every edited head, as matrices."""
        matrices, shifts = self.head_maps.matrices()
        rows = zip(self.sites, matrices, shifts, self.certificates)
        return {site: AffineMap(G, g, certificate) for site, G, g, certificate in rows}

    def displace(
        self, z: Float[Tensor, "*batch head d_head"], layer: int, joint: Float[Tensor, "*batch 1"] | None = None
    ) -> LayerEdit:
        """The edit of a layer: the displacement of each edited head, 0 where its gate is shut.

        Args:
            z: activations of the layer.
            layer: its index.
            joint: its joint score, from `joint_scores`; None where edits do not depend on other layers.

        Raises:
            InvalidArgumentError: `z` is not `... head d_head` of this model, `layer` is out of range, or a joint score
                is needed and not given.
        """
        self._check_z(z, layer)
        return self._editor(layer, z).compute(z, joint)

    def displacing(self) -> Callable[[Float[Tensor, "*batch head d_head"], int], LayerEdit]:
        """`displace` for all of `hooked_layers` one after the other; each hands its joint score to the next."""
        running = self.running_score()

        def displace(z: Tensor, layer: int) -> LayerEdit:
            score = self._editor(layer, z).joint
            joint = None if running is None or score is None else running(score, z.to(score.weights.dtype))
            return self.displace(z, layer, joint)

        return displace

    def edit(
        self, z: Float[Tensor, "*batch head d_head"], layer: int, joint: Float[Tensor, "*batch 1"] | None = None
    ) -> Float[Tensor, "*batch head d_head"]:
        """The activations of a layer after the edit; heads whose gate is shut are unchanged.

        Takes the arguments of `displace`, and raises as it does.
        """
        self._check_z(z, layer)
        return self._editor(layer, z).apply(z, None if joint is None else joint.reshape(-1, 1))

    def hook(
        self,
        layer: int,
        *,
        window: Window | None = None,
        recorder: Recorder | None = None,
        running: RunningScore | None = None,
    ) -> LayerHook:
        """The hook function of one layer; `window` and `recorder` are for `radiant_lens.steer`.

        Where edits depend on layers below, all `hooked_layers` need one, with the same `running=running_score()`.

        Raises:
            InvalidArgumentError: `layer` is out of range, or (in a pass) the hook is not at a `hook_z` of this model.
        """
        n_layers, *shape = self.scores.weights.shape
        _checks.whole("layer", layer, 0, n_layers - 1)
        return LayerHook(shape, lambda z: self._editor(layer, z), window, recorder, running)

    def hooks(self, start: str | Int[Tensor, " batch"] = "newest") -> list[tuple[str, HookFunction]]:
        """Hook functions for `model.hooks(fwd_hooks=...)` or `model.run_with_hooks(..., fwd_hooks=...)`.

        A hook function sees only `z`, so `start` says where edits begin.

        Args:
            start: "newest" edits the last position of every pass, which is right for left-padded prompts and
                for each step of generation with a KV cache; a position for each row edits that one and all
                later ones.

        Returns:
            Pairs `(hook_name, hook_fn)` with `hook_fn(z, hook) -> z`.
        """
        window = None
        if isinstance(start, str):
            _checks.choice("start", start, ("newest",))
        else:
            window = _window_from(_checks.columns("start", start))
        running = self.running_score()
        return [(hook_name(i), self.hook(i, window=window, running=running)) for i in self.hooked_layers]

    def select(self, heads: RankedHeads | Heads, k: str | int = "auto") -> Self:
        """The same edits on fewer heads.

        Groups that the effects were measured on took part in the choice, so `certify` refuses them afterwards.

        Args:
            heads: effects from `head_effects`, or the heads to keep: pairs (layer, head) or names such as "L0H3 L2H7".
            k: for effects: "auto" keeps the fewest heads that carry 90% of the total positive effect; a
                number keeps that many of the most effective.

        Raises:
            InvalidArgumentError: a head that is not edited, or a `k` out of range.
            NothingToEditError: no head has a positive effect.
        """
        chosen = as_sites(heads) if isinstance(heads, Iterable) else _most_effective(heads, k)
        unknown = chosen - set(self.sites)
        if unknown:
            raise InvalidArgumentError(
                f"`heads` must be some of the {len(self.sites)} edited heads; got "
                f"{', '.join(map(str, sorted(unknown)))}."
            )
        index = torch.tensor([i for i, site in enumerate(self.sites) if site in chosen])
        return replace(
            self,
            meta=_with_seen_groups(self.meta, getattr(heads, "group_names", ())),
            sites=tuple(self.sites[i] for i in index.tolist()),
            head_maps=self.head_maps.take(index),
            certificates=tuple(self.certificates[i] for i in index.tolist()),
            trust=None if self.trust is None else self.trust.take(index),
        )

    def scaled(self, strength: float) -> Self:
        """The same edits with every displacement multiplied by `strength`; the gate decides as before.

        No promise of the policy carries over, so the certificates keep nothing but the solver's name and counts.

        Args:
            strength: 0 edits nothing, 1 is this steering, a negative number pushes the other way.

        Raises:
            InvalidArgumentError: a strength out of range, or resample ablation, which has no strength.
        """
        _checks.between("strength", strength, -1e6, 1e6, closed="both")
        if strength == 1:
            return self
        return replace(
            self,
            head_maps=self.head_maps.scaled(torch.full((len(self.sites),), float(strength), dtype=torch.float64)),
            certificates=tuple(Certificate(c.method, n_flagged=c.n_flagged) for c in self.certificates),
            meta={**self.meta, "gamma": None, "strength": strength * self.meta.get("strength", 1.0)},
        )

    def certify(
        self, cache: HeadCache, *, confidence: float = 0.95, seed: int = 0, draws: int = 20
    ) -> HeldOutCertificate:
        """Share of the gated held-out activations that their head still flags after the edit, with exact bounds.

        The bounds count one random gated token of each group, since tokens of one text are not independent. They are
        exact for the first draw of those tokens; further draws show how much the count depends on the draw.

        Args:
            cache: activations of groups that were used neither to fit nor to choose heads.
            confidence: of the exact binomial bounds, in (0, 1).
            seed: of the first draw. Choose it before looking: the most favourable of several seeds has no guarantee.
            draws: number of draws, at least 1; the next ones have the next seeds.

        Raises:
            LeakageError: a group of `cache` was used to fit, or to choose heads on.
            DataError: activations that are not finite.
        """
        _checks.between("confidence", confidence, 0, 1)
        _checks.whole("draws", draws, 1)
        _checks.seed(seed)
        _checks.finite("cache.z", cache.z)
        _checks.disjoint_groups(self.meta.get("seen_groups", ()), cache.group_names, ("the fit", "certification"))
        names, gamma = [str(site) for site in self.sites], self.meta.get("gamma")
        events = self.events(cache)
        return certificate(names, events, cache.groups, gamma=gamma, confidence=confidence, seed=seed, draws=draws)

    def events(self, cache: HeadCache) -> Events:
        """Activations of a cache that each edited head's gate lets through, and those still flagged after the edit.

        An activation that a trust region keeps from being edited counts as gated and, if the head flags it, as still
        flagged.
        """
        events = []
        # Double precision, so that the edit itself decides what is still flagged and not the rounding of a cache.
        for z, edit in cached_edits(self, cache, self.layers):
            weights = self.scores.weights[edit.layer, edit.heads].double()
            after = (z[:, edit.heads] + edit.displacement) * weights
            flagged = after.sum(-1) + self.scores.biases[edit.layer, edit.heads].double() >= 0
            gated = edit.gated | edit.untrusted
            events.append((gated, flagged & gated))
        return Events(*(torch.cat(per_layer, dim=1) for per_layer in zip(*events)))

    def save(self, path: str | Path, *, metrics: Mapping[str, Any] | None = None) -> Path:
        """Write the steering as a folder of safetensors, JSON and a model card; returns its path.

        Args:
            path: of the folder; a steering that is there already is replaced.
            metrics: figures for the card besides those of the detector, such as the metrics of `evaluate`: numbers, or
                anything JSON can hold.

        Raises:
            ArtefactError: `path` exists and is not a saved steering.
            InvalidArgumentError: JSON cannot hold `metrics`.
        """
        steering = self if metrics is None else replace(self, meta=with_metrics(self.meta, metrics))
        return save_parts(steering, path, card=model_card(steering))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a steering that `save` wrote.

        Raises:
            ArtefactError: the folder is missing, damaged, or not a steering.
        """
        return cls(**load_parts(path))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> str:
        """Save the steering to the Hugging Face Hub; returns its address.

        Args:
            repo_id: "owner/name"; the repository is created if needed.
            private: visibility of a new repository; None: the owner's default.
            revision: branch; None: the main branch.
            metrics: as in `save`.

        Raises:
            ArtefactError: the Hub refuses or cannot be reached.
        """
        with temporary_folder() as folder:
            self.save(folder, metrics=metrics)
            return upload(folder, repo_id, private=private, revision=revision, message=f"Upload {self!r}")

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> Self:
        """Read a steering from a local folder or the Hugging Face Hub.

        Args:
            name: a folder, or "owner/name".
            revision: on the Hub: a branch, tag or commit.

        Raises:
            ArtefactError: it cannot be downloaded, is damaged, or is not a steering.
        """
        return cls.load(name if Path(name).is_dir() else download(str(name), revision=revision))

    @cached_property
    def _editors(self) -> dict[tuple[int, torch.device, torch.dtype], LayerEditor]:
        """Editors by layer, device and precision, so that constants are moved once and not at every token."""
        return {}

    def _editor(self, layer: int, like: Tensor) -> LayerEditor:
        # A model over several devices has layers on each, and a pass may run in another precision (autocast).
        key = (layer, like.device, like.dtype)
        if key not in self._editors:
            self._editors[key] = self._new_editor(layer, like)
        return self._editors[key]

    def _new_editor(self, layer: int, like: Tensor) -> LayerEditor:
        index = torch.tensor([i for i, site in enumerate(self.sites) if site.layer == layer], dtype=torch.long)
        heads = torch.tensor([self.sites[i].head for i in index.tolist()], dtype=torch.long)
        trust = None if self.trust is None else self.trust.take(index)
        return make_editor(layer, heads, self.head_maps.take(index), self.scores, self.gate, trust, like=like)

    def _check_z(self, z: Tensor, layer: int) -> None:
        n_layers, n_heads, d_head = self.scores.weights.shape
        _checks.whole("layer", layer, 0, n_layers - 1)
        if tuple(z.shape[-2:]) != (n_heads, d_head):
            raise InvalidArgumentError(
                f"`z` must have axes `... head d_head` ending in ({n_heads}, {d_head}); got {tuple(z.shape)}."
            )


AnySteering = TypeVar("AnySteering", bound=Steering)


def joined(steerings: Sequence[AnySteering]) -> AnySteering:
    """Steerings of different heads as one, with the detector, gate and provenance of the first.

    Raises:
        InvalidArgumentError: a head in two of them, or steerings that differ in gate, kind of maps or use of a trust
            region.
    """
    first = steerings[0]
    kinds = {(s.gate, s.head_maps.kind, s.trust is None) for s in steerings}
    sites = [site for s in steerings for site in s.sites]
    if len(kinds) > 1 or len(set(sites)) < len(sites):
        raise InvalidArgumentError(
            "Only steerings of different heads with the same gate, kind of maps and use of a trust region can be "
            f"joined; got {', '.join(map(repr, steerings))}."
        )
    # Sites must be sorted, as those of every steering are; all that belongs to them goes along.
    order = torch.tensor(sorted(range(len(sites)), key=sites.__getitem__))
    certificates = [certificate for s in steerings for certificate in s.certificates]
    trusts = [s.trust for s in steerings if s.trust is not None]
    return replace(
        first,
        sites=tuple(sorted(sites)),
        head_maps=type(first.head_maps).joined([s.head_maps for s in steerings]).take(order),
        certificates=tuple(certificates[i] for i in order.tolist()),
        trust=TrustRegion.joined(trusts).take(order) if trusts else None,
        meta={**first.meta, "seen_groups": sorted({g for s in steerings for g in s.meta.get("seen_groups", ())})},
    )


def _window_from(start: Int[Tensor, " batch"]) -> Window:
    def window(z: Tensor) -> Tensor:
        if start.shape != (z.shape[0],):
            raise InvalidArgumentError(
                f"`start` needs one position for each of the {z.shape[0]} rows; got shape {tuple(start.shape)}."
            )
        return torch.arange(z.shape[1], device=z.device) >= start.to(z.device)[:, None]

    return window


def _with_seen_groups(meta: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The meta data with further groups that were used; without any, the same."""
    groups = sorted({*meta.get("seen_groups", ()), *names})
    return {**meta, "seen_groups": groups} if groups else meta


def _most_effective(effects: RankedHeads, k: str | int) -> set[HeadSite]:
    """The `k` heads of largest effect, or for "auto" the fewest that carry 90% of the total positive effect."""
    order = effects.estimated.argsort(descending=True)
    positive = effects.estimated[order].clamp_min(0)
    if not bool((positive > 0).any()):
        raise NothingToEditError("No edited head has a positive effect: there is nothing to select.")
    if isinstance(k, str):
        _checks.choice("k", k, ("auto",))
        # The first head at which the sum reaches 90% is the last that is kept.
        share = positive.cumsum(0) / positive.sum()
        k = int((share < 0.9).sum()) + 1
    _checks.whole("k", k, 1, len(effects.sites))
    return {effects.sites[i] for i in order[:k].tolist()}
