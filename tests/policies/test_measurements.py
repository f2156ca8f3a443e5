"""A least-KL fit that was stopped measures what is missing, and ends where it would have ended."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import ArtefactError, OutputError
from radiant_lens.policies import least_kl
from radiant_lens.policies.measurements import KIND, Measurements, measurement_key

PASSES = ("gain_gradient", "fisher_scores", "measure_kl")
POLICY = rl.LeastKLPolicy(budget=0.01, steps=2, heads="L1H5 L2H0")


class Stop(BaseException):
    """A kill, as far as the fit can tell: nothing after it runs."""


@pytest.fixture(scope="module")
def parts(facts):
    return [replace(part.head(n), contexts=None) for part, n in zip(facts.split((0.8, 0.2), seed=0), (16, 8))]


@pytest.fixture
def passes(monkeypatch):
    """Names of the measurements that are made; `limit` of them are allowed."""
    made: list[str] = []
    limit = [10**9]

    def counted(name, measure):
        def count(*args, **options):
            if len(made) == limit[0]:
                raise Stop
            made.append(name)
            return measure(*args, **options)

        return count

    for name in PASSES:
        monkeypatch.setattr(least_kl, name, counted(name, getattr(least_kl, name)))
    return made, limit


def fit(model, parts, **options):
    policy = options.pop("policy", POLICY)
    return policy.fit(model, parts[0], validation=parts[1], **options)


def shifts(steering):
    return steering.head_maps.tensors()


@pytest.mark.parametrize("stop", [2, 7])
def test_a_fit_that_was_stopped_measures_what_is_missing(model, parts, passes, tmp_path, stop):
    made, limit = passes
    whole = fit(model, parts)
    every = list(made)
    assert len(every) > 10
    made.clear()
    limit[0] = stop
    with pytest.raises(Stop):
        fit(model, parts, out=tmp_path / "m")
    assert made == every[:stop]
    made.clear()
    limit[0] = 10**9
    again = fit(model, parts, out=tmp_path / "m")
    assert made == every[stop:]
    assert again.meta == whole.meta
    for name, tensor in shifts(whole).items():
        assert torch.equal(tensor, shifts(again)[name])
    made.clear()
    fit(model, parts, out=tmp_path / "m")
    assert made == []


@pytest.mark.parametrize(
    "change",
    [
        {"policy": replace(POLICY, seed=1)},
        {"policy": replace(POLICY, n_draws=1)},
        {"policy": replace(POLICY, heads="L1H5")},
        {"max_tokens": 200},
    ],
)
def test_nothing_of_another_fit_is_taken(model, parts, passes, tmp_path, change):
    made, _ = passes
    fit(model, parts, out=tmp_path / "m", policy=replace(POLICY, steps=1))
    made.clear()
    options = {"policy": POLICY, **change}
    fit(model, parts, out=tmp_path / "m", **{**options, "policy": replace(options["policy"], steps=1)})
    assert made.count("fisher_scores") == 3


def test_other_texts_are_measured_and_a_larger_budget_needs_no_scores(model, parts, passes, tmp_path):
    made, _ = passes
    one = replace(POLICY, steps=1)
    fit(model, parts, out=tmp_path / "m", policy=one)
    made.clear()
    fit(model, parts, out=tmp_path / "m", policy=replace(one, budget=0.02))
    assert set(made) == {"measure_kl"}
    made.clear()
    fit(model, [parts[0].head(12), parts[1]], out=tmp_path / "m", policy=one)
    assert made.count("gain_gradient") == 2


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(model, parts, passes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        fit(model, parts, out=tmp_path / "file" / "m")
    assert passes[0] == []


def test_a_damaged_measurement_is_named(tmp_path):
    measurements = Measurements(tmp_path)
    assert measurements.number(lambda: 1.5, "KL") == 1.5
    assert measurements.number(lambda: pytest.fail("measured again"), "KL") == 1.5
    path = tmp_path / measurement_key((), "KL")
    (path / "tensors.safetensors").write_bytes(b"half of it")
    with pytest.raises(ArtefactError, match=f"The saved {KIND} at .* is damaged"):
        measurements.number(lambda: 1.5, "KL")


def test_keys_tell_inputs_apart():
    keys = [
        measurement_key("a", "bc"),
        measurement_key("ab", "c"),
        measurement_key(torch.zeros(2)),
        measurement_key(torch.zeros(2).double()),
        measurement_key(torch.zeros(2, 1)),
        measurement_key(torch.ones(2)),
    ]
    assert len(set(keys)) == len(keys)
    assert measurement_key(torch.zeros(2)) == measurement_key(torch.zeros(2))
