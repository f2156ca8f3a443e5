"""`Steering`: what a policy hands back, ready to be hooked into a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.caches import HeadCache
from radiant_lens.errors import InvalidArgumentError, NothingToEditError
from radiant_lens.sites import HeadSite, as_sites, hook_name
from radiant_lens.steering.artefact import SteeringParts, load_parts, save_parts
from radiant_lens.steering.editor import LayerEdit, LayerEditor, make_editor
from radiant_lens.steering.folding import fold
from radiant_lens.steering.gates import TrustRegion
from radiant_lens.steering.held_out import Events, HeldOutCertificate, certificate
from radiant_lens.steering.hub import download, temporary_folder, upload
from radiant_lens.steering.layer_hook import LayerHook, Recorder, Window
from radiant_lens.steering.maps import AffineMap
from radiant_lens.steering.model_card import model_card, with_metrics


@runtime_checkable
class RankedHeads(Protocol):
    """Heads with the effect of editing each, as `head_effects` returns them."""

    @property
    def sites(self) -> tuple[HeadSite, ...]:
        """The heads."""
        ...

    @property
    def estimated(self) -> Float[Tensor, " site"]:
        """The effect of editing each."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Steering(SteeringParts):
    """Edits of attention heads at `hook_z`, with the gate that decides where they happen.

    Made by a policy's `fit`; use it with `radiant_lens.steer`, or its `hooks()` with `model.hooks`.

    Attributes:
        sites: the edited heads, sorted.
        head_maps: their maps, in the order of `sites`.
        scores: the detector's scores and vote thresholds.
        gate: "head", "vote", "layer" or "none".
        certificates: one for each site.
        trust: where given, activations outside are left alone.
        meta: provenance: policy, detector, training data and groups, model.
    """

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with an edited head."""
        return tuple(sorted({site.layer for site in self.sites}))

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

    def displace(self, z: Float[Tensor, "*batch head d_head"], layer: int) -> LayerEdit:
        """What would be added to each edited head of a layer; 0 where its gate is shut."""
        self._check_z(z, layer)
        return self._editor(layer, z).look(z)

    def edit(self, z: Float[Tensor, "*batch head d_head"], layer: int) -> Float[Tensor, "*batch head d_head"]:
        """The activations of a layer after the edit; heads whose gate is shut are left as they are.

        Raises:
            InvalidArgumentError: `z` is not `... head d_head` of this model, or there is no such layer.
        """
        self._check_z(z, layer)
        return self._editor(layer, z).edited(z)

    def hook(self, layer: int, *, window: Window | None = None, recorder: Recorder | None = None) -> LayerHook:
        """The hook function of one layer; `window` and `recorder` are for `radiant_lens.steer`.

        Raises:
            InvalidArgumentError: there is no such layer, or (in a pass) what it hooks is no `hook_z` of this model.
        """
        n_layers, *shape = self.scores.weights.shape
        _checks.whole("layer", layer, 0, n_layers - 1)
        return LayerHook(shape, lambda z: self._editor(layer, z), window, recorder)

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
            window = _from(_checks.columns("start", start))
        return [(hook_name(layer), self.hook(layer, window=window)) for layer in self.layers]

    def select(self, heads: RankedHeads | Iterable[tuple[int, int]], k: str | int = "auto") -> Steering:
        """The same edits on fewer heads.

        Args:
            heads: effects from `head_effects`, or the heads to keep.
            k: of effects: "auto" keeps the fewest heads that carry 90% of the total positive effect; a
                number keeps that many of the most effective.

        Raises:
            InvalidArgumentError: a head that is not edited, or a `k` out of range.
            NothingToEditError: no head has a positive effect.
        """
        given = isinstance(heads, Iterable)
        wanted = as_sites(heads) if given else _most_effective(heads, k)
        unknown = wanted - set(self.sites)
        if unknown:
            raise InvalidArgumentError(
                f"`heads` must be some of the {len(self.sites)} edited heads; got "
                f"{', '.join(map(str, sorted(unknown)))}."
            )
        index = torch.tensor([i for i, site in enumerate(self.sites) if site in wanted])
        return replace(
            self,
            sites=tuple(self.sites[i] for i in index.tolist()),
            head_maps=self.head_maps.take(index),
            certificates=tuple(self.certificates[i] for i in index.tolist()),
            trust=None if self.trust is None else self.trust.take(index),
        )

    def certify(self, cache: HeadCache, *, confidence: float = 0.95) -> HeldOutCertificate:
        """How many held-out activations that the gate flags are still flagged after the edit.

        Args:
            cache: activations of groups that took no part in the fit, nor in the choice of heads.
            confidence: of the exact binomial bounds, in (0, 1).

        Raises:
            LeakageError: a group of `cache` took part in the fit, be it to train on or to choose on.
            DataError: activations that are not finite.
        """
        _checks.between("confidence", confidence, 0, 1)
        _checks.finite("cache.z", cache.z)
        _checks.disjoint_groups(self.meta.get("seen_groups", ()), cache.group_names, ("the fit", "certification"))
        names, gamma = [str(site) for site in self.sites], self.meta.get("gamma")
        return certificate(names, self.events(cache), cache.groups, gamma=gamma, confidence=confidence)

    def events(self, cache: HeadCache) -> Events:
        """Where each edited head's gate is open on a cache, and where the head still flags after the edit.

        What a trust region keeps from being edited counts as gated and, where the head flags it, as still flagged.
        """
        events = []
        for layer in self.layers:
            z = cache.z[:, layer].double()
            edit = self.displace(z, layer)
            weights = self.scores.weights[layer, edit.heads].double()
            after = (z[:, edit.heads] + edit.displacement) * weights
            flagged = after.sum(-1) + self.scores.biases[layer, edit.heads].double() >= 0
            gated = edit.gated | edit.untrusted
            events.append((gated, flagged & gated))
        return Events(*(torch.cat(parts, dim=1) for parts in zip(*events)))

    def save(self, path: str | Path, *, metrics: Mapping[str, Any] | None = None) -> Path:
        """Write the steering as a folder of safetensors, JSON and a model card; returns its path.

        Args:
            path: of the folder; a steering that stands there is replaced.
            metrics: figures for the card beside those of the detector, such as what `evaluate` measured: numbers, or
                anything JSON can hold.

        Raises:
            ArtefactError: something else stands at `path`.
            InvalidArgumentError: `metrics` are not what JSON can hold.
        """
        steering = self if metrics is None else replace(self, meta=with_metrics(self.meta, metrics))
        return save_parts(steering, path, card=model_card(steering))

    @classmethod
    def load(cls, path: str | Path) -> Steering:
        """Read a steering.

        Raises:
            ArtefactError: the folder is missing, damaged, or no steering.
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
            repo_id: "owner/name"; made where there is none.
            private: of a new repository; None: the owner's default.
            revision: branch; None: the main one.
            metrics: as in `save`.

        Raises:
            ArtefactError: the Hub refuses or cannot be reached.
        """
        with temporary_folder() as folder:
            self.save(folder, metrics=metrics)
            return upload(folder, repo_id, private=private, revision=revision, message=f"Upload {self!r}")

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> Steering:
        """Read a steering from a local folder or the Hugging Face Hub.

        Args:
            name: a folder, or "owner/name".
            revision: on the Hub: a branch, tag or commit.

        Raises:
            ArtefactError: it cannot be had, is damaged, or no steering.
        """
        return cls.load(name if Path(name).is_dir() else download(str(name), revision=revision))

    def fold_into(self, model: nn.Module, *, savable: bool = True) -> None:
        """Change the weights of a plain transformers model so that it makes these edits itself, at every position.

        Exact only where every position is edited: equal to `steer(model, steering, start=0)`, not to `steer` from the
        last prompt token on, which leaves the prompt alone. Afterwards `model.save_pretrained(...)` writes an ordinary
        Hugging Face model. Where the output projection has no bias and one is needed, the configuration's own setting
        for it is switched on.

        Args:
            model: changed in place; nothing is changed where this is refused.
            savable: refuse architectures that have no such bias, whose saved copy would lose it.

        Raises:
            InvalidArgumentError: edits with a gate, a trust region or draws, a bridge, or a bias that cannot be saved.
            UnknownNameError: an architecture whose module paths are not known.
            ModelMismatchError: a model of another shape.
        """
        fold(self, model, savable=savable)

    @cached_property
    def _editors(self) -> dict[tuple[int, torch.device, torch.dtype], LayerEditor]:
        """Constants go to the model's device and precision once, not at every token or prompt."""
        return {}

    def _editor(self, layer: int, like: Tensor) -> LayerEditor:
        key = (layer, like.device, like.dtype)
        if key not in self._editors:
            self._editors[key] = self._made_editor(layer, like)
        return self._editors[key]

    def _made_editor(self, layer: int, like: Tensor) -> LayerEditor:
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


def joined(parts: Sequence[Steering]) -> Steering:
    """Steerings of different heads as one; detector, gate and provenance are the first one's.

    Raises:
        InvalidArgumentError: a head in two of them, or parts that differ in gate, kind of maps or trust region.
    """
    first = parts[0]
    kinds = {(p.gate, p.head_maps.kind, p.trust is None) for p in parts}
    sites = [site for p in parts for site in p.sites]
    if len(kinds) > 1 or len(set(sites)) < len(sites):
        raise InvalidArgumentError(
            "Only steerings of different heads with the same gate, kind of maps and use of a trust region can be "
            f"joined; got {', '.join(map(repr, parts))}."
        )
    order = torch.tensor(sorted(range(len(sites)), key=sites.__getitem__))
    certificates = [certificate for p in parts for certificate in p.certificates]
    trusts = [p.trust for p in parts if p.trust is not None]
    return replace(
        first,
        sites=tuple(sorted(sites)),
        head_maps=type(first.head_maps).joined([p.head_maps for p in parts]).take(order),
        certificates=tuple(certificates[i] for i in order.tolist()),
        trust=TrustRegion.joined(trusts).take(order) if trusts else None,
        meta={**first.meta, "seen_groups": sorted({g for p in parts for g in p.meta.get("seen_groups", ())})},
    )


def _from(start: Int[Tensor, " batch"]) -> Window:
    def window(z: Tensor) -> Tensor:
        if start.shape != (z.shape[0],):
            raise InvalidArgumentError(
                f"`start` needs one position for each of the {z.shape[0]} rows; got shape {tuple(start.shape)}."
            )
        return torch.arange(z.shape[1], device=z.device) >= start.to(z.device)[:, None]

    return window


def _most_effective(effects: RankedHeads, k: str | int) -> set[HeadSite]:
    order = effects.estimated.argsort(descending=True)
    positive = effects.estimated[order].clamp_min(0)
    if not bool((positive > 0).any()):
        raise NothingToEditError("No edited head has a positive effect: there is nothing to select.")
    if isinstance(k, str):
        _checks.choice("k", k, ("auto",))
        share = positive.cumsum(0) / positive.sum()
        k = int((share < 0.9).sum()) + 1
    _checks.whole("k", k, 1, len(effects.sites))
    return {effects.sites[i] for i in order[:k].tolist()}
