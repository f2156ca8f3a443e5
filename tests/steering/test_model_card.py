"""The card of a saved steering: what a reader needs to use it, to measure it again, and to understand its numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import radiant_lens as rl
from radiant_lens.steering.model_card import model_card, rounded


@pytest.fixture(scope="module")
def fitted(gaussian_cache):
    detector = rl.RiskAwareDetector().fit(gaussian_cache(80), gaussian_cache(80, seed=1))
    steering = rl.RadiantPolicy(gamma=0.05, heads=[(0, 2), (1, 2)]).fit(gaussian_cache(80), detector)
    return replace(steering, meta={**steering.meta, "data": "facts", "model": {"name": "tiny"}})


def test_rates_of_the_edited_heads_are_a_table(fitted):
    rates = {name: {"fpr": 0.123456, "fnr": 1 / 3, "risk": 0.5} for name in ("L0H2", "L1H2", "L0H0")}
    card = model_card(replace(fitted, meta={**fitted.meta, "metrics": {"detector": rates, "kl": 0.0123456}}))
    assert "| L0H2 | 0.123 | 0.333 | 0.5 |" in card
    assert "| L0H0 |" not in card and "`meta.json` has all 3" in card
    assert '"kl": 0.0123' in card and "0.123456" not in card


def test_settings_are_rounded_and_whole_numbers_stay(fitted):
    policy = {"gamma": 1 / 3, "seed": 123456, "trust": [0.98765, None], "floor": True}
    card = model_card(replace(fitted, meta={**fitted.meta, "policy": policy}))
    settings = json.loads(card.split("## Settings\n\n```json\n")[1].split("```")[0])
    assert settings["policy"] == {"gamma": 0.333, "seed": 123456, "trust": [0.988, None], "floor": True}
    assert rounded(1234.5) == 1230.0 and rounded(12345) == 12345


def test_it_says_how_to_measure_again_where_the_groups_are_known(fitted):
    card = model_card(fitted)
    n = len(fitted.meta["seen_groups"])
    assert f"The fit took {n} groups" in card and 'rl.load_dataset("facts", model=model)' in card
    for code in card.split("```python\n")[1:]:
        compile(code.split("```")[0], "card", "exec")
    unknown = {name: value for name, value in fitted.meta.items() if name != "seen_groups"}
    assert "## Measure it again" not in model_card(replace(fitted, meta=unknown))


def test_words_are_explained(fitted):
    card = model_card(fitted)
    assert "- **kappa**: " in card
    assert "head: an edit wherever the head itself flags the token" in card
