"""Joint scores of layers: what they gain over single heads, their thresholds, and the gate that opens on them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression

import radiant_lens as rl
from radiant_lens._files import load_folder, save_folder
from radiant_lens.analysis.restored import restored_detector
from radiant_lens.capture.run import steering_digest
from radiant_lens.detectors import load_detector, save_detector
from radiant_lens.detectors.joint import _STARTS, _ramp, _threshold
from radiant_lens.errors import ArtefactError, InvalidArgumentError
from radiant_lens.policies.evidence import by_evidence
from radiant_lens.policies.fisher import _gate_hash
from radiant_lens.studies import Arm


def spread_cache(n: int, seed: int = 0) -> rl.HeadCache:
    """Classes that differ a little in every head of layer 1, and not at all in layer 0; one group for each text."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    z = torch.randn(n, 2, 6, 4, generator=generator)
    z[:, 1, :, 0] += 0.8 * labels[:, None]
    names = tuple(f"group {seed}-{i}" for i in range(n))
    return rl.HeadCache(z, labels, torch.arange(n), torch.zeros(n, dtype=torch.long), names, names)


@pytest.fixture(scope="module")
def fitted() -> rl.RiskAwareDetector:
    return rl.RiskAwareDetector(joint=True).fit(spread_cache(1500), spread_cache(800, seed=1))


def worth(fpr, fnr):
    return (1 - fnr) / fpr.sqrt()


def test_a_layer_is_worth_more_than_its_best_head(fitted):
    new = spread_cache(4000, seed=2)
    flags, wrong = fitted.joint_flags(new), new.labels == 0
    fpr, tpr = flags[wrong].double().mean(0), flags[~wrong].double().mean(0)
    best_head = worth(fitted.head_fpr_[1], fitted.head_fnr_[1]).max()
    assert tpr[1] / fpr[1].sqrt() > 1.5 * best_head
    # What it reports of itself is what new examples show.
    assert abs(fitted.joint_fpr_[1] - fpr[1]) < 0.05 and abs(1 - fitted.joint_fnr_[1] - tpr[1]) < 0.1
    # Chance: nothing is gained in the layer without a difference.
    assert abs(tpr[0] - fpr[0]) < 0.05


def test_the_direction_is_that_of_logistic_regression(fitted):
    train = spread_cache(1500)
    x = train.z[:, 1].flatten(1)
    model = LogisticRegression(C=1e3).fit(x, train.labels)
    reference = torch.tensor(model.coef_[0], dtype=torch.float32)
    assert torch.cosine_similarity(reference, fitted.joint_weights_[1].flatten(), dim=0) > 0.99


def test_the_threshold_is_where_hits_over_the_root_of_false_alarms_are_most():
    generator = torch.Generator().manual_seed(0)
    undesirable = torch.rand(400, generator=generator) < 0.4
    scores = torch.randn(400, generator=generator) + 1.2 * undesirable
    alarms = scores[~undesirable]

    def at(value: float) -> float:
        fpr = float((alarms >= value).double().mean())
        return float((scores[undesirable] >= value).double().mean()) / fpr**0.5 if fpr >= 0.01 else 0.0

    chosen = float(_threshold(scores, undesirable))
    assert at(chosen) == max(map(at, scores.tolist()))


def test_layers_that_were_not_collected_never_flag():
    def partial(cache: rl.HeadCache) -> rl.HeadCache:
        z = cache.z.clone()
        z[:, 0] = 0
        return replace(cache, z=z, meta={"layers": [1]})

    detector = rl.RiskAwareDetector(joint=True).fit(partial(spread_cache(400)), partial(spread_cache(400, seed=1)))
    flags = detector.joint_flags(spread_cache(100, seed=2))
    assert not flags[:, 0].any() and flags[:, 1].any()
    assert detector.joint_fpr_.isnan().tolist() == [True, False]


def test_a_detector_without_joint_scores_says_how_to_get_them():
    cache = spread_cache(400)
    detector = rl.RiskAwareDetector().fit(cache, spread_cache(400, seed=1))
    assert detector.joint_weights_ is None and detector.joint_fpr_ is None
    with pytest.raises(InvalidArgumentError, match=r"RiskAwareDetector\(joint=True\)"):
        detector.joint_flags(cache)
    with pytest.raises(InvalidArgumentError, match=r"`gate` 'joint' needs joint scores .*\(joint=True\)"):
        rl.MeanShiftPolicy(heads="all", gate="joint").fit(cache, detector)
    with pytest.raises(InvalidArgumentError, match="`joint` must be"):
        rl.RiskAwareDetector(joint="yes").fit(cache)


def test_a_refit_without_joint_scores_has_none(fitted):
    detector = rl.RiskAwareDetector(joint=True).fit(spread_cache(400), spread_cache(400, seed=1))
    detector.set_params(joint=False).fit(spread_cache(400), spread_cache(400, seed=1))
    assert detector.joint_biases_ is None and detector.joint_fnr_ is None


def test_the_gate_is_refused_before_any_work_where_there_are_no_joint_scores(monkeypatch, model, facts):
    monkeypatch.setattr("radiant_lens.studies.fitting.prepare", lambda *a, **o: pytest.fail("the data were collected"))
    with pytest.raises(InvalidArgumentError, match="`gate` 'joint' needs joint scores"):
        rl.fit(model, facts, rl.MeanShiftPolicy(gate="joint"), detector=rl.RiskAwareDetector())
    with pytest.raises(InvalidArgumentError, match="`gate` 'joint' needs joint scores"):
        Arm("a", "mean_shift", {"gate": "joint"}, detector={"joint": False}).check()
    Arm("a", "mean_shift", {"gate": "joint"}).check()
    plain = rl.RiskAwareDetector().fit(spread_cache(400), spread_cache(400, seed=1))
    steering = rl.MeanShiftPolicy(heads="all", gate="head").fit(spread_cache(400), plain)
    with pytest.raises(InvalidArgumentError, match="`gate` 'joint' needs joint scores"):
        replace(steering, gate="joint")


def test_hashes_depend_on_joint_scores_where_the_gate_asks_for_them(fitted):
    other = copy.copy(fitted)
    other.joint_weights_ = fitted.joint_weights_ + 1
    for gate, differs in (("joint", True), ("head", False), ("layer", False)):
        assert (_gate_hash(gate, fitted) != _gate_hash(gate, other)) == differs
        one, two = (rl.MeanShiftPolicy(heads="all", gate=gate).fit(spread_cache(300), d) for d in (fitted, other))
        # The same maps: the gate decides alone.
        assert (steering_digest(one) != steering_digest(replace(one, scores=two.scores))) == differs


def test_the_gate_opens_on_the_joint_score_and_comes_back_from_disk(fitted, tmp_path):
    cache, new = spread_cache(1500), spread_cache(300, seed=2)
    steering = rl.MeanShiftPolicy(heads=[(1, 0), (1, 4)], gate="joint").fit(cache, fitted)
    steering.save(tmp_path / "s")
    save_detector(fitted, tmp_path / "d")
    restored = restored_detector(rl.Steering.load(tmp_path / "s"), new)
    flags = fitted.joint_flags(new)
    for detector in (restored, load_detector(tmp_path / "d")):
        assert torch.equal(detector.joint_flags(new), flags)
    loaded = rl.Steering.load(tmp_path / "s")
    assert torch.equal(loaded.displace(new.z[:, 1], 1, loaded.joint_scores(new.z)[:, [1]]).gated, flags[:, [1, 1]])
    assert torch.equal(load_detector(tmp_path / "d").joint_fpr_, fitted.joint_fpr_)


def layered_cache(n: int, seed: int = 0, layers: tuple[int, ...] = (0, 1, 2)) -> rl.HeadCache:
    """Three layers that each tell a little of their own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    z = torch.randn(n, 3, 2, 4, generator=generator)
    z[..., 0] += 0.7 * labels[:, None, None]
    names = tuple(f"group {seed}-{i}" for i in range(n))
    z[:, [layer for layer in range(3) if layer not in layers]] = 0
    numbers = torch.arange(n), torch.zeros(n, dtype=torch.long)
    return rl.HeadCache(z, labels, *numbers, names, names, {"layers": list(layers)})


def test_a_layer_takes_up_what_the_layers_below_have_said():
    detector = rl.RiskAwareDetector(joint=True).fit(layered_cache(3000), layered_cache(2000, seed=1))
    new = layered_cache(4000, seed=2)
    flags, wrong = detector.joint_flags(new), new.labels == 0
    of_layers = worth(flags[wrong].double().mean(0), 1 - flags[~wrong].double().mean(0))
    # Each layer alone would be worth what the first one is.
    assert of_layers[1] > 1.2 * of_layers[0] and of_layers[2] > 1.1 * of_layers[1]
    assert detector.joint_carry_[0] == 0 and bool((detector.joint_carry_[1:] > 0.5).all())
    # One logistic regression of all three layers is what the last one comes to.
    x = layered_cache(3000).z.flatten(1)
    whole = LogisticRegression(C=0.01).fit(x, layered_cache(3000).labels).decision_function(new.z.flatten(1))
    steering = rl.MeanShiftPolicy(heads="all", gate="joint").fit(layered_cache(3000), detector)
    score = steering.joint_scores(new.z)[:, 2]
    assert torch.corrcoef(torch.stack([score, torch.tensor(whole, dtype=score.dtype)]))[0, 1] > 0.99
    assert torch.equal(score >= 0, flags[:, 2])


def test_a_layer_above_one_that_was_not_collected_stands_alone():
    parts = layered_cache(600, layers=(0, 2)), layered_cache(400, seed=1, layers=(0, 2))
    detector = rl.RiskAwareDetector(joint=True).fit(*parts)
    assert not detector.joint_carry_.any()
    assert 0.2 < detector.joint_fpr_[2] + detector.joint_fnr_[2] < 0.9


def test_a_layer_whose_cache_lacks_the_layer_below_has_no_rates_and_no_gate():
    detector = rl.RiskAwareDetector(joint=True).fit(layered_cache(600), layered_cache(400, seed=1))
    part = layered_cache(400, seed=2, layers=(0, 2))
    assert detector.judge(part).joint_fpr_.isnan().tolist() == [False, True, True]
    with pytest.raises(InvalidArgumentError, match="Layer 1 was not collected"):
        rl.MeanShiftPolicy(heads=[(2, 0)], gate="joint").fit(part, detector)
    detector.joint_carry_ = None
    assert detector.joint_flags(part).shape == (400, 3)


def test_old_files_have_scores_of_single_layers(fitted, tmp_path):
    tensors, meta = load_folder(save_detector(fitted, tmp_path / "d"), "detector")
    tensors.pop("joint_carry_")
    save_folder(tmp_path / "old", "detector", tensors, {name: meta[name] for name in meta if name != "sha256"})
    old = load_detector(tmp_path / "old")
    assert not old.joint_carry_.any() and torch.equal(old.joint_weights_, fitted.joint_weights_)


def test_the_threshold_lies_above_alarms_that_no_hit_needs():
    scores = torch.tensor([10.0, *[0.0] * 9, *[5.0] * 10])
    assert 0 < float(_threshold(scores, torch.arange(20) >= 10)) < 5


def test_equal_scores_are_one_step_of_the_threshold():
    """Tokens of a shared prefix have equal activations, in texts of both classes."""
    scores = torch.tensor([2.0] * 60 + [1.0] * 40 + [3.0] * 5)
    undesirable = torch.tensor([True, False] * 50 + [True] * 5)
    # At 2, 30 of 50 alarms and 35 of 55 hits: .82; at 1 all of both: 1.
    assert float(_threshold(scores, undesirable)) < 1
    # All alike: everything flags, and nothing is gained by calling a part of it an alarm.
    assert float(_threshold(torch.ones(30), torch.arange(30) % 3 == 0)) < 1


def test_ranks_share_the_layers(monkeypatch, fitted):
    shares = []

    def in_two_shares(items, work, rank=None):
        shares.append(list(items))
        parts = [work(items[i::2]) for i in range(2)]
        return [parts[i % 2][i // 2] for i in range(len(items))]

    monkeypatch.setattr("radiant_lens.detectors.joint.shared", in_two_shares)
    again = rl.RiskAwareDetector(joint=True).fit(spread_cache(1500), spread_cache(800, seed=1))
    assert shares == [[0, 1]]
    assert torch.equal(again.joint_weights_, fitted.joint_weights_)
    assert torch.equal(again.joint_biases_, fitted.joint_biases_)
    assert torch.equal(again.joint_carry_, fitted.joint_carry_)
    assert torch.equal(again.joint_ramps_, fitted.joint_ramps_)


def test_the_ramp_is_worth_more_than_any_threshold():
    generator = torch.Generator().manual_seed(0)
    undesirable = torch.rand(4000, generator=generator) < 0.4
    scores = torch.randn(4000, generator=generator) + 1.2 * undesirable
    start, end, size = _ramp(scores, undesirable).tolist()
    good, bad = scores[~undesirable], scores[undesirable]
    assert size == pytest.approx(float(((good - start) / (end - start)).clamp(0, 1).square().mean().sqrt()), rel=1e-4)

    def worth(of_good, of_bad):
        return float(of_bad.mean() / of_good.square().mean().sqrt())

    def of_ramp(start, end):
        return worth(*(((values - start) / (end - start)).clamp(0, 1) for values in (good, bad)))

    steps = [worth((good >= at).float(), (bad >= at).float()) for at in good.quantile(torch.linspace(0, 0.99, 100))]
    assert of_ramp(start, end) > max(steps)
    # No other start of the grid is better, each with its own end.
    ends = {float(at): float(bad[bad > at].quantile(0.9)) for at in good.quantile(1 - torch.tensor(_STARTS))}
    assert of_ramp(start, end) > 0.995 * max(of_ramp(*pair) for pair in ends.items())


def test_a_ramp_of_scores_that_say_nothing_is_between_0_and_1():
    assert _ramp(torch.ones(30), torch.arange(30) % 3 == 0).tolist() == [0, 1, 1]


@pytest.mark.parametrize("alarms", [[0.0, 1.0, 2.0], [0.0] * 3 + [1.0] * 30])
def test_every_ramp_has_desirable_examples_on_it(alarms):
    """Else evidence would have no size on desirable text, and look free."""
    scores = torch.tensor([*alarms, *[3.0, 4.0, 5.0] * 10])
    start, end, size = _ramp(scores, torch.arange(len(scores)) >= len(alarms)).tolist()
    assert end > start and size > 0


def test_evidence_on_the_training_data_is_that_on_new_data(monkeypatch):
    """Else displacements by evidence would look cheap to a fit on the data that the detector learned."""

    def size(detector, cache):
        joint = (cache.z[:, 1] * detector.joint_weights_[1]).sum((1, 2)) + detector.joint_biases_[1]
        start, end, _ = detector.joint_ramps_[1]
        of_good = ((joint - start) / (end - start)).clamp(0, 1)[cache.labels == 0]
        return float(of_good.square().mean().sqrt())

    def growth():
        detector = rl.RiskAwareDetector(joint=True).fit(spread_cache(200), spread_cache(800, seed=1))
        return size(detector, spread_cache(4000, seed=2)) / size(detector, spread_cache(200))

    assert growth() < 1.25
    # With the penalty of single heads it is not.
    monkeypatch.setattr("radiant_lens.detectors.joint.L2_FACTOR", 1.0)
    assert growth() > 1.4


def test_ramps_come_back_from_disk_and_old_files_have_none(fitted, tmp_path):
    assert fitted.joint_ramps_.shape == (2, 3) and bool((fitted.joint_ramps_[:, 1] > fitted.joint_ramps_[:, 0]).all())
    assert torch.equal(load_detector(save_detector(fitted, tmp_path / "d")).joint_ramps_, fitted.joint_ramps_)
    old = copy.copy(fitted)
    old.joint_ramps_ = None
    loaded = load_detector(save_detector(old, tmp_path / "old"))
    assert loaded.joint_ramps_ is None and torch.equal(loaded.joint_weights_, fitted.joint_weights_)
    falling = copy.copy(fitted)
    falling.joint_ramps_ = fitted.joint_ramps_.flip(1)
    with pytest.raises(ArtefactError, match="`joint_ramps_` must rise"):
        load_detector(save_detector(falling, tmp_path / "falling"))
    steering = rl.MeanShiftPolicy(heads="all").fit(spread_cache(300), loaded)
    with pytest.raises(InvalidArgumentError, match="joint scores but no ramps"):
        by_evidence(steering, loaded)
