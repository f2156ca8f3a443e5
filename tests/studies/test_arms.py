"""Arms, grids and head rules: allowed values, and the keys of cells."""

from __future__ import annotations

from dataclasses import replace

import pytest

import radiant_lens as rl
from radiant_lens.errors import DataError, InvalidArgumentError, UnknownNameError
from radiant_lens.policies.heads import HeadRule, choose_heads, parse_heads
from radiant_lens.sites import HeadSite
from radiant_lens.studies import POLICIES, READY, Arm, grid, read_study, ready_studies
from radiant_lens.studies.cells import (
    RANDOM,
    RANDOM_TOTAL,
    arm_settings,
    cell_key,
    data_fingerprint,
    folder_fingerprint,
)


@pytest.mark.parametrize(
    ("rule", "parsed"),
    [
        ("significant", HeadRule("significant")),
        ("layers:2", HeadRule("layers", 2)),
        ("layer:0", HeadRule("layer", 0)),
        ("effective", HeadRule("effective")),
        ("recipe:4", HeadRule("recipe", 4)),
        ("L0H3 L12H7", HeadRule("named", None, (HeadSite(0, 3), HeadSite(12, 7)))),
    ],
)
def test_head_rules(rule, parsed):
    assert parse_heads(rule) == parsed


@pytest.mark.parametrize("rule", ["", "best", "layers", "least_risk:", "least_risk:x", "all:3", "L0H1 x", "layers:-1"])
def test_other_head_rules_are_refused(rule):
    with pytest.raises(InvalidArgumentError, match="`heads` must be 'significant'"):
        parse_heads(rule)


def test_head_rules_choose_heads(gaussian_cache):
    detector = rl.RiskAwareDetector().fit(gaussian_cache(seed=0), gaussian_cache(seed=1))
    risk = detector.head_risk_

    def heads(rule, seed=0):
        return list(choose_heads(detector.set_params(seed=seed), rule))

    assert heads("all") == [(layer, head) for layer in range(2) for head in range(3)]
    assert heads("layer:1") == [(1, 0), (1, 1), (1, 2)]
    assert heads("L1H2 L0H0") == [(0, 0), (1, 2)]
    assert heads("least_risk:1") == [divmod(int(risk.argmin()), 3)]
    assert {layer for layer, _ in heads("layers:1")} == {detector.best_layer_}
    assert len(heads("random:4")) == len(set(heads("random:4"))) == 4
    assert heads("random:4") == heads("random:4")
    assert len({tuple(heads("random:2", seed)) for seed in range(9)}) > 1
    with pytest.raises(InvalidArgumentError, match="`layer` must be a whole number"):
        heads("layer:2")


def test_a_grid_is_the_product_of_its_axes():
    arms = grid(gamma=[0.01, 0.1], gate="vote", loss=["risk", "lda"], heads=["layers:1"])
    assert [arm.name for arm in arms] == [f"gamma={g}, loss={loss}" for g in (0.01, 0.1) for loss in ("risk", "lda")]
    assert [arm.policy_options["gamma"] for arm in arms] == [0.01, 0.01, 0.1, 0.1]
    assert [arm.make_detector(0).loss for arm in arms] == ["risk", "lda"] * 2
    assert {arm.heads for arm in arms} == {"layers:1"}
    assert {arm.make_detector(0).fnr_weight for arm in arms} == {1.0}


def test_an_unknown_axis_is_refused():
    with pytest.raises(UnknownNameError, match="'gama' is not a known axis of a grid: did you mean 'gamma'"):
        grid(gama=[0.1])
    with pytest.raises(UnknownNameError, match="'gamma' is not a known axis"):
        grid(policy="iti", gamma=[0.1])


@pytest.mark.parametrize(
    ("arm", "error", "words"),
    [
        (Arm("a", "magic"), UnknownNameError, "'magic' is not a known policy"),
        (Arm("a", "iti", {"gamma": 0.1}), UnknownNameError, "'gamma' is not a known option of policy 'iti'"),
        (Arm("a", "iti", {"heads": 3}), UnknownNameError, "'heads' is not a known option"),
        (Arm("a", options={"gamma": 0.7}), InvalidArgumentError, "`gamma` must lie strictly between 0 and 0.5"),
        (Arm("a", detector={"lose": "risk"}), UnknownNameError, "did you mean 'loss'"),
        (Arm("a", detector={"loss": "l2"}), InvalidArgumentError, "`loss` must be one of"),
        (Arm("a", heads="best"), InvalidArgumentError, "got 'best'"),
        (Arm("a", few_shot=-1), InvalidArgumentError, "`few_shot` must be a whole number"),
        (Arm("a", hooks="mine"), UnknownNameError, "'mine' is not a known name in the study's `hooks`"),
    ],
)
def test_an_arm_that_cannot_run_is_refused_before_any_work(arm, error, words):
    with pytest.raises(error, match=words):
        rl.Study("s", [arm], model="no/such-model")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": ()}, "at least one arm and one seed"),
        ({"seeds": (1, 1)}, "`seeds` must differ; got '1' more than once"),
        ({"controls": "none"}, "`controls` must be one of 'reference', 'all'"),
        ({"n_shuffles": 1}, "`n_shuffles` must be a whole number of at least 3"),
    ],
)
def test_a_study_that_cannot_run_is_refused(options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        rl.Study("s", [Arm("a")], **options)


def test_two_arms_cannot_share_a_name():
    with pytest.raises(InvalidArgumentError, match="`arms` must differ; got 'a' more than once"):
        rl.Study("s", [Arm("a"), Arm("a", "iti")])


def keys(**changes) -> list[str]:
    return [cell.key for cell in rl.Study("s", **{"arms": [Arm("a")], "n_groups": 60, **changes}).cells()]


def test_a_key_depends_on_every_setting_of_a_cell():
    plain = keys()
    assert plain == keys()
    assert len(set(plain)) == len(plain) == 7
    # The name of the arm and defaults that are written out change nothing.
    assert plain == keys(arms=[Arm("b", options={"gamma": 0.01, "gate": "head"}, detector={"loss": "risk"})])
    for changes in (
        {"seeds": (1,)},
        {"n_samples": 4},
        {"data": "tiny-tone"},
        {"n_groups": 61},
        {"fractions": (0.5, 0.3, 0.2)},
        {"arms": [Arm("a", few_shot=2)]},
    ):
        assert not set(plain) & set(keys(**changes)), changes
    for arm in (
        Arm("a", options={"gamma": 0.006, "gate": "vote"}),
        Arm("a", heads="effective:4"),
        Arm("a", detector={"loss": "lda"}),
        Arm("a", positions="last"),
        Arm("a", "iti"),
    ):
        # All but the unsteered cell differ.
        assert set(plain) & set(keys(arms=[arm])) == {plain[0]}, arm


def test_keys_do_not_depend_on_order():
    assert cell_key({"a": 1, "b": [2]}) == cell_key({"b": [2], "a": 1}) != cell_key({"a": 1, "b": [3]})


def test_fingerprints_see_changes(facts, tmp_path):
    small = facts.head(5)
    assert data_fingerprint(small) == data_fingerprint(facts.head(5)) != data_fingerprint(facts.head(6))
    assert data_fingerprint(small) != data_fingerprint(replace(small, contexts=None))
    (tmp_path / "config.json").write_text("{}")
    before = folder_fingerprint(tmp_path)
    assert before == folder_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert before != folder_fingerprint(tmp_path)


def test_settings_of_every_policy_are_plain():
    for policy in POLICIES:
        assert arm_settings(Arm("a", policy))["options"]["gate"] in ("none", "head", "vote")


@pytest.mark.parametrize("name", READY)
def test_ready_studies_can_be_made(name):
    for study in ready_studies(name, seeds=(0, 1, 2)):
        assert len(study.arms) >= 2
        assert {cell.control for cell in study.cells()} == {
            None,
            "no steering",
            RANDOM,
            RANDOM_TOTAL,
            "shuffled labels",
        }
    with pytest.raises(UnknownNameError, match="did you mean"):
        ready_studies(name + "x")


YAML = """
name: strengths
seeds: [0, 1]
n_groups: 60
arms:
  - {name: RADIANT, options: {gamma: 0.01}}
grid:
  policy: iti
  heads: [least_risk:8, recipe]
  alpha: [1, 2]
"""


def test_a_study_from_yaml(tmp_path):
    (tmp_path / "mine.yaml").write_text(YAML)
    study = read_study(tmp_path / "mine.yaml", seeds=(5,))
    assert (study.name, study.seeds) == ("strengths", (5,))
    assert [arm.name for arm in study.arms][:2] == ["RADIANT", "heads=least_risk:8, alpha=1"]
    assert len(study.arms) == 5


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[1, 2]", DataError, "must hold a mapping; it holds list"),
        ("a: [", DataError, "cannot be read"),
        ("sead: 1", UnknownNameError, "'sead' is not a known key of a study file: did you mean 'seeds'"),
        ("seeds: [0]", InvalidArgumentError, "needs `arms`, `grid`, or both"),
        ("arms: [{policy: iti}]", InvalidArgumentError, "Every arm needs a `name`"),
        ("arms: [{name: a, polic: iti}]", UnknownNameError, "'polic' is not a known key of an arm"),
    ],
)
def test_a_yaml_file_that_is_not_a_study_is_refused(tmp_path, text, error, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(error, match=words):
        read_study(tmp_path / "mine.yaml")
