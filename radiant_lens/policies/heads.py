"""Choices of heads to edit, for policies and for the arms of studies.

A choice of heads is a rule in words, a number, or a list of heads:

- "significant": every head whose risk is below that of flagging all or none, at a false discovery rate of 5%;
- "all"; "layer:I", all heads of layer I; "layers:N", all heads of the N layers of least mean risk; "layer", the same
  with the policy's `n_layers`;
- "least_risk:K", or the number K: the K heads of least validation risk;
- "random:K": K heads drawn with the detector's seed;
- "L0H3 L2H7": heads by name; or pairs `(layer, head)`.

Rules and numbers choose among the layers that the detector was fitted on (`collect(layers=...)`): the zeros of the
others are no activations.

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
from radiant_lens.statistics.significance import LEVEL

HeadChoice = str | int | Sequence[tuple[int, int]]

BY_EFFECT = ("effective", "recipe")
"""Rules that need a model; a policy alone cannot follow them."""

# Least number of each kind of rule; None: the rule takes no number.
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
    """A rule and its number; `sites` holds heads that are listed by name."""

    kind: str
    number: int | None = None
    sites: tuple[HeadSite, ...] = ()


def parse_heads(rule: str) -> HeadRule:
    """Parse a rule in words; the module's docstring lists all of them.

    Raises:
        InvalidArgumentError: an unknown rule.

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
    """Choose heads; the result is sorted.

    Args:
        detector: fitted.
        heads: see the module's docstring.
        n_layers: for "layer" without a number.

    Raises:
        InvalidArgumentError: an unknown choice of heads, a number out of range, a layer that was not collected, or a
            rule that needs a model.
        NothingToEditError: no head is "significant".
    """
    shape = tuple(detector.head_risk_.shape)
    if isinstance(heads, str):
        return checked_sites(_by_rule(parse_heads(heads), detector, n_layers), *shape)
    if isinstance(heads, Iterable):
        return checked_sites(heads, *shape)
    _checks.whole("heads", heads, 1, n_collected_heads(detector))
    return checked_sites(_of_least_risk(detector, heads), *shape)


def heads_of_shape(heads: HeadChoice, n_layers: int, n_heads: int) -> tuple[HeadSite, ...]:
    """The heads of a choice that needs no detector: "all", "layer:I", heads by name, or pairs.

    Raises:
        InvalidArgumentError: another rule, or a head that the model does not have.
    """
    if not isinstance(heads, str):
        if not isinstance(heads, Iterable):
            raise InvalidArgumentError(f"`heads` must be a rule or pairs (layer, head) here; got {heads!r}.")
        return checked_sites(heads, n_layers, n_heads)
    rule = parse_heads(heads)
    every = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    if rule.kind == "named":
        return checked_sites(rule.sites, n_layers, n_heads)
    if rule.kind == "layer" and rule.number is not None:
        _checks.whole("layer", rule.number, 0, n_layers - 1)
        return checked_sites([site for site in every if site[0] == rule.number], n_layers, n_heads)
    if rule.kind != "all":
        raise InvalidArgumentError(
            f"`heads` must be 'all', 'layer:I', names such as 'L0H3 L2H7', or pairs where there is no detector; got "
            f"{heads!r}."
        )
    return checked_sites(every, n_layers, n_heads)


def check_heads(heads: HeadChoice, n_layers: int, n_heads: int) -> None:
    """Refuse a choice that no model of this shape has, before activations are collected.

    Raises:
        InvalidArgumentError: as `choose_heads`.
    """
    if not isinstance(heads, (str, int)):
        checked_sites(heads, n_layers, n_heads)
        return
    rule = parse_heads(heads) if isinstance(heads, str) else HeadRule("least_risk", heads)
    if rule.kind == "named":
        checked_sites(rule.sites, n_layers, n_heads)
    elif rule.kind in BY_EFFECT:
        raise _needs_a_model(rule)
    elif rule.kind in ("least_risk", "random"):
        _checks.whole("heads", rule.number, 1, n_layers * n_heads)
    elif rule.kind == "layer" and rule.number is not None:
        _checks.whole("layer", rule.number, 0, n_layers - 1)
    elif rule.kind == "layers":
        _checks.whole("n_layers", rule.number, 1, n_layers)


def _needs_a_model(rule: HeadRule) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"`heads` {rule.kind!r} needs a model: fit on 'significant' heads, then "
        "`steering.select(head_effects(model, data, steering))`, or use a study."
    )


def _by_rule(rule: HeadRule, detector: RiskAwareDetector, n_layers: int) -> Iterable[tuple[int, int]]:
    layers = detector.collected_layers_
    every = [(layer, head) for layer in layers for head in range(detector.head_risk_.shape[1])]
    if rule.kind in BY_EFFECT:
        raise _needs_a_model(rule)
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
        _checks.whole("layer", number, 0, len(detector.head_risk_) - 1)
        require_collected([number], layers, "the detector's data")
        return [site for site in every if site[0] == number]
    n = number if rule.kind == "layers" else n_layers
    _checks.whole("n_layers", n, 1, len(layers))
    # Layers that were not collected have infinite risk, so they come last, after all that `n` may count.
    best = detector.layer_risk_.argsort(stable=True)[:n].tolist()
    return [site for site in every if site[0] in best]


def n_collected_heads(detector: RiskAwareDetector) -> int:
    """Count the heads of the layers that a detector was fitted on."""
    return len(detector.collected_layers_) * detector.head_risk_.shape[1]


def require_collected(layers: Iterable[int], collected: Sequence[int], where: str) -> None:
    """Refuse layers without activations.

    Raises:
        InvalidArgumentError: a layer that is not among those collected.
    """
    missing = sorted(set(layers) - set(collected))
    if missing:
        raise InvalidArgumentError(
            f"Layer {missing[0]} was not collected: {where} holds layers {list(collected)}. Choose `heads` in these "
            f"layers, or collect layer {missing[0]} too."
        )


def _significant(detector: RiskAwareDetector) -> Iterable[tuple[int, int]]:
    sites: list[tuple[int, int]] = detector.head_significant_.nonzero().tolist()
    if not sites and detector.least_p_value_ > LEVEL:
        raise NothingToEditError(
            f"{detector.n_groups_} validation groups cannot show that a head is significant: the least p-value that "
            f"one head can have is {detector.least_p_value_:.2g}, after correction for the number of heads, above "
            f"{LEVEL:g}. About {detector.groups_needed_} validation groups are enough; `heads` 'all' or a number, such "
            "as 4, needs none."
        )
    if not sites:
        raise NothingToEditError(
            "No head detects better than flagging all or none would: there is nothing to edit. More training "
            "groups, another `fnr_weight`, or `positions` that match where text is generated may help."
        )
    return sites


def _of_least_risk(detector: RiskAwareDetector, n: int) -> Iterable[tuple[int, int]]:
    # Stable, so that ties go to the earlier head on every machine. Infinite risks, of layers that were not collected,
    # come last, after all heads that `n` may count.
    order = detector.head_risk_.flatten().argsort(stable=True)[:n].tolist()
    return [divmod(i, detector.head_risk_.shape[1]) for i in order]
