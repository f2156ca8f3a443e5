"""Studies: controls always in, cells kept and resumed, numbers pooled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.errors import ArtefactError, InvalidArgumentError, UnknownNameError
from radiant_lens.sites import hook_name
from radiant_lens.studies import Arm
from radiant_lens.studies.runner import CellRunner, Sources

SMALL = {"n_groups": 30, "n_samples": 1}
QUICK = {"heads": "layers:1", "detector": {"loss": "lda"}}


def halve(z, hook):
    return 0.5 * z


@pytest.fixture(scope="module")
def study(model, tmp_path_factory):
    """Two seeds, a policy, a baseline, and hooks of one's own."""
    arms = [Arm("RADIANT", **QUICK), Arm("ITI", "iti", {"alpha": 2.5}, **QUICK), Arm("mine", hooks="halved")]
    hooks = {"halved": [(hook_name(layer), halve) for layer in range(4)]}
    return rl.Study("small", arms, model=model, seeds=(0, 1), hooks=hooks, out=tmp_path_factory.mktemp("s"), **SMALL)


@pytest.fixture(scope="module")
def result(study):
    return study.run()


def test_controls_are_always_in(result):
    assert [row.name for row in result.rows] == [
        "no steering",
        "RADIANT",
        "ITI",
        "mine",
        "RADIANT: random direction",
        "RADIANT: shuffled labels",
    ]
    shuffled = result["RADIANT: shuffled labels"]
    assert [len(draws) for draws in shuffled.evaluations.values()] == [3, 3]
    assert result.n_computed == 2 * (1 + 3 + 1 + 3)


def test_controls_edit_the_same_heads(result):
    for seed in (0, 1):
        real, random = (result[name].by_seed[seed] for name in ("RADIANT", "RADIANT: random direction"))
        assert real.settings["heads"] == random.settings["heads"]
        assert 0 < random.metrics["displacement"].value != real.metrics["displacement"].value
        assert random.metrics["edited_share"].value > 0


def test_the_recipe_is_that_of_single_experiments(model, facts):
    """ "effective" is what `studies.effective` keeps, and "recipe" gives other policies the same heads."""
    small = facts.head(45)
    kept = [str(site) for site in studies.effective(studies.prepare(model, small)).steering.sites]
    arms = [Arm("ITI", "iti", heads="recipe"), Arm("RADIANT")]
    study = rl.Study("r", arms, model=model, data=replace(small, bare_prompts=small.bare_prompts[:30]), n_samples=1)
    sources = Sources({study.arms[0].model: model}, {"tiny-facts": small}, {}, (0.6, 0.2, 0.2))
    runner = CellRunner(sources, {})
    iti, radiant = ([str(site) for site in runner.fit(arm, 0).steering.sites] for arm in study.arms)
    assert iti == radiant == kept


def test_a_rerun_computes_nothing_and_gives_the_same(study, result):
    again = study.run()
    assert again.n_computed == 0
    assert again.to_dataframe().equals(result.to_dataframe())
    assert again.to_markdown() == result.to_markdown()


def test_only_what_is_missing_is_computed(study, result):
    cells = sorted((study.out / "cells").iterdir())
    assert len(cells) == result.n_computed
    kept = {path: path.read_text() for path in cells}
    lost = cells[3]
    lost.unlink()
    assert [cell.key for cell in study.missing()] == [lost.stem]
    assert study.run().n_computed == 1
    assert {path: path.read_text() for path in cells} == kept


def test_a_damaged_cell_is_told(study, result):
    path = sorted((study.out / "cells").iterdir())[0]
    good = path.read_text()
    path.write_text(good[: len(good) // 2])
    with pytest.raises(ArtefactError, match=path.name):
        study.run()
    path.write_text(good)


def test_without_a_folder_cells_stay_in_memory(model):
    study = rl.Study("m", [Arm("ablation", "ablation", heads="least_risk:2")], model=model, **SMALL)
    assert study.run().n_computed == 6
    assert study.run().n_computed == 0


def test_the_table_is_tidy(result):
    table = result.to_dataframe()
    assert not table.duplicated(["row", "seed", "metric"]).any()
    radiant = table[(table["row"] == "RADIANT") & (table["seed"] == 1)].set_index("metric")
    assert radiant.loc["correct", "policy"] == "radiant"
    assert radiant.loc["correct", "gate"] == "vote"
    assert radiant.loc["correct", "heads"].startswith("L")
    row, plain = result["RADIANT"].by_seed[1], result["no steering"].by_seed[1]
    found = row.difference(plain, "correct")
    assert radiant.loc["correct", "difference"] == pytest.approx(found.value)
    assert radiant.loc["correct", "p_value"] == pytest.approx(found.p_value)
    assert found.value == pytest.approx(row.metrics["correct"].value - plain.metrics["correct"].value)


def test_pooled_numbers_are_sums_over_sums(result):
    pooled = result.pooled().set_index(["row", "metric"])
    for name in ("RADIANT", "RADIANT: shuffled labels"):
        for metric in ("correct", "kl", "correct/bare"):
            draws = [e for given in result[name].evaluations.values() for e in given]
            parts = [e.parts[e.parts["metric"] == metric] for e in draws]
            expected = sum(p["numerator"].sum() for p in parts) / sum(p["denominator"].sum() for p in parts)
            assert pooled.loc[(name, metric), "value"] == pytest.approx(expected)
    seeds = [e.metrics["correct"].value for e in result["RADIANT"].by_seed.values()]
    line = pooled.loc[("RADIANT", "correct")]
    assert (line["least"], line["largest"]) == (min(seeds), max(seeds))
    # All draws of a shuffle are compared with as many copies of the unsteered answers.
    line = pooled.loc[("RADIANT: shuffled labels", "correct")]
    unsteered = pooled.loc[("no steering", "correct"), "value"]
    assert line["difference"] == pytest.approx(line["value"] - unsteered)


def test_ones_own_hooks_are_what_acts(model, result, study):
    """The row is what the hooks do by themselves; what they edit is not claimed to be known."""
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
    found = rl.evaluate(model, one, fwd_hooks=hooks).metrics["kl"].value
    assert found == pytest.approx(kl / n, rel=1e-3)
    assert rl.evaluate(model, one).metrics["kl"].value == 0


def test_markdown_and_figure_show_what_was_pooled(result):
    text = result.to_markdown()
    pooled = result.pooled().set_index(["row", "metric"])
    value = pooled.loc[("RADIANT", "kl"), "value"]
    line = next(line for line in text.splitlines() if line.startswith("| RADIANT |"))
    assert f"{value:.3f} [" in line
    assert len(text.splitlines()) == 2 + len(result.rows)
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


def test_an_arm_with_nothing_to_edit_is_told_and_equals_no_steering(model):
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
    assert result["transfer"].pooled.settings["pooled"][0]["data"] == "tiny-tone"


SCRIPT = """
import sys
import radiant_lens as rl
from radiant_lens.studies import Arm

arms = [Arm("RADIANT", heads="layers:1", detector={"loss": "lda"})]
study = rl.Study("killed", arms, n_groups=30, n_samples=1, out=sys.argv[1])
result = study.run()
print(result.n_computed)
print(result.to_markdown())
"""


def test_a_study_killed_in_the_middle_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    cells = tmp_path / "a" / "cells"
    first = subprocess.Popen([*command, str(tmp_path / "a")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(cells.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 2 <= len(done) < 6
    for path in done:
        json.loads(path.read_text())
    rerun = subprocess.run([*command, str(tmp_path / "a")], capture_output=True, text=True, check=True).stdout
    n_rerun, table = rerun.split("\n", 1)
    assert int(n_rerun) == 6 - len(done)
    # Never interrupted, and shared among two processes.
    arms = [Arm("RADIANT", heads="layers:1", detector={"loss": "lda"})]
    whole = rl.Study("killed", arms, out=tmp_path / "b", **SMALL).run(n_jobs=2)
    assert whole.n_computed == 6
    assert table.strip() == whole.to_markdown()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert {p.name for p in Path(cells).glob("*.json")} == {p.name for p in (tmp_path / "b" / "cells").glob("*.json")}


def children(pid: int) -> set[int]:
    """Processes that compute cells (the other child keeps account of shared resources)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name in parentheses may hold spaces; the parent is the second field after it.
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return set(found)


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(condition, seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


@pytest.mark.parametrize(
    ("how", "whom", "status"),
    [
        (signal.SIGTERM, "parent", 143),
        (signal.SIGINT, "parent", 130),
        (signal.SIGINT, "all", 130),
        (signal.SIGKILL, "parent", -signal.SIGKILL),
        (signal.SIGKILL, "child", 1),
    ],
    ids=["SIGTERM", "SIGINT", "Ctrl-C", "kill -9", "kill -9 of a child"],
)
def test_no_process_outlives_a_study_that_is_stopped(tmp_path, how, whom, status):
    cells, options = tmp_path / "s" / "cells", "--vary gamma=0.005,0.01,0.05,0.1 --seeds 0,1 --groups 30 --jobs 2"
    command = [sys.executable, "-m", "radiant_lens.cli", "ablate", *options.split(), "--out", str(tmp_path / "s")]
    study = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0)
    assert until(lambda: list(cells.glob("*.json")))
    workers = children(study.pid)
    assert len(workers) == 2 and all(alive(pid) for pid in workers)
    for pid in {"parent": [study.pid], "child": [min(workers)], "all": [study.pid, *workers]}[whom]:
        os.kill(pid, how)
    said = study.communicate(timeout=60)[1]
    assert study.returncode == status
    assert until(lambda: not any(alive(pid) for pid in workers), 20)
    done = list(cells.glob("*.json"))
    assert 1 <= len(done) < 18
    for path in done:
        rl.Evaluation.load(path)
    assert "Traceback" not in said
    if how != signal.SIGKILL:
        assert "what was complete is kept" in said
        assert {p.name for p in cells.iterdir()} == {p.name for p in done}
    if whom == "child":
        assert "One of 2 processes has died, perhaps for want of memory" in said


def test_only_what_has_a_name_can_be_shared_among_processes(study):
    with pytest.raises(InvalidArgumentError, match="`n_jobs` must be 1 where a model is given as an object"):
        study.run(n_jobs=2)


def test_detecting_beside_doing(experiment):
    small = replace(experiment, validation=replace(experiment.validation.head(4), contexts=None))
    found = studies.detecting_and_doing(small)
    assert len(found.table) == 32
    assert found.table["measured"].notna().all()
    first = found.table.iloc[0]
    assert first["risk"] == pytest.approx(
        float(experiment.detector.head_risk_[int(first["layer"]), int(first["head"])])
    )
    correlations = found.correlations()
    assert correlations["estimate"] > 0.8 > correlations["detecting"]
    assert found.plot().data


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_knocking_out_is_replacing_by_hand(model, experiment, kind):
    data = replace(experiment.validation.head(2), contexts=None)
    found = studies.knock_out(experiment, kind=kind, data=data)
    assert len(found.table) == 32
    layout = found.plot().layout
    assert (layout.yaxis.dtick, layout.xaxis.dtick, layout.yaxis.autorange) == (1, 1, "reversed")
    worst = found.to_dataframe().iloc[0]
    layer, head = int(worst["layer"]), int(worst["head"])
    assert abs(worst["effect"]) == found.table["effect"].abs().max()
    by = torch.zeros(()) if kind == "zero" else experiment.train_cache.z[:, layer, head].double().mean(0).float()
    plain = knocked = 0.0
    for prompt in data.prompts:
        for answers, sign in ((prompt.correct_answers, 1), (prompt.incorrect_answers, -1)):
            for answer in answers:
                text = prompt.answered(answer)
                tokens = model.to_tokens(text.text)
                start = model.to_tokens(text.text[: text.answer_start].rstrip()).shape[1] - 1

                def replaced(z, hook, start=start):
                    z = z.clone()
                    z[:, start:, head] = by
                    return z

                weight = sign / len(answers)
                plain += weight * answer_log_prob(model(tokens)[0], tokens[0], start)
                hooked = model.run_with_hooks(tokens, fwd_hooks=[(hook_name(layer), replaced)])
                knocked += weight * answer_log_prob(hooked[0], tokens[0], start)
    assert worst["effect"] == pytest.approx((knocked - plain) / len(data.prompts), rel=1e-3, abs=1e-4)
    drawn = found.plot().data[0]
    assert drawn.z[layer][head] == pytest.approx(worst["effect"])


def answer_log_prob(logits, tokens, start) -> float:
    log_probs = logits.log_softmax(-1)
    return float(sum(log_probs[i, tokens[i + 1]] for i in range(start, len(tokens) - 1)).detach())


def test_knock_out_of_any_metric(experiment):
    few = replace(experiment.validation.head(2), contexts=None)
    named = studies.knock_out(experiment, metric="cross_entropy", data=replace(few, bare_prompts=()))
    own = studies.knock_out(
        experiment, metric=lambda e: e.metrics["cross_entropy"].value, data=replace(few, bare_prompts=())
    )
    assert named.table["effect"].tolist() == pytest.approx(own.table["effect"].tolist())
    assert ((named.table["low"] <= named.table["effect"]) & (named.table["effect"] <= named.table["high"])).all()
    with pytest.raises(UnknownNameError, match="'correkt' is not a known metric"):
        studies.knock_out(experiment, metric="correkt", data=few)
