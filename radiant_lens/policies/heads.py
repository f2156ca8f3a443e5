"""Which heads a policy or an arm of a study edits: one language for both.

A choice of heads is a rule in words, a number, or the heads themselves:

- "significant": every head whose detector beats flagging all or none (DESIGN 2.2);
- "all"; "layer:I", all heads of layer I; "layers:N", all heads of the N layers of least mean risk; "layer", the same
  with the policy's `n_layers`;
- "least_risk:K", or the number K: the K heads of least validation risk;
- "random:K": K heads drawn with the detector's seed;
- "L0H3 L2H7": heads by name; or pairs `(layer, head)`.

In a study there are two more, which need a model: "effective" or "effective:K", the heads with most effect under the
arm's own policy, and "recipe" or "recipe:K", the same under RADIANT's policy.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from radiant_lens import _checks
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import InvalidArgumentError, NothingToEditError
from radiant_lens.sites import HeadSite, checked_sites

HeadChoice = str | int | Sequence[tuple[int, int]]

BY_EFFECT = ("effective", "recipe")
"""Rules that need a model; a policy alone cannot follow them."""

# Kind of rule to the least number that it may be given; None: it takes no number.
_LEAST_NUMBER = {
    "significant": None,
    "all": None,
    "layer": 0,
    "layers": 1,
    "least_risk": 1,
    "random": 1,
    "effective": 1,
    "recipe": 1,
}
_NUMBER_REQUIRED = ("layers", "least_risk", "random")
_SITE = re.compile(r"L(\d+)H(\d+)")


class HeadRule(NamedTuple):
    """A rule and its number; `sites` for heads that are given by name."""

    kind: str
    number: int | None = None
    sites: tuple[HeadSite, ...] = ()


def parse_heads(rule: str) -> HeadRule:
    """Parse a rule in words; see the module's docstring for all of them.

    Raises:
        InvalidArgumentError: not a rule.

    Example:
        >>> parse_heads("least_risk:16")
        HeadRule(kind='least_risk', number=16, sites=())
    """
    _checks.instance("heads", rule, str)
    named = [_SITE.fullmatch(word) for word in rule.replace(",", " ").split()]
    if named and all(named):
        return HeadRule("named", None, tuple(HeadSite(int(m[1]), int(m[2])) for m in named if m))
    kind, colon, number = rule.partition(":")
    wrong = kind not in _LEAST_NUMBER or (kind in _NUMBER_REQUIRED and not colon)
    if wrong or (colon and (_LEAST_NUMBER[kind] is None or not number.isdigit())):
        raise InvalidArgumentError(
            "`heads` must be 'significant', 'all', 'layer', 'layer:I', 'layers:N', 'least_risk:K', 'random:K', "
            "'effective', 'effective:K', 'recipe', 'recipe:K', names such as 'L0H3 L2H7', a number, or pairs "
            f"(layer, head); got {rule!r}."
        )
    if not colon:
        return HeadRule(kind)
    _checks.whole("heads", int(number), _LEAST_NUMBER[kind] or 0)
    return HeadRule(kind, int(number))


def choose_heads(detector: RiskAwareDetector, heads: HeadChoice, n_layers: int = 1) -> tuple[HeadSite, ...]:
    """The heads of a choice, sorted.

    Args:
        detector: fitted.
        heads: see the module's docstring.
        n_layers: for "layer" without a number.

    Raises:
        InvalidArgumentError: not a choice of heads, a number out of range, or a rule that needs a model.
        NothingToEditError: "significant", and no head is.
    """
    shape = tuple(detector.head_risk_.shape)
    if isinstance(heads, str):
        return checked_sites(_by_rule(parse_heads(heads), detector, n_layers), *shape)
    if isinstance(heads, Iterable):
        return checked_sites(heads, *shape)
    _checks.whole("heads", heads, 1, shape[0] * shape[1])
    return checked_sites(_of_least_risk(detector, heads), *shape)


def _by_rule(rule: HeadRule, detector: RiskAwareDetector, n_layers: int) -> Iterable[tuple[int, int]]:
    layers, n_heads = detector.head_risk_.shape
    every = [(layer, head) for layer in range(layers) for head in range(n_heads)]
    if rule.kind in BY_EFFECT:
        raise InvalidArgumentError(
            f"`heads` {rule.kind!r} needs a model: fit on 'significant' heads, then "
            "`steering.select(head_effects(model, data, steering))`, or use a study."
        )
    if rule.kind == "named":
        return rule.sites
    if rule.kind == "all":
        return every
    if rule.kind == "significant":
        return _significant(detector)
    if rule.kind in ("least_risk", "random"):
        _checks.whole("heads", rule.number, 1, len(every))
    number = rule.number or 0
    if rule.kind == "least_risk":
        return _of_least_risk(detector, number)
    if rule.kind == "random":
        return random.Random(detector.seed).sample(every, number)
    if rule.kind == "layer" and rule.number is not None:
        _checks.whole("layer", number, 0, layers - 1)
        return [site for site in every if site[0] == number]
    n = number if rule.kind == "layers" else n_layers
    _checks.whole("n_layers", n, 1, layers)
    best = detector.layer_risk_.argsort(stable=True)[:n].tolist()
    return [site for site in every if site[0] in best]


def _significant(detector: RiskAwareDetector) -> Iterable[tuple[int, int]]:
    sites: list[tuple[int, int]] = detector.head_significant_.nonzero().tolist()
    if not sites:
        raise NothingToEditError(
            "No head detects better than flagging all or none would: there is nothing to edit. More training "
            "groups, another `fnr_weight`, or `positions` that match where text is generated may help."
        )
    return sites


def _of_least_risk(detector: RiskAwareDetector, n: int) -> Iterable[tuple[int, int]]:
    order = detector.head_risk_.flatten().argsort(stable=True)[:n].tolist()
    return [divmod(i, detector.head_risk_.shape[1]) for i in order]
