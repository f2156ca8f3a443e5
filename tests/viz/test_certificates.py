"""Shares still flagged against gamma."""

from __future__ import annotations

import pytest

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError

GAMMAS = (0.3, 0.05)


@pytest.fixture(scope="module")
def certificates(gaussian_cache):
    detector = rl.RiskAwareDetector().fit(gaussian_cache(80), gaussian_cache(80, seed=1))
    held_out = gaussian_cache(80, seed=2)
    return {
        tail: [
            rl.RadiantPolicy(gamma=gamma, tail=tail, heads=[(0, 2)]).fit(gaussian_cache(80), detector).certify(held_out)
            for gamma in GAMMAS
        ]
        for tail in ("gaussian", "cantelli")
    }


def test_each_curve_shows_what_its_certificates_count(certificates):
    figure = rl.viz.still_flagged(certificates)
    assert [trace.name for trace in figure.data] == ["gaussian", "cantelli", "nominal: as many as gamma"]
    for members, trace in zip(certificates.values(), figure.data):
        assert list(trace.x) == sorted(GAMMAS)
        shares = {c.gamma: c.overall.token_share for c in members}
        assert list(trace.y) == [shares[gamma].value for gamma in trace.x]
        ends = [y + up for y, up in zip(trace.y, trace.error_y.array)]
        assert ends == pytest.approx([shares[gamma].high for gamma in trace.x])
    assert list(figure.data[-1].x) == list(figure.data[-1].y) == sorted(GAMMAS)
    assert figure.layout.yaxis.rangemode == "tozero"


def test_bad_input_is_refused(certificates, gaussian_cache):
    with pytest.raises(InvalidArgumentError, match="`certificates` must be a Mapping"):
        rl.viz.still_flagged([])
    with pytest.raises(InvalidArgumentError, match="`certificates` must hold at least one curve; got none"):
        rl.viz.still_flagged({})
    with pytest.raises(InvalidArgumentError, match=r"certificates\['a'\] must hold at least one certificate"):
        rl.viz.still_flagged({"a": []})
    with pytest.raises(InvalidArgumentError, match="must be a list"):
        rl.viz.still_flagged({"a": certificates["gaussian"][0]})
    detector = rl.RiskAwareDetector().fit(gaussian_cache(80), gaussian_cache(80, seed=1))
    shift = rl.ITIPolicy(n_heads=2).fit(gaussian_cache(80), detector).certify(gaussian_cache(80, seed=2))
    with pytest.raises(InvalidArgumentError, match=r"certificates\['ITI'\] must be of fits that have a gamma"):
        rl.viz.still_flagged({"ITI": [shift]})
