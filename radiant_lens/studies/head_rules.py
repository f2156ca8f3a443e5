"""Which heads an arm edits, said in a word: "effective", "least_risk:16", "layers:1", "random:4" and others."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from radiant_lens import _checks
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.policies.choosing import choose_heads
from radiant_lens.sites import HeadSite, checked_sites

RULES = ("significant", "all", "layers", "layer", "least_risk", "random", "effective", "recipe")
_NUMBERED = {"layers": 1, "layer": 0, "least_risk": 1, "random": 1}
_SITE = re.compile(r"L(\d+)H(\d+)")


class HeadRule(NamedTuple):
    """A rule and its number; `sites` where the heads are given by name."""

    kind: str
    number: int | None = None
    sites: tuple[HeadSite, ...] = ()


def parse_heads(rule: str) -> HeadRule:
    """Read a rule.

    Args:
        rule: "significant"; "all"; "layers:N" (all heads of the N layers of least mean risk); "layer:I" (all heads of
            layer I); "least_risk:K"; "random:K"; "effective" or "effective:K" (by the effect of this policy's own
            edit; without K those with 90% of it); "recipe" or "recipe:K" (the same by the effect of RADIANT's
            edit, so that other policies act on its heads); or heads by name, as "L0H3 L2H7".

    Raises:
        InvalidArgumentError: anything else.

    Example:
        >>> parse_heads("least_risk:16")
        HeadRule(kind='least_risk', number=16, sites=())
    """
    named = [_SITE.fullmatch(word) for word in rule.split()]
    if named and all(named):
        return HeadRule("named", None, tuple(HeadSite(int(m[1]), int(m[2])) for m in named if m))
    kind, colon, number = rule.partition(":")
    wrong = kind not in RULES or (colon and not number.isdigit()) or (kind in _NUMBERED and not colon)
    if wrong or (colon and kind in ("significant", "all")):
        raise InvalidArgumentError(
            "`heads` must be 'significant', 'all', 'layers:N', 'layer:I', 'least_risk:K', 'random:K', 'effective', "
            f"'effective:K', 'recipe', 'recipe:K', or names such as 'L0H3 L2H7'; got {rule!r}."
        )
    if not colon:
        return HeadRule(kind)
    _checks.whole("heads", int(number), _NUMBERED.get(kind, 1))
    return HeadRule(kind, int(number))


def heads_by_rule(rule: HeadRule, detector: RiskAwareDetector, *, seed: int) -> list[tuple[int, int]]:
    """The heads of a rule that needs the detector alone.

    Raises:
        NothingToEditError: "significant", and no head is.
    """
    n_layers, n_heads = detector.head_risk_.shape
    every = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    if rule.kind == "all":
        return every
    if rule.kind == "named":
        return list(checked_sites(rule.sites, n_layers, n_heads))
    if rule.kind == "layer":
        _checks.whole("layer", rule.number, 0, n_layers - 1)
        return [site for site in every if site[0] == rule.number]
    if rule.kind == "random":
        _checks.whole("heads", rule.number, 1, len(every))
        return sorted(random.Random(seed).sample(every, rule.number or 1))
    if rule.kind == "layers":
        return list(choose_heads(detector, "layer", rule.number or 1))
    return list(choose_heads(detector, rule.number if rule.kind == "least_risk" and rule.number else "significant", 1))
