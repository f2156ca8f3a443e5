"""Curves of detectors over their threshold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from sklearn.metrics import auc, roc_curve
from torch import Tensor

from radiant_lens import _checks


class RocCurve(NamedTuple):
    """Shares of desirable (`fpr`) and of undesirable examples (`tpr`) flagged at each threshold, and the area."""

    fpr: Float[Tensor, " point"]
    tpr: Float[Tensor, " point"]
    area: float


def roc(scores: Float[Tensor, " example"], labels: Int[Tensor, " example"]) -> RocCurve:
    """Compute the receiver operating characteristic of one head's scores, at its corners only.

    Raises:
        DataError: scores that are not finite, or no example of a class.

    Example:
        >>> roc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])).area
        0.75
    """
    _checks.finite("scores", scores)
    _checks.both_classes(labels, "`labels`")
    fpr, tpr, _ = roc_curve(labels.numpy(), scores.double().numpy())
    return RocCurve(torch.as_tensor(fpr), torch.as_tensor(tpr), float(auc(fpr, tpr)))
