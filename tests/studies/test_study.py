"""Studies: controls in every study, cells kept and resumed, numbers pooled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.errors import ArtefactError, InvalidArgumentError, UnknownNameError
from radiant_lens.sites import hook_name
from radiant_lens.studies import Arm
from radiant_lens.studies.cells import RANDOM, RANDOM_TOTAL
from radiant_lens.studies.runner import CellRunner, Sources

SMALL = {"n_groups": 30, "n_samples": 1}
QUICK = {"heads": "layers:1", "detector": {"loss": "lda"}}


def halve(z, hook):
    return 0.5 * z


@pytest.fixture(scope="module")
def study(model, tmp_path_factory):
    """Two seeds, a policy, a baseline, and the user's own hooks."""
    arms = [Arm("RADIANT", **QUICK), Arm("ITI", "iti", {"alpha": 2.5}, **QUICK), Arm("mine", hooks="halved")]
    hooks = {"halved": [(hook_name(layer), halve) for layer in range(4)]}
    return rl.Study("small", arms, model=model, seeds=(0, 1), hooks=hooks, out=tmp_path_factory.mktemp("s"), **SMALL)


@pytest.fixture(scope="module")
def result(study):
    return study.run()


def test_every_study_has_controls(result):
    assert [row.name for row in result.rows] == [
        "no steering",
        "RADIANT",
        "ITI",
        "mine",
        "RADIANT: random direction",
        "RADIANT: random direction, total covariance",
        "RADIANT: shuffled labels",
    ]
    shuffled = result["RADIANT: shuffled labels"]
    assert [len(draws) for draws in shuffled.evaluations.values()] == [3, 3]
    # Per seed: no steering, three arms, two random directions, three shuffles.
    assert result.n_computed == 2 * (1 + 3 + 2 + 3)


def test_controls_edit_the_same_heads(result):
    for seed in (0, 1):
        real = result["RADIANT"].by_seed[seed]
        for control in ("random direction", "random direction, total covariance"):
            random = result[f"RADIANT: {control}"].by_seed[seed]
            assert real.settings["heads"] == random.settings["heads"]
            assert 0 < random.metrics["displacement"].value != real.metrics["displacement"].value
            assert random.metrics["edited_share"].value > 0


def test_random_directions_are_drawn_from_two_covariances(result):
    one, other = (result[f"RADIANT: {name}"].by_seed[0].settings["policy"] for name in (RANDOM, RANDOM_TOTAL))
    assert (one["metric"], other["metric"]) == ("mahalanobis", "total")


def test_shuffled_labels_are_forced_to_edit(result):
    """A control that edits nothing is the unsteered model."""
    runs = result["RADIANT: shuffled labels"].runs
    assert len(runs) == 6
    assert all(run.metrics["edited_share"].value > 0 and not run.settings["note"] for run in runs)
    # Draws differ: each has a shuffle of its own.
    assert len({run.metrics["displacement"].value for run in runs}) == 6


def test_a_control_that_is_not_forced_may_edit_nothing(experiment, recipe):
    """The twin: where noise flags nothing, the control without force is the identity."""
    # A miss that weighs next to nothing makes "flag nothing" the best detector.
    strict = experiment.with_detector(rl.RiskAwareDetector(fnr_weight=1e-3, loss="lda"))
    cache = experiment.test_cache()
    unforced, forced = (studies.shuffled_labels(strict, recipe.steering, force=force) for force in (False, True))
    assert unforced.meta["policy"]["name"] == "identity"
    for steering, moves in ((unforced, False), (forced, True)):
        site = steering.sites[0]
        z = cache.z[:, site.layer].double()
        assert torch.equal(steering.edit(z, site.layer), z) != moves


@pytest.mark.parametrize(("gate", "forced"), [("vote", "head"), ("layer", "head"), ("head", "head"), ("none", "none")])
def test_forcing_opens_a_gate_and_closes_none(experiment, recipe, gate, forced):
    policy = rl.ITIPolicy(gate=gate)
    assert studies.shuffled_labels(experiment, recipe.steering, policy).gate == forced
    assert studies.shuffled_labels(experiment, recipe.steering, policy, force=False).gate == gate


def test_a_control_that_edits_no_test_position_is_marked(model, monkeypatch):
    def identity(experiment, steering, *arguments, **options):
        return rl.IdentityPolicy(steering).fit(experiment.train_cache, experiment.detector)

    monkeypatch.setattr("radiant_lens.studies.runner.shuffled_labels", identity)
    result = rl.Study("idle", [Arm("RADIANT", **QUICK)], model=model, **SMALL).run()
    assert "| RADIANT: shuffled labels (nothing to edit) |" in result.to_markdown()
    assert "| RADIANT |" in result.to_markdown()


def test_forced_controls_have_keys_of_their_own(model):
    """Cells kept by a version that did not force its shuffled labels are not taken for these."""
    study = rl.Study("k", [Arm("RADIANT", **QUICK)], model=model, **SMALL)
    settings = []

    def record(values):
        settings.append(values)
        return "key"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("radiant_lens.studies.study.cell_key", record)
        study.cells()
    assert [values.get("forced") for values in settings if values["control"] == "shuffled labels"] == [True] * 3
    assert all("forced" not in values for values in settings if values["control"] != "shuffled labels")


def test_a_comparison_pools_the_draws_of_a_control(experiment, recipe):
    few = replace(experiment, test=replace(experiment.test.head(4), contexts=None))
    controls = studies.controls(few, recipe.steering, n_shuffles=2)
    assert [len(draws) if isinstance(draws, list) else 1 for draws in controls.values()] == [2, 1, 1]
    result = studies.compare(few, {studies.UNSTEERED: None, **controls}, n_samples=1, max_new_tokens=2)
    assert [len(row.runs) for row in result.rows] == [1, 2, 1, 1]
    shuffled = result.pooled().set_index(["row", "metric"]).loc[("shuffled labels", "kl")]
    assert shuffled["least"] < shuffled["value"] < shuffled["largest"]
    with pytest.raises(InvalidArgumentError, match="'shuffled labels' has none"):
        studies.compare(few, {"shuffled labels": []})


def test_the_recipe_is_that_of_single_experiments(model, facts):
    """ "effective" is what `studies.effective` keeps, and "recipe" gives other policies the same heads."""
    small = facts.head(45)
    expected = [str(site) for site in studies.effective(studies.prepare(model, small)).steering.sites]
    arms = [Arm("ITI", "iti", heads="recipe"), Arm("RADIANT")]
    study = rl.Study("r", arms, model=model, data=replace(small, bare_prompts=small.bare_prompts[:30]), n_samples=1)
    sources = Sources({study.arms[0].model: model}, {"tiny-facts": small}, {}, (0.6, 0.2, 0.2))
    runner = CellRunner(sources, {})
    iti, radiant = ([str(site) for site in runner.fit(arm, 0).steering.sites] for arm in study.arms)
    assert iti == radiant == expected


def test_a_rerun_computes_nothing_and_gives_the_same(study, result):
    again = study.run()
    assert again.n_computed == 0
    assert again.to_dataframe().equals(result.to_dataframe())
    assert again.to_markdown() == result.to_markdown()


def test_only_what_is_missing_is_computed(study, result):
    cells = sorted((study.out / "cells").iterdir())
    assert len(cells) == result.n_computed
    before = {path: path.read_text() for path in cells}
    lost = cells[3]
    lost.unlink()
    assert [cell.key for cell in study.missing()] == [lost.stem]
    assert study.run().n_computed == 1
    assert {path: path.read_text() for path in cells} == before


def test_a_damaged_cell_is_named(study, result):
    path = sorted((study.out / "cells").iterdir())[0]
    good = path.read_text()
    path.write_text(good[: len(good) // 2])
    with pytest.raises(ArtefactError, match=path.name):
        study.run()
    path.write_text(good)


def test_without_a_folder_cells_stay_in_memory(model):
    study = rl.Study("m", [Arm("ablation", "ablation", heads="least_risk:2")], model=model, **SMALL)
    assert study.run().n_computed == 7
    assert study.run().n_computed == 0


def test_the_table_is_tidy(result):
    table = result.to_dataframe()
    assert not table.duplicated(["row", "seed", "metric"]).any()
    radiant = table[(table["row"] == "RADIANT") & (table["seed"] == 1)].set_index("metric")
    assert radiant.loc["correct", "policy"] == "radiant"
    assert radiant.loc["correct", "gate"] == "head"
    assert radiant.loc["correct", "heads"].startswith("L")
    row, plain = result["RADIANT"].by_seed[1], result["no steering"].by_seed[1]
    difference = row.difference(plain, "correct")
    assert radiant.loc["correct", "difference"] == pytest.approx(difference.value)
    assert radiant.loc["correct", "p_value"] == pytest.approx(difference.p_value)
    assert difference.value == pytest.approx(row.metrics["correct"].value - plain.metrics["correct"].value)


def test_pooled_numbers_are_sums_over_sums(result):
    pooled = result.pooled().set_index(["row", "metric"])
    for name in ("RADIANT", "RADIANT: shuffled labels"):
        for metric in ("correct", "kl", "correct/bare"):
            parts = [e.parts[e.parts["metric"] == metric] for e in result[name].runs]
            expected = sum(p["numerator"].sum() for p in parts) / sum(p["denominator"].sum() for p in parts)
            assert pooled.loc[(name, metric), "value"] == pytest.approx(expected)
    seeds = [e.metrics["correct"].value for e in result["RADIANT"].by_seed.values()]
    line = pooled.loc[("RADIANT", "correct")]
    assert (line["least"], line["largest"]) == (min(seeds), max(seeds))
    # All draws of a shuffle are compared with as many copies of the unsteered answers.
    line = pooled.loc[("RADIANT: shuffled labels", "correct")]
    unsteered = pooled.loc[("no steering", "correct"), "value"]
    assert line["difference"] == pytest.approx(line["value"] - unsteered)


def test_the_users_own_hooks_act(model, result, study):
    """The row is the effect of the hooks alone; the share of positions they edit is unknown."""
    mine = result["mine"]
    test = rl.load_dataset("tiny-facts").head(30).split((0.6, 0.2, 0.2), seed=1)[2]
    with model.hooks(fwd_hooks=[(hook_name(layer), halve) for layer in range(4)]):
        expected = rl.evaluate(model, test, n_samples=1, seed=1)
    assert mine.by_seed[1].table["answer"].tolist() == expected.table["answer"].tolist()
    assert mine.by_seed[1].metrics["kl"].value > 0.01
    assert mine.by_seed[1].metrics["cross_entropy"] == expected.metrics["cross_entropy"]
    assert "edited_share" not in mine.by_seed[1].metrics


def test_kl_under_hooks_is_that_of_a_naive_loop(model, experiment):
    one = replace(experiment.test.head(5), bare_prompts=())
    hooks = [(hook_name(1), halve)]
    statements = [s for s in one.statements if s.label == 0]
    kl, n = 0.0, 0
    for statement in statements:
        tokens = model.to_tokens(statement.text)
        with torch.no_grad():
            plain = model(tokens)[0].log_softmax(-1)
            hooked = model.run_with_hooks(tokens, fwd_hooks=hooks)[0].log_softmax(-1)
        scored = rl.evaluation.score_statements(model, [statement])
        span = range(tokens.shape[1] - 1 - int(scored.n_tokens[0]), tokens.shape[1] - 1)
        kl += sum(float((plain[p].exp() * (plain[p] - hooked[p])).sum()) for p in span)
        n += len(span)
    measured = rl.evaluate(model, one, fwd_hooks=hooks).metrics["kl"].value
    assert measured == pytest.approx(kl / n, rel=1e-3)
    assert rl.evaluate(model, one).metrics["kl"].value == 0


def test_markdown_and_figure_show_pooled_values(result):
    text = result.to_markdown()
    pooled = result.pooled().set_index(["row", "metric"])
    value = pooled.loc[("RADIANT", "kl"), "value"]
    line = next(line for line in text.splitlines() if line.startswith("| RADIANT |"))
    assert f"{value:.3f} [" in line
    table, caption = text.split("\n\n")
    assert len(table.splitlines()) == 2 + len(result.rows)
    assert "given these fits of 2 seeds" in caption
    assert result.to_markdown(["kl"]).splitlines()[0] == "| steering | kl |"
    figure = result.plot()
    drawn = {trace.name: (trace.x[0], trace.y[0]) for trace in figure.data}
    assert drawn["RADIANT"] == (value, pooled.loc[("RADIANT", "correct/after_undesirable"), "value"])
    # Told apart without colour.
    assert len({trace.marker.symbol for trace in figure.data}) == len(result.rows)
    with pytest.raises(UnknownNameError, match="'kll' is not a known metric: did you mean 'kl'"):
        result.plot(x="kll")
    with pytest.raises(UnknownNameError, match="is not a known metric"):
        result.to_markdown(["nonsense"])


def test_an_arm_with_nothing_to_edit_is_marked_and_equals_no_steering(model):
    arm = Arm("strict", detector={"fnr_weight": 1e-6, "loss": "lda"}, heads="significant")
    result = rl.Study("n", [arm], model=model, **SMALL).run()
    assert "(nothing to edit)" in result.to_markdown()
    assert "nothing to edit" in result["strict"].notes[0]
    strict, plain = result["strict"].pooled, result["no steering"].pooled
    assert strict.table["answer"].tolist() == plain.table["answer"].tolist()
    assert np.isnan(strict.metrics["displacement"].value)


def test_transfer_and_few_shot_have_their_own_baselines(model):
    arms = [Arm("transfer", test_data="tiny-tone", **QUICK), Arm("shots", few_shot=2, **QUICK)]
    result = rl.Study("t", arms, model=model, **SMALL).run()
    assert {row.name: row.baseline for row in result.rows if row.name in ("transfer", "shots")} == {
        "transfer": "no steering (tiny-tone)",
        "shots": "no steering (tiny-facts, 2 examples)",
    }
    shots = result["shots"].pooled
    bare = [prompt.text for prompt in shots.prompts if prompt.condition == "bare"]
    assert all(text.count("Q :") == 3 for text in bare)
    assert shots.metrics["correct/bare"].value >= 0.5
    assert result["transfer"].pooled.settings["data"] == "tiny-tone"


def test_models_given_as_objects_stay_in_one_process(study):
    with pytest.raises(InvalidArgumentError, match="`n_jobs` must be 1 where a model is given as an object"):
        study.run(n_jobs=2)
