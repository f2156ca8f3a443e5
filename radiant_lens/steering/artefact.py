"""The file format of a steering: a folder of safetensors and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._files import load_folder, save_folder
from radiant_lens.errors import ArtefactError, InvalidArgumentError, RadiantError
from radiant_lens.sites import HeadSite, checked_sites, hook_name
from radiant_lens.steering.display import steering_card, steering_table
from radiant_lens.steering.gates import GATES, HeadScores, RunningScore, TrustRegion, require_joint
from radiant_lens.steering.maps import MAP_KINDS, Certificate, EvidenceMaps, HeadMaps

_KIND = "steering"


@dataclass(frozen=True, eq=False)
class SteeringParts:
    """All that is saved of a steering; `Steering` documents the fields."""

    sites: tuple[HeadSite, ...]
    head_maps: HeadMaps
    scores: HeadScores
    gate: str
    certificates: tuple[Certificate, ...]
    trust: TrustRegion | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse the gate "joint", and maps that need it, without joint scores."""
        require_joint(self.gate, self.scores.joint is not None, evidence=self.head_maps.needs_joint)

    @property
    def needs_joint(self) -> bool:
        """True where the edits depend on the joint scores of layers."""
        return self.gate == "joint" or self.head_maps.needs_joint

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have an edited head."""
        return tuple(sorted({site.layer for site in self.sites}))

    @property
    def hooked_layers(self) -> tuple[int, ...]:
        """Layers that need a hook: those with an edited head, and those below whose joint scores these take up."""
        return self.scores.hooked(self.layers, joint=self.needs_joint)

    def joint_scores(self, z: Float[Tensor, "*batch layer head d_head"]) -> Float[Tensor, "*batch layer"] | None:
        """The joint scores of all layers; None where edits do not depend on scores of other layers."""
        joint, depends = self.scores.joint, self.scores.hand_over(self.layers, joint=self.needs_joint)
        return joint(z) if joint is not None and depends else None

    def running_score(self) -> RunningScore | None:
        """The score that the hooks of one pass hand on; None where edits do not depend on layers below."""
        depends = self.scores.hand_over(self.layers, joint=self.needs_joint)
        return RunningScore(self.layers[-1]) if depends else None

    @property
    def hook_site(self) -> str:
        """Name of the edited hook point, with `{layer}` for the layer."""
        return hook_name("{layer}")

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each edited head: `layer`, `head`, and its certificate of the fit (see `Certificate`)."""
        return steering_table(self)

    def _repr_html_(self) -> str:
        return steering_card(self)


def save_parts(steering: SteeringParts, path: str | Path, *, card: str) -> Path:
    """Write a steering and its model card as a folder at `path`."""
    scores = steering.scores
    tensors = {f"map.{name}": value for name, value in steering.head_maps.tensors().items()}
    tensors |= {f"scores.{name}": value for name, value in scores.tensors().items()}
    if steering.trust is not None:
        tensors |= {f"trust.{name}": value for name, value in steering.trust.tensors().items()}
    meta = {
        "sites": [list(site) for site in steering.sites],
        "hook": steering.hook_site,
        "map_kind": steering.head_maps.kind,
        "gate": steering.gate,
        "certificates": [asdict(certificate) for certificate in steering.certificates],
        "meta": steering.meta,
    }
    return save_folder(path, _KIND, tensors, meta, card=card)


def load_parts(path: str | Path) -> dict[str, Any]:
    """Read the fields of `SteeringParts` by their names.

    Raises:
        ArtefactError: the folder is missing, damaged, or not a steering.
    """
    tensors, meta = _load(path)
    try:
        return _fields(tensors, meta)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, RadiantError) as error:
        raise ArtefactError(f"The saved steering at {str(path)!r} is incomplete: {error}.") from error


def _load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return load_folder(path, _KIND)
    except ArtefactError as error:
        # Asked only afterwards: `load_folder` also finds a folder that was set aside when a process was killed.
        if Path(path).exists():
            raise
        raise ArtefactError(
            f"There is no folder {str(path)!r} with a saved steering: check the path (`steering.save(path)` wrote it), "
            'or use `Steering.from_pretrained("owner/name")` for one on the Hugging Face Hub.'
        ) from error


def _fields(tensors: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, Any]:
    """The fields of a steering, checked: a file may come from anywhere."""
    maps, of_scores, of_trust = (_with_prefix(tensors, prefix) for prefix in ("map.", "scores.", "trust."))
    scores = HeadScores.from_tensors(of_scores)
    _checks.shape("weights", scores.weights, (None, None, None), "layer head d_head")
    n_layers, n_heads, d_head = scores.weights.shape
    _checks.shape("biases", scores.biases, (n_layers, n_heads), "layer head")
    _checks.shape("thresholds", scores.thresholds, (n_layers,), "layer")
    if scores.joint is not None:
        _checks.shape("joint_weights", scores.joint.weights, (n_layers, n_heads, d_head), "layer head d_head")
        for name in ("biases", "carry"):
            _checks.shape(f"joint_{name}", getattr(scores.joint, name), (n_layers,), "layer")
        for name in ("weights", "biases", "carry"):
            _checks.finite(f"joint_{name}", getattr(scores.joint, name))
        if bool(scores.joint.carry[0]):
            raise InvalidArgumentError("`joint_carry` of layer 0 must be 0, as it has no layer below")
    _checks.choice("gate", meta["gate"], GATES)
    _checks.choice("map_kind", meta["map_kind"], MAP_KINDS)
    # The first format had no hook, and edited the same one.
    if meta.get("hook", hook_name("{layer}")) != hook_name("{layer}"):
        raise InvalidArgumentError(f"it edits {meta['hook']!r}; this version edits {hook_name('{layer}')!r}")
    sites = checked_sites([tuple(site) for site in meta["sites"]], n_layers, n_heads)
    # A folder comes from anywhere: every shape is compared with that of the scores before it is used.
    head_maps = MAP_KINDS[meta["map_kind"]](**maps)
    trust = TrustRegion(**of_trust) if of_trust else None
    for tensors_of_heads in (head_maps, *([trust] if trust else [])):
        _check_axes(tensors_of_heads, {"site": len(sites), "d_head": d_head})
    if isinstance(head_maps, EvidenceMaps) and not bool((head_maps.steepness > 0).all()):
        raise InvalidArgumentError("`map.steepness` must be positive for every head")
    # Here, so that it counts as a damaged file.
    require_joint(meta["gate"], scores.joint is not None, evidence=head_maps.needs_joint)
    if len(meta["certificates"]) != len(sites):
        raise InvalidArgumentError(f"{len(sites)} heads need as many certificates; got {len(meta['certificates'])}")
    _check_provenance(meta["meta"])
    return {
        "sites": sites,
        "head_maps": head_maps,
        "scores": scores,
        "gate": meta["gate"],
        "certificates": tuple(Certificate(**certificate) for certificate in meta["certificates"]),
        "trust": trust,
        "meta": meta["meta"],
    }


def _check_provenance(meta: Any) -> None:
    """Check the types of the entries that the package reads by name; other entries are free."""
    _checks.instance("meta", meta, dict)
    for name in ("policy", "detector", "model", "metrics", "versions"):
        _checks.instance(name, meta.get(name, {}), dict)
    _checks.each("seen_groups", meta.get("seen_groups", []), str)
    _checks.instance("gamma", meta.get("gamma"), (int, float, type(None)))


def _check_axes(per_head: HeadMaps | TrustRegion, sizes: dict[str, int]) -> None:
    for name, value in per_head.tensors().items():
        axes = per_head.axes[name]
        _checks.shape(name, value, tuple(sizes.get(axis) for axis in axes.split()), axes)
        _checks.finite(name, value)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
