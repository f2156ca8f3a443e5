"""`vector_steering`: vectors of one's own at heads, as a steering like any other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import DataError, InvalidArgumentError, NotFittedError
from radiant_lens.sites import hook_name


def activations(model, steering=None, strength=1.0):
    """`hook_z` of layers 0 and 1 after the edits."""
    kept = {}
    hooks = [(hook_name(layer), lambda z, hook, layer=layer: kept.update({layer: z.clone()})) for layer in (0, 1)]
    edits = [] if steering is None else steering.scaled(strength).hooks(start=torch.zeros(1, dtype=torch.long))
    with torch.no_grad(), model.hooks(fwd_hooks=[*edits, *hooks]):
        model(model.to_tokens("Bees make honey."))
    return kept


def test_each_vector_is_added_to_its_head_and_to_no_other(model):
    one, other = torch.randn((2, model.cfg.d_head), generator=torch.Generator().manual_seed(0))
    steering = rl.vector_steering(model, {(1, 2): other, "L0H3": one.tolist()})
    assert [str(site) for site in steering.sites] == ["L0H3", "L1H2"]
    plain, edited = activations(model), activations(model, steering, 0.5)
    expected = torch.zeros_like(plain[0])
    expected[:, :, 3] = 0.5 * one
    torch.testing.assert_close(edited[0] - plain[0], expected, rtol=0, atol=1e-5)
    # Layer 1 also sees what layer 0 has changed; its own edit comes after that.
    kept, layer_0 = {}, steering.scaled(0.5).hooks(start=torch.zeros(1, dtype=torch.long))[0]
    with torch.no_grad(), model.hooks(fwd_hooks=[layer_0, (hook_name(1), lambda z, hook: kept.update(z=z.clone()))]):
        model(model.to_tokens("Bees make honey."))
    expected[:, :, 3] = 0
    expected[:, :, 2] = 0.5 * other
    torch.testing.assert_close(edited[1] - kept["z"], expected, rtol=0, atol=1e-5)


def test_it_is_saved_and_used_like_any_other(model, tmp_path):
    steering = rl.vector_steering(model, {"L0H3": torch.ones(model.cfg.d_head)})
    again = rl.Steering.load(steering.save(tmp_path / "s"))
    assert again.sites == steering.sites and again.meta["policy"]["name"] == "given vectors"
    z = torch.randn((5, model.cfg.n_heads, model.cfg.d_head), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.edit(z, 0), steering.edit(z, 0)) and not torch.equal(again.edit(z, 0), z)
    tokens = model.to_tokens("Bees make honey.")
    with torch.no_grad():
        plain = model(tokens)
        with rl.steer(model, again, strength=5.0):
            assert not torch.allclose(model(tokens), plain)


def test_under_a_gate_it_acts_where_the_head_flags(model, experiment):
    detector = experiment.detector
    steering = rl.vector_steering(model, {"L1H2": torch.ones(model.cfg.d_head)}, gate="head", detector=detector)
    z = 5 * torch.randn((200, model.cfg.n_heads, model.cfg.d_head), generator=torch.Generator().manual_seed(0))
    flagged = (z[:, 2] @ detector.weights_[1, 2].to(z) + detector.biases_[1, 2].to(z)) > 0
    moved = (steering.edit(z, 1) != z).any(-1)
    assert 0 < flagged.sum() < 200
    assert torch.equal(moved[:, 2], flagged) and not moved[:, :2].any()


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({}, "at least one"),
        ([1.0], "must be a Mapping"),
        ({"L0H3": [1.0, 2.0]}, r"L0H3 must have shape"),
        ({"L0H3": "up"}, "L0H3 must be"),
        ({"L0H3": torch.ones(24, dtype=torch.complex64)}, "24 real numbers"),
        ({"L0H3": torch.ones(24, dtype=torch.bool)}, "24 real numbers"),
        ({"L0H99": None}, "`vectors` must have heads of this model as keys.*got 'L0H99'"),
        ({"head": None}, "`vectors` must have heads.*got 'head'"),
        ({"L0H3 L1H2": None}, "`vectors` must have heads.*got 'L0H3 L1H2'"),
        ({3: None}, "`vectors` must have heads.*got 3"),
        ({"L0H3": None, (0, 3): None}, "two for L0H3"),
    ],
    ids=["none", "no heads", "short", "text", "complex", "truth", "unknown head", "no name", "two", "number", "twice"],
)
def test_bad_vectors_are_named(model, vectors, message):
    if isinstance(vectors, dict):
        vectors = {k: torch.ones(model.cfg.d_head) if v is None else v for k, v in vectors.items()}
    with pytest.raises(InvalidArgumentError, match=message):
        rl.vector_steering(model, vectors)


def test_a_vector_must_be_finite(model):
    with pytest.raises(DataError, match="the vector of L0H3"):
        rl.vector_steering(model, {"L0H3": torch.full((model.cfg.d_head,), torch.nan)})


def test_numbers_of_any_kind_are_taken(model):
    numbers = np.arange(24.0)[::-1]
    expected = torch.tensor(numbers.copy())
    for vector in (numbers, numbers.tolist(), expected.to_sparse(), expected.half()):
        steering = rl.vector_steering(model, {"L0H3": vector})
        torch.testing.assert_close(steering.maps()[0, 3].g, expected)


def test_a_detector_must_be_fitted_on_these_heads(model, experiment):
    vectors = {"L0H3": torch.ones(24)}
    with pytest.raises(NotFittedError, match="not fitted yet"):
        rl.vector_steering(model, vectors, gate="head", detector=rl.RiskAwareDetector())
    with pytest.raises(InvalidArgumentError, match="`detector` must be a RiskAwareDetector"):
        rl.vector_steering(model, vectors, gate="head", detector="mine")
    z = experiment.train_cache.z[:, :, :4]
    caches = [
        replace(experiment.train_cache, z=z),
        replace(experiment.validation_cache, z=experiment.validation_cache.z[:, :, :4]),
    ]
    narrow = rl.RiskAwareDetector().fit(caches[0], validation=caches[1])
    with pytest.raises(InvalidArgumentError, match="for 4 layers of 4 heads of 24, and the model has 4 of 8 of 24"):
        rl.vector_steering(model, vectors, gate="head", detector=narrow)


def test_a_gate_is_not_open_where_the_detector_has_seen_nothing(model, experiment):
    train, validation = (rl.collect(model, part, layers=[1]) for part in (experiment.train, experiment.validation))
    detector = rl.RiskAwareDetector().fit(train, validation=validation)
    with pytest.raises(InvalidArgumentError, match="Layer 0 was not collected"):
        rl.vector_steering(model, {"L0H3": torch.ones(24)}, gate="head", detector=detector)
    assert rl.vector_steering(model, {"L0H3": torch.ones(24)}, detector=detector).gate == "none"


def test_a_gate_needs_a_detector(model):
    with pytest.raises(InvalidArgumentError, match="needs a detector"):
        rl.vector_steering(model, {"L0H3": torch.ones(model.cfg.d_head)}, gate="head")
