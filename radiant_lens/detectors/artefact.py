"""The file format of a detector: a folder of safetensors and JSON, written where a fit ends without a steering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from radiant_lens import _checks
from radiant_lens._files import load_folder, save_folder
from radiant_lens.detectors.detector import RiskAwareDetector, require_fitted
from radiant_lens.errors import ArtefactError, InvalidArgumentError, RadiantError

KIND = "detector"
# Attributes of a fitted detector by their type. The axes of tensors are checked against those of the weights.
_TENSORS = {
    "weights_": "layer head d_head",
    **dict.fromkeys(
        ("biases_", "head_fpr_", "head_fnr_", "head_risk_", "head_constant_", "head_p_value_", "head_significant_"),
        "layer head",
    ),
    **dict.fromkeys(
        ("vote_thresholds_", "vote_certified_", "vote_fpr_", "vote_fnr_", "vote_risk_", "layer_risk_"), "layer"
    ),
}
# Those of a detector without joint scores are None, and not in the file. Files of the first joint scores have no ramps,
# and later ones no carry: their scores do not depend on the layer below.
_JOINT_TENSORS = {
    "joint_weights_": "layer head d_head",
    **dict.fromkeys(("joint_biases_", "joint_carry_", "joint_fpr_", "joint_fnr_"), "layer"),
}
_RAMPS = {"joint_ramps_": "layer start_end_size"}
_NUMBERS = {"least_p_value_": float, "n_groups_": int, "groups_needed_": int, "best_layer_": int}
_TUPLES = {"training_groups_": str, "validation_groups_": str, "collected_layers_": int}


def save_detector(detector: RiskAwareDetector, path: str | Path) -> Path:
    """Write a fitted detector with all its figures as a folder; returns its path.

    Raises:
        NotFittedError: before `fit`.
        ArtefactError: `path` exists and is not a saved detector.
        OutputError: the folder cannot be written.
    """
    require_fitted(detector)
    names = _TENSORS | (_JOINT_TENSORS if detector.joint_weights_ is not None else {})
    names |= _RAMPS if detector.joint_ramps_ is not None else {}
    tensors = {name: getattr(detector, name) for name in names}
    fitted = {name: getattr(detector, name) for name in (*_NUMBERS, *_TUPLES)}
    return save_folder(path, KIND, tensors, {"parameters": detector.get_params(), "fitted": fitted})


def load_detector(path: str | Path) -> RiskAwareDetector:
    """Read a detector that `save_detector` wrote.

    Raises:
        ArtefactError: the folder is missing, damaged, or not a detector.
    """
    tensors, meta = load_folder(path, KIND)
    try:
        return _restored(tensors, meta)
    except (KeyError, TypeError, AttributeError, RadiantError) as error:
        raise ArtefactError(f"The saved detector at {str(path)!r} is incomplete: {error}.") from error


def _restored(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> RiskAwareDetector:
    detector, fitted = RiskAwareDetector(**meta["parameters"]), meta["fitted"]
    _checks.shape("weights_", tensors["weights_"], (None, None, None), _TENSORS["weights_"])
    lengths: dict[str, int] = dict(zip(("layer", "head", "d_head"), tensors["weights_"].shape), start_end_size=3)
    for name in _JOINT_TENSORS | _RAMPS:
        setattr(detector, name, None)
    joint = _JOINT_TENSORS if "joint_weights_" in tensors else {}
    if joint:
        tensors = {"joint_carry_": torch.zeros_like(tensors["joint_biases_"]), **tensors}
    ramps = _RAMPS if joint and "joint_ramps_" in tensors else {}
    for name, axes in (_TENSORS | joint | ramps).items():
        _checks.shape(name, tensors[name], tuple(lengths[axis] for axis in axes.split()), axes)
        setattr(detector, name, tensors[name])
    # Risks of layers that were not collected are infinite; scores never are.
    for name in ("weights_", "biases_", "joint_weights_", "joint_biases_", "joint_carry_", "joint_ramps_"):
        if name in tensors:
            _checks.finite(name, tensors[name])
    if joint and bool(tensors["joint_carry_"][0]):
        raise InvalidArgumentError("`joint_carry_` of layer 0 must be 0, as it has no layer below")
    if detector.joint_ramps_ is not None:
        start, end, size = detector.joint_ramps_.unbind(1)
        if not bool(((end > start) & (size > 0)).all()):
            raise InvalidArgumentError("`joint_ramps_` must rise, with a positive size, in every layer")
    for name, kind in _NUMBERS.items():
        _checks.instance(name, fitted[name], (int, float) if kind is float else kind)
        setattr(detector, name, fitted[name])
    for name, kind in _TUPLES.items():
        _checks.each(name, fitted[name], kind)
        setattr(detector, name, tuple(fitted[name]))
    return detector
