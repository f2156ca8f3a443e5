"""The risk-aware detector of one head as a scikit-learn classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import ClassifierTags, Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from sklearn.utils.validation import validate_data as _validate_data

from radiant_lens import _checks
from radiant_lens.detectors.scores import LOSSES, Sample, fit_heads

# scikit-learn's annotations say `str`, for the option of leaving an argument out.
validate_data: Any = _validate_data


class RiskAwareClassifier(ClassifierMixin, BaseEstimator):
    """Linear classifier that minimises `FPR + fnr_weight * FNR`, for any features.

    The larger of the two class labels counts as undesirable.

    Args:
        fnr_weight: weight of a miss against a false alarm, positive.
        loss: "risk", "cross_entropy", "mass_mean" or "lda".
        l2: penalty on the weights of standardised features, at least 0.
        max_iterations: of the quasi-Newton method, at least 1.

    Attributes:
        coef_, intercept_: the score, `1 feature` and `1`.
        classes_: both labels, sorted.

    Example:
        >>> import numpy as np
        >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> RiskAwareClassifier().fit(X, [0, 0, 1, 1]).predict(X).tolist()
        [0, 0, 1, 1]
    """

    def __init__(
        self, fnr_weight: float = 1.0, loss: str = "risk", *, l2: float = 1e-3, max_iterations: int = 20
    ) -> None:
        self.fnr_weight = fnr_weight
        self.loss = loss
        self.l2 = l2
        self.max_iterations = max_iterations

    def fit(self, X: ArrayLike, y: ArrayLike) -> RiskAwareClassifier:
        """Fit on features `X`, axes `example feature`, and labels `y` of two classes."""
        _checks.between("fnr_weight", self.fnr_weight, 0)
        _checks.choice("loss", self.loss, LOSSES)
        _checks.between("l2", self.l2, 0, closed="low")
        _checks.whole("max_iterations", self.max_iterations, 1)
        features, targets = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(targets)
        self.classes_, codes = np.unique(targets, return_inverse=True)
        if len(self.classes_) != 2:
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {_kind(len(self.classes_))}: "
                f"two classes are needed; got {len(self.classes_)} class(es)."
            )
        # One head; the sample that stops the fit is the training data itself, as scikit-learn has no second one.
        sample = Sample(torch.tensor(features)[None], torch.tensor(codes))
        scores = fit_heads(
            sample,
            loss=self.loss,
            fnr_weight=self.fnr_weight,
            stop=sample,
            l2=self.l2,
            max_iterations=self.max_iterations,
        )
        self.coef_, self.intercept_ = scores.weights.numpy(), scores.biases.numpy()
        return self

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Compute the score of each example; at or above 0 it is undesirable."""
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=np.float64) @ self.coef_[0] + self.intercept_[0]

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predict the label of each example."""
        codes = (self.decision_function(X) >= 0).astype(int)
        return self.classes_[codes]

    def __sklearn_tags__(self) -> Tags:
        """Declare to scikit-learn that there are two classes only."""
        tags: Tags = super().__sklearn_tags__()
        tags.classifier_tags = ClassifierTags(multi_class=False)
        return tags


def _kind(n_classes: int) -> str:
    return "multiclass" if n_classes > 2 else "a single class"
