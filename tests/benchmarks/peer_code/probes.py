"""Linear probes and erasure on the same activations: scikit-learn and concept-erasure beside ours.

One activation for each statement (its last token), every head for itself. Questions are divided once: three quarters to
fit on, which each library divides further as it likes, and a quarter to measure on. Means are over all heads, and
intervals are percentiles of a bootstrap over the held-out questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import radiant_lens as rl

# Weights `head d_head` and biases `head` of flattened heads.
Scores = tuple[np.ndarray, np.ndarray]


def activations(cache: rl.HeadCache) -> np.ndarray:
    """`example head d_head`, heads of all layers one after the other."""
    return cache.z.flatten(1, 2).double().numpy()


def sklearn_scores(cache: rl.HeadCache, make: Callable[[], Any]) -> Scores:
    """A probe of standardised activations for each head."""
    z, y = activations(cache), cache.labels.numpy()
    weights, biases = np.empty(z.shape[1:]), np.empty(z.shape[1])
    for head in range(z.shape[1]):
        scaler, probe = StandardScaler(), make()
        probe.fit(scaler.fit_transform(z[:, head]), y)
        probe = getattr(probe, "best_estimator_", probe)
        weights[head] = probe.coef_[0] / scaler.scale_
        biases[head] = probe.intercept_[0] - weights[head] @ scaler.mean_
    return weights, biases


def logistic(cache: rl.HeadCache) -> Scores:
    return sklearn_scores(cache, lambda: LogisticRegression(class_weight="balanced", max_iter=1000))


def logistic_cv(cache: rl.HeadCache) -> Scores:
    """The penalty of each head by cross-validation over questions."""
    z, y = activations(cache)[:, 0], cache.labels.numpy()
    folds = list(GroupKFold(3).split(z, y, cache.groups.numpy()))
    penalties = {"C": (0.001, 0.01, 0.1)}
    plain = LogisticRegression(class_weight="balanced", max_iter=1000)
    return sklearn_scores(cache, lambda: GridSearchCV(plain, penalties, scoring="roc_auc", cv=folds))


def risk_aware(cache: rl.HeadCache) -> Scores:
    detector = rl.RiskAwareDetector().fit(cache)
    return detector.weights_.flatten(0, 1).double().numpy(), detector.biases_.flatten().double().numpy()


# Takes ten times as long as the others, so it is timed once.
CROSS_VALIDATED = "scikit-learn, penalty by `GridSearchCV`"
PROBES = {
    "`rl.RiskAwareDetector`": risk_aware,
    "scikit-learn `LogisticRegression`": logistic,
    CROSS_VALIDATED: logistic_cv,
}


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every column of `scores`, with weighted examples; ties count half."""
    order = np.argsort(scores, axis=0, kind="stable")
    ranked = np.take_along_axis(scores, order, 0)
    positive, negative = (weights * labels)[order], (weights * (1 - labels))[order]
    below = np.cumsum(negative, 0)
    # Within a tie every positive counts the negatives before the tie, and half of those in it.
    first = np.ones_like(ranked, dtype=bool)
    first[1:] = ranked[1:] != ranked[:-1]
    place = np.arange(len(ranked))[:, None]
    starts = np.maximum.accumulate(np.where(first, place, 0), 0)
    last = np.roll(first, -1, 0)
    last[-1] = True
    ends = np.minimum.accumulate(np.where(last, place, len(ranked))[::-1], 0)[::-1]
    before = np.take_along_axis(below - negative, starts, 0)
    wins = positive * (before + np.take_along_axis(below, ends, 0)) / 2
    return wins.sum(0) / (positive.sum(0) * negative.sum(0))


def error(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the false positive and the false negative rate of every column, flagged from 0 on."""
    wrong = (scores >= 0) != (labels == 1)[:, None]
    rates = [(weights * (labels == c)) @ wrong / (weights * (labels == c)).sum() for c in (0, 1)]
    return (rates[0] + rates[1]) / 2


Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def with_interval(measure: Measure, scores: np.ndarray, cache: rl.HeadCache, n_draws: int = 300) -> list[float]:
    """Mean over heads, and a 95% interval over the questions."""
    labels, groups = cache.labels.numpy(), cache.groups.numpy()
    n_groups = int(groups.max()) + 1
    random = np.random.default_rng(0)
    draws = [np.bincount(random.integers(0, n_groups, n_groups), minlength=n_groups) for _ in range(n_draws)]
    means = [float(measure(scores, labels, draw[groups].astype(float)).mean()) for draw in draws]
    middle = float(measure(scores, labels, np.ones(len(labels))).mean())
    return [middle, *map(float, np.nanpercentile(means, [2.5, 97.5]))]


def project(scores: Scores, z: np.ndarray) -> np.ndarray:
    return np.einsum("nhd,hd->nh", z, scores[0]) + scores[1]


def compare_probes(train: rl.HeadCache, test: rl.HeadCache, n_turns: int) -> dict[str, Any]:
    """Held-out AUROC and error of every probe, and seconds for all heads."""
    seconds: dict[str, list[float]] = {name: [] for name in PROBES}
    fitted: dict[str, Scores] = {}
    for turn in range(n_turns):
        for name, fit in PROBES.items():
            if turn and name == CROSS_VALIDATED:
                continue
            begin = time.process_time()
            fitted[name] = fit(train)
            seconds[name].append(time.process_time() - begin)
    held_out = {name: project(scores, activations(test)) for name, scores in fitted.items()}
    return {
        name: {
            "seconds": seconds[name],
            "auroc": with_interval(auroc, scores, test),
            "error": with_interval(error, scores, test),
        }
        for name, scores in held_out.items()
    }


def accuracy_after(erase: Callable[[np.ndarray], np.ndarray], train: rl.HeadCache, test: rl.HeadCache) -> list[float]:
    """Held-out balanced accuracy of probes that are fitted on erased activations, with its interval."""
    z, labels = erase(activations(train)), train.labels.numpy()
    held_out, scores = erase(activations(test)), np.empty((len(test), z.shape[1]))
    for head in range(z.shape[1]):
        probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        scores[:, head] = probe.fit(z[:, head], labels).decision_function(held_out[:, head])
    middle, low, high = with_interval(error, scores, test)
    return [1 - middle, 1 - high, 1 - low]


def compare_erasure(train: rl.HeadCache, test: rl.HeadCache, n_turns: int) -> dict[str, Any]:
    """Maps of concept-erasure and of `rl.LEACEPolicy`: seconds, difference, and what can be read afterwards."""
    from concept_erasure import LeaceEraser

    detector = rl.RiskAwareDetector().fit(train)
    theirs, ours = [], []
    for _ in range(n_turns):
        begin = time.process_time()
        z, labels = train.z.flatten(1, 2).double(), train.labels.double()[:, None]
        erasers = [LeaceEraser.fit(head, labels) for head in z.unbind(1)]
        theirs.append(time.process_time() - begin)
        begin = time.process_time()
        steering = rl.LEACEPolicy(heads="all").fit(train, detector)
        ours.append(time.process_time() - begin)

    def their_map(values: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(values)
        return torch.stack([eraser(head) for eraser, head in zip(erasers, tensor.unbind(1))], 1).numpy()

    def our_map(values: np.ndarray) -> np.ndarray:
        maps = steering.maps().values()
        heads = torch.from_numpy(values).unbind(1)
        return torch.stack([head @ m.G.double().T + m.g.double() for m, head in zip(maps, heads)], 1).numpy()

    held_out = activations(test)
    expected = their_map(held_out)
    difference = np.abs(our_map(held_out) - expected).max() / np.abs(expected).max()
    return {
        "before": accuracy_after(lambda z: z, train, test),
        "concept-erasure": {"seconds": theirs, "accuracy": accuracy_after(their_map, train, test)},
        "`rl.LEACEPolicy`": {"seconds": ours, "accuracy": accuracy_after(our_map, train, test)},
        "difference": float(difference),
    }


def compare(model: str, data: str, n_turns: int, n_groups: int = 200) -> dict[str, Any]:
    """Both comparisons, on one collection of activations."""
    bridge = rl.load_model(model)
    chosen = rl.load_dataset(data)
    chosen = chosen.sample(min(n_groups, len(chosen.groups)))
    caches = [rl.collect(bridge, part, positions="last") for part in chosen.split((0.75, 0.25))]
    sizes = {"examples": [len(cache) for cache in caches], "groups": [len(set(c.group_names)) for c in caches]}
    n_heads = caches[0].n_layers * caches[0].n_heads
    return {
        "sizes": {**sizes, "heads": n_heads, "d_head": caches[0].z.shape[-1], "data": data},
        "probes": compare_probes(*caches, n_turns),
        "erasure": compare_erasure(*caches, n_turns),
    }
