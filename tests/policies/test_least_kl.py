"""`LeastKLPolicy` on the embedded model: the budget is met where it is measured, and correct answers gain."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from conftest import make_cache

import radiant_lens as rl
from radiant_lens._files import _kind_at
from radiant_lens.analysis.strength import KLCurve
from radiant_lens.detectors.artefact import KIND as DETECTOR
from radiant_lens.detectors.artefact import load_detector, save_detector
from radiant_lens.errors import ConvergenceError, DataError, InvalidArgumentError, LeakageError
from radiant_lens.evaluation import score_choices, score_statements
from radiant_lens.policies import displacements
from radiant_lens.policies.evidence import by_evidence, refit_under_edits, require_refits
from radiant_lens.steering.maps import evidence


@pytest.fixture(scope="module")
def parts(facts):
    """Bare questions, so that a shift has something to move."""
    return [replace(part.head(n), contexts=None) for part, n in zip(facts.split((0.6, 0.2, 0.2), seed=0), (60, 20, 20))]


@pytest.fixture(scope="module")
def fitted(model, parts):
    train, validation, _ = parts
    return rl.LeastKLPolicy(budget=0.01).fit(model, train, validation=validation)


def kl(model, data, steering) -> float:
    scored = score_statements(model, [s for s in data.statements if s.label == 0], steering)
    return float(scored.kl.sum() / scored.n_tokens.sum())


def test_the_budget_is_met_on_validation_text(model, parts, fitted):
    _, validation, test = parts
    (step,) = fitted.meta["least_kl"]["steps"]
    assert kl(model, validation, fitted) == pytest.approx(0.01, rel=0.05)
    assert step["measured_kl"] == pytest.approx(kl(model, validation, fitted), rel=1e-4)
    # From validation text of no other use, not from the texts that the displacements were fitted on.
    assert step["predicted_kl"] == pytest.approx(step["measured_kl"], rel=0.5)
    assert 0.003 < kl(model, test, fitted) < 0.03


def test_correct_answers_gain_on_questions_of_other_groups(model, parts, fitted):
    prompts = parts[2].prompts
    plain, steered = (score_choices(model, prompts, steering)["mc2"] for steering in (None, fitted))
    assert (steered - plain).mean() > 0.02


def test_a_larger_budget_gains_more(model, parts, fitted):
    train, validation, test = parts
    larger = rl.LeastKLPolicy(budget=0.04).fit(model, train, validation=validation)
    one, other = (score_choices(model, test.prompts, steering)["mc2"].mean() for steering in (fitted, larger))
    assert other > one
    assert kl(model, validation, larger) == pytest.approx(0.04, rel=0.05)


def test_several_steps_share_the_budget(model, parts):
    train, validation, _ = parts
    steering = rl.LeastKLPolicy(budget=0.01, steps=2, coupling=0.3).fit(model, train, validation=validation)
    first, second = steering.meta["least_kl"]["steps"]
    assert first["measured_kl"] == pytest.approx(0.005, rel=0.05)
    assert second["measured_kl"] == pytest.approx(0.01, rel=0.05)
    assert second["gain_before"] > first["gain_before"]


def test_a_step_without_a_strength_loses_none_of_those_before_it(model, parts, monkeypatch):
    train, validation, _ = parts
    at = KLCurve.at

    def half_alone(curve, budget):
        if budget == 0.01:
            raise ConvergenceError("No strength.")
        return at(curve, budget)

    monkeypatch.setattr(KLCurve, "at", half_alone)
    policy = rl.LeastKLPolicy(budget=0.01, steps=2, coupling=0.3)
    with pytest.warns(UserWarning, match="Step 2 of 2 is left out: No strength. The steps before it are kept"):
        steering = policy.fit(model, train, validation=validation)
    assert kl(model, validation, steering) == pytest.approx(0.005, rel=0.05)
    assert steering.meta["kl_budget"] == 0.005 and len(steering.meta["least_kl"]["steps"]) == 1
    # Without a step before it there is nothing to keep.
    with pytest.raises(ConvergenceError, match="No strength"):
        rl.LeastKLPolicy(budget=0.01, coupling=0.3).fit(model, train, validation=validation)


def test_it_is_a_steering_like_any_other(model, parts, fitted, tmp_path):
    loaded = rl.Steering.load(fitted.save(tmp_path / "s"))
    assert loaded.meta == fitted.meta
    z = torch.randn(2, 3, model.cfg.n_heads, model.cfg.d_head)
    assert torch.equal(loaded.edit(z, 1), fitted.edit(z, 1))
    assert {len(fitted.sites), len(fitted.certificates)} == {model.cfg.n_layers * model.cfg.n_heads}
    assert all(c.method == "least KL" and c.gap < 1e-8 for c in fitted.certificates)
    with pytest.raises(LeakageError):
        fitted.certify(rl.collect(model, parts[0].head(2)))
    assert "least KL" in repr(fitted)


def test_an_affine_family_moves_each_activation_by_its_own_value(model, parts):
    train, validation, _ = parts
    steering = rl.LeastKLPolicy(budget=0.01, family="affine").fit(model, train, validation=validation)
    assert kl(model, validation, steering) == pytest.approx(0.01, rel=0.05)
    one, other = torch.randn(2, 1, model.cfg.n_heads, model.cfg.d_head)
    assert not torch.allclose(steering.edit(one, 1) - one, steering.edit(other, 1) - other, atol=1e-4)


@pytest.mark.parametrize("gate", ["head", "vote"])
def test_under_a_gate_only_flagged_heads_are_moved(model, experiment, gate):
    policy = rl.LeastKLPolicy(budget=0.01, gate=gate, heads="significant")
    train, validation = experiment.train.head(24), experiment.validation.head(12)
    steering = policy.fit(model, train, validation=validation, detector=experiment.detector)
    assert steering.gate == gate
    assert kl(model, validation, steering) == pytest.approx(0.01, rel=0.05)
    edit = steering.displace(experiment.train_cache.z[:200, steering.layers[0]], steering.layers[0])
    assert bool(edit.gated.any())
    assert not bool(edit.gated.all())
    assert not bool(edit.displacement[~edit.gated].any())


def test_strengths_are_factors_of_another_steering(model, experiment, steering):
    policy = rl.LeastKLPolicy(budget=0.02, family="strength")
    train, validation = experiment.train.head(24), experiment.validation.head(12)
    scaled = policy.fit(model, train, validation=validation, base=steering)
    assert (scaled.sites, scaled.gate) == (steering.sites, steering.gate)
    z = experiment.train_cache.z[:50, steering.layers[0]].double()
    own, base = (s.displace(z, steering.layers[0]) for s in (scaled, steering))
    factors = own.displacement[own.gated] / base.displacement[own.gated]
    assert torch.equal(own.gated, base.gated)
    assert float(factors.std()) > 0
    assert kl(model, validation, scaled) == pytest.approx(0.02, rel=0.05)


def test_with_a_guarantee_the_strength_is_lower(model, parts, fitted):
    train, validation, _ = parts
    safe = rl.LeastKLPolicy(budget=0.01).fit(model, train, validation=validation, guarantee=0.95)
    assert kl(model, validation, safe) < 0.95 * kl(model, validation, fitted)


def test_chosen_heads_alone_are_moved(model, parts):
    train, validation, _ = parts
    steering = rl.LeastKLPolicy(budget=0.001, heads="L1H5 L2H0").fit(model, train, validation=validation)
    assert [str(site) for site in steering.sites] == ["L1H5", "L2H0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "`budget` must lie strictly above 0"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1"),
        ({"coupling": -1.0}, "`coupling` must lie at or above 0"),
        ({"heads": "significant"}, "`heads` must be 'all'"),
        ({"gate": "heads"}, "`gate` must be one of"),
        ({"gate": "head"}, "`gate` 'head' needs a detector"),
        ({"family": "linear"}, "`family` must be one of 'constant', 'affine', 'evidence', 'strength'"),
        ({"family": "strength"}, "`base`, the steering whose maps get strengths"),
    ],
)
def test_refusals_come_before_any_work(model, parts, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        rl.LeastKLPolicy(**options).fit(model, parts[0], validation=parts[1])


def test_data_that_cannot_serve_are_refused(model, parts, monkeypatch):
    train, validation, _ = parts
    with pytest.raises(LeakageError, match="training and validation must not share groups"):
        rl.LeastKLPolicy().fit(model, train, validation=train)
    # Affine displacements need activations, which are collected after these checks.
    monkeypatch.setattr(displacements, "collect", lambda *_, **__: pytest.fail("collected"))
    policy = rl.LeastKLPolicy(family="affine")
    with pytest.raises(DataError, match="no desirable statements"):
        policy.fit(model, train, validation=replace(validation, atoms=()))
    one_sided = replace(train, bare_prompts=tuple(replace(p, incorrect_answers=()) for p in train.bare_prompts))
    with pytest.raises(DataError, match="no gain to differentiate"):
        policy.fit(model, one_sided, validation=validation)


def test_a_head_that_hardly_varies_is_not_followed_to_other_text():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    constant = torch.linspace(-1, 1, 8, dtype=torch.float64)
    # Rounding alone, as of a head that reads the first token on the text of the fit; other text may differ by its size.
    mean, spread = displacements._moments(constant + 1e-5 * noise)
    size = constant.square().mean().sqrt()
    assert torch.allclose(spread, displacements._LEAST_SPREAD * size.expand(8), rtol=1e-3)
    # In units of its own spread other text would lie 200,000 units away.
    assert 60 < float(((-constant - mean) / spread).abs().max()) < 62
    # Heads that vary have their own spread.
    assert torch.allclose(displacements._moments(constant + noise)[1], noise.std(0))


@pytest.fixture(scope="module")
def joint_detector(model, parts):
    caches = [rl.collect(model, part) for part in parts[:2]]
    return rl.RiskAwareDetector(joint=True).fit(caches[0], validation=caches[1])


def test_by_evidence_the_budget_is_met_and_correct_answers_gain(model, parts, joint_detector):
    train, validation, test = parts
    policy = rl.LeastKLPolicy(budget=0.01, family="evidence")
    steering = policy.fit(model, train, validation=validation, detector=joint_detector)
    assert steering.gate == "none" and steering.head_maps.kind == "evidence"
    assert kl(model, validation, steering) == pytest.approx(0.01, rel=0.05)
    plain, steered = (score_choices(model, test.prompts, s)["mc2"] for s in (None, steering))
    assert (steered - plain).mean() > 0.02
    # Both of its vectors are used.
    assert bool(steering.head_maps.shift.any()) and bool(steering.head_maps.slope.any())


def evidence_of(model, steering, data) -> torch.Tensor:
    """Mean evidence of the last layer on undesirable statements, where the layers below it are edited."""
    cache = rl.collect(model, [s for s in data.statements if s.label == 1], steering=steering)
    maps, last = steering.head_maps, model.cfg.n_layers - 1
    at = [i for i, site in enumerate(steering.sites) if site.layer == last]
    return evidence(steering.joint_scores(cache.z)[:, [last]], maps.start[at], maps.steepness[at]).mean()


def test_edits_do_not_hide_what_the_layers_above_must_find(model, parts, joint_detector):
    train, validation, test = parts
    steerings = []
    for refits in (0, 1):
        policy = rl.LeastKLPolicy(budget=0.01, family="evidence", refits=refits)
        steerings.append(policy.fit(model, train, validation=validation, detector=joint_detector))
        assert kl(model, validation, steerings[-1]) == pytest.approx(0.01, rel=0.05)
    left = []
    for steering in steerings:
        unsteered, edited = (evidence_of(model, steering.scaled(c), test) for c in (1e-6, 4.0))
        left.append(float(edited / unsteered))
    assert left[1] > 1.5 * left[0]
    # Nor do they make evidence.
    assert left[1] < 1.3


def test_a_refit_needs_both_classes_before_anything_is_measured(model, parts, joint_detector):
    train, validation, _ = parts
    desirable = replace(validation, atoms=tuple(s for s in validation.atoms if s.label == 0), contexts=None)
    policy = rl.LeastKLPolicy(budget=0.01, family="evidence", refits=1)
    with pytest.raises(DataError, match=r"`validation` has 0 groups with undesirable statements; .*refits=0"):
        policy.fit(model, train, validation=desirable, detector=joint_detector)
    steering = replace(policy, refits=0).fit(model, train, validation=desirable, detector=joint_detector)
    assert kl(model, desirable, steering) == pytest.approx(0.01, rel=0.05)
    with pytest.raises(InvalidArgumentError, match="`refits` must be"):
        replace(policy, refits=-1).fit(model, train, validation=validation, detector=joint_detector)


def no_strength_at(monkeypatch, number: int) -> None:
    """The search for a strength of this number, counted from 1, finds none."""
    numbers, at = itertools.count(1), KLCurve.at

    def search(curve, budget):
        if next(numbers) == number:
            raise ConvergenceError("No strength.")
        return at(curve, budget)

    monkeypatch.setattr(KLCurve, "at", search)


def test_a_refit_without_a_strength_keeps_the_steering_before_it(model, parts, joint_detector, monkeypatch):
    train, validation, _ = parts
    no_strength_at(monkeypatch, 2)
    policy = rl.LeastKLPolicy(budget=0.01, family="evidence", refits=1)
    with pytest.warns(
        UserWarning, match=r"Refit 1 of 1 is left out: No strength\. The steering before it is kept"
    ) as seen:
        steering = policy.fit(model, train, validation=validation, detector=joint_detector)
    assert seen[0].filename == __file__
    assert kl(model, validation, steering) == pytest.approx(0.01, rel=0.05)
    assert steering.meta["policy"]["refits"] == 0


def test_a_refit_that_uses_less_of_the_budget_is_left_out(model, parts, joint_detector, monkeypatch):
    train, validation, _ = parts
    no_strength_at(monkeypatch, 4)
    policy = rl.LeastKLPolicy(budget=0.02, family="evidence", steps=2, refits=1)
    with pytest.warns(UserWarning, match="is left out") as seen:
        steering = policy.fit(model, train, validation=validation, detector=joint_detector)
    assert "Refit 1 of 1 is left out: its last step has no strength" in str(seen[-1].message)
    assert kl(model, validation, steering) == pytest.approx(0.02, rel=0.05)
    assert steering.meta["kl_budget"] == 0.02


def test_refits_go_on_and_keep_a_promise(model, parts, joint_detector):
    train, validation, _ = parts
    policy = rl.LeastKLPolicy(budget=0.01, family="evidence", refits=2, n_draws=1)
    steering = policy.fit(model, train, validation=validation, detector=joint_detector, guarantee=0.9)
    assert steering.meta["policy"]["refits"] == 2
    assert kl(model, validation, steering) < 0.0097


def test_a_refitted_detector_is_kept_with_what_was_measured(model, parts, joint_detector, tmp_path, monkeypatch):
    train, validation, _ = parts
    policy = rl.LeastKLPolicy(budget=0.01, family="evidence", refits=1, n_draws=1)

    def fit(**options):
        return policy.fit(model, train, validation=validation, detector=joint_detector, out=tmp_path / "m", **options)

    first = fit()
    unsharpened = rl.vector_steering(model, {"L1H0": torch.ones(model.cfg.d_head)}, detector=joint_detector)
    refitted = refit_under_edits(model, joint_detector, unsharpened, train, validation, out=tmp_path / "n")
    bare = replace(train.prompts[0], group="a group without statements")
    kept = [load_detector(path) for path in (tmp_path / "m").iterdir() if _kind_at(path) == DETECTOR]
    assert len(kept) == 1 and not torch.equal(kept[0].joint_weights_, joint_detector.joint_weights_)
    with monkeypatch.context() as patched:
        patched.setattr("radiant_lens.policies.evidence.collect", lambda *_, **__: pytest.fail("collected"))
        again = fit()
        assert again.meta == first.meta
        for name, tensor in first.head_maps.tensors().items():
            assert torch.equal(tensor, again.head_maps.tensors()[name])
        # Of another fit nothing is taken.
        with pytest.raises(pytest.fail.Exception, match="collected"):
            fit(max_tokens=200)
        # A detector that was written and read is the same one.
        stored = load_detector(save_detector(joint_detector, tmp_path / "first"))
        same = refit_under_edits(model, stored, unsharpened, train, validation, out=tmp_path / "n")
        assert torch.equal(same.joint_weights_, refitted.joint_weights_)
        for other in (replace(train, on_long="cut"), replace(train, bare_prompts=(*train.bare_prompts, bare))):
            with pytest.raises(pytest.fail.Exception, match="collected"):
                refit_under_edits(model, joint_detector, unsharpened, other, validation, out=tmp_path / "n")
        with pytest.raises(pytest.fail.Exception, match="collected"):
            gated = replace(unsharpened, gate="joint")
            refit_under_edits(model, joint_detector, gated, train, validation, out=tmp_path / "n")


def test_what_is_fitted_under_edits_is_checked_before_any_pass(model, parts, joint_detector, monkeypatch):
    train, validation, _ = parts
    steering = by_evidence(rl.vector_steering(model, {"L1H0": torch.ones(model.cfg.d_head)}), joint_detector)
    monkeypatch.setattr("radiant_lens.policies.evidence.collect", None)
    plain = rl.RiskAwareDetector().fit(*(rl.collect(model, part) for part in parts[:2]))
    other = rl.RiskAwareDetector(joint=True).fit(make_cache(60))
    loose = copy.copy(joint_detector)
    loose.l2 = 0.0
    for detector, given, data, error, words in (
        (plain, steering, (train, validation), InvalidArgumentError, "needs joint scores"),
        (loose, steering, (train, validation), InvalidArgumentError, r"`detector\.l2` must lie strictly above 0"),
        (other, steering, (train, validation), InvalidArgumentError, "`detector` is for"),
        (joint_detector, "strong", (train, validation), InvalidArgumentError, "`steering` must be"),
        (joint_detector, steering, (list(train.statements), validation), InvalidArgumentError, "`train` must be"),
        (joint_detector, steering, (train, train), LeakageError, "share"),
        (joint_detector, steering, (train.head(1), validation), DataError, "`train` has 1 group with"),
    ):
        with pytest.raises(error, match=words):
            refit_under_edits(model, detector, given, *data)


def test_either_half_of_the_validation_groups_must_have_both_classes(parts, joint_detector):
    train, validation, _ = parts
    labels = dict(zip(sorted(validation.groups), [(0,), (0,), (0,), (1,), (0, 1)]))
    atoms = tuple(s for s in validation.atoms if s.label in labels.get(s.group, ()))
    few = replace(validation, atoms=atoms, bare_prompts=(), contexts=None)

    def refusal(seed: int) -> str:
        detector = copy.copy(joint_detector)
        detector.seed = seed
        try:
            require_refits(detector, train, few)
        except DataError as error:
            return str(error)
        return ""

    refusals = [refusal(seed) for seed in range(20)]
    assert "" in refusals
    assert any(f"seed {seed} has statements of one class alone" in text for seed, text in enumerate(refusals))


def test_evidence_needs_a_detector_that_has_it(model, parts, joint_detector):
    policy = rl.LeastKLPolicy(family="evidence")
    with pytest.raises(InvalidArgumentError, match='"evidence" needs a detector'):
        policy.fit(model, parts[0], validation=parts[1])
    plain = rl.RiskAwareDetector().fit(*(rl.collect(model, part) for part in parts[:2]))
    with pytest.raises(InvalidArgumentError, match=r"needs joint scores .*\(joint=True\)"):
        policy.fit(model, parts[0], validation=parts[1], detector=plain)
    with pytest.raises(InvalidArgumentError, match=r"needs joint scores .*\(joint=True\)"):
        rl.fit(model, parts[0], policy, detector=rl.RiskAwareDetector())


def test_vectors_by_evidence_are_the_same_vectors_by_token(model, parts, joint_detector):
    cache = rl.collect(model, parts[0])
    shift = rl.MeanShiftPolicy(heads="all").fit(cache, joint_detector)
    graded = by_evidence(shift, joint_detector)
    joint = graded.joint_scores(cache.z)[:, [1]]
    moved, whole = (s.displace(cache.z[:, 1], 1, joint).displacement for s in (graded, shift))
    share = (moved * whole).sum(-1) / whole.square().sum(-1)
    torch.testing.assert_close(moved, share[..., None] * whole)
    assert float(share.min()) == 0 and float(share.max()) == pytest.approx(1)
    of_class = [share[cache.labels == label].mean() for label in (0, 1)]
    assert of_class[1] > 1.2 * of_class[0]
    with pytest.raises(InvalidArgumentError, match="add one vector to each head"):
        by_evidence(rl.RadiantPolicy(heads="all").fit(cache, joint_detector), joint_detector)
    # Of the detector, too: a certificate on them would be void.
    vector = rl.vector_steering(model, {"L1H0": torch.ones(model.cfg.d_head)})
    assert set(joint_detector.validation_groups_) <= set(by_evidence(vector, joint_detector).meta["seen_groups"])
    other = rl.RiskAwareDetector(joint=True).fit(replace(cache, z=cache.z[..., :8]))
    with pytest.raises(InvalidArgumentError, match="`detector` is for .* heads of 8"):
        by_evidence(shift, other)
