"""The paper's protocol on real file formats, with a small model of random weights."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.errors import InvalidArgumentError, UnknownNameError
from radiant_lens.studies import PAPER_TABLES, PaperProtocol, kept_evaluations, run_protocol

# Metrics that need no model as judge.
PLAIN = ("correct", "not other")
WORDS = ["toruna", "velika", "dupeka", "river", "food", "flag", "metal", "animal", "capital", "sacred", "color", "of"]


def published(path, questions):
    """A file with the columns that TruthfulQA, and NQ-Open and TriviaQA in its authors' format, are published in."""
    columns = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for question, best, right, wrong in questions:
            writer.writerow(["", "", question, best, right, wrong, "x"])
    return path


@pytest.fixture(scope="module")
def truthfulqa_file(tmp_path_factory):
    rows = [
        (f"what is the {a} {b} ?", f"the {a}", f"the {a}; a {a}", f"no {a}; {b}") for a in WORDS for b in ("one", "two")
    ]
    return published(tmp_path_factory.mktemp("data") / "TruthfulQA.csv", rows)


@pytest.fixture(scope="module")
def truthfulqa(truthfulqa_file):
    return rl.load_dataset("truthfulqa", path=truthfulqa_file)


@pytest.fixture(scope="module")
def random_model(foreign_folder):
    return rl.load_model(foreign_folder)


def test_the_protocol_runs_on_the_published_format(random_model, truthfulqa):
    protocol = PaperProtocol(margin=2.0, n_layers=(1, 2), product=PLAIN, iti_heads=4, iti_alpha=2.0, few_shot=2)
    result = run_protocol(random_model, truthfulqa, protocol, max_new_tokens=4)
    choices = result.choices
    assert choices.groupby(["seed", "fold"])["chosen"].sum().tolist() == [1, 1]
    for _, fold in choices.groupby("fold"):
        assert fold.loc[fold["chosen"], "product"].item() == fold["product"].max()
        assert fold["n_layers"].tolist() == [1, 2]
    # Every question is tested exactly once, and none is both read before a prompt and asked.
    # With few_shot=2, a prompt has two examples and the question itself.
    for evaluation in result.comparison.evaluations.values():
        assert sorted(p.group for p in evaluation.prompts) == sorted(truthfulqa.groups)
        assert all(p.text.count("Q:") == 3 for p in evaluation.prompts)
    assert list(result.comparison.evaluations) == ["no steering", "ITI", "RADIANT"]
    assert "| RADIANT |" in result.to_markdown()


@pytest.fixture
def counted(monkeypatch):
    """The data of each evaluation that is computed; a `limit` interrupts the one after."""
    evaluate, calls = kept_evaluations.evaluate, []

    def count(model, data, *arguments, **options):
        if len(calls) == calls_limit[0]:
            raise KeyboardInterrupt
        calls.append(data)
        return evaluate(model, data, *arguments, **options)

    calls_limit = [None]
    monkeypatch.setattr("radiant_lens.studies.kept_evaluations.evaluate", count)
    return calls, calls_limit


def test_finished_evaluations_are_kept(random_model, truthfulqa, tmp_path, counted):
    calls, limit = counted
    protocol = PaperProtocol(margin=2.0, n_layers=(1,), product=PLAIN, iti_heads=4, iti_alpha=2.0)
    settings = {"max_new_tokens": 2, "judge": "overlap", "out": tmp_path}
    limit[0] = 5
    with pytest.raises(KeyboardInterrupt):
        run_protocol(random_model, truthfulqa, protocol, **settings)
    limit[0] = None
    calls.clear()
    resumed = run_protocol(random_model, truthfulqa, protocol, **settings)
    # In each fold one candidate is judged on validation, then three methods on the other fold: three are missing.
    assert len(calls) == resumed.comparison.n_computed == 3
    whole = run_protocol(random_model, truthfulqa, protocol, **{**settings, "out": None})
    assert resumed.to_markdown() == whole.to_markdown()
    pd.testing.assert_frame_equal(resumed.choices, whole.choices)
    assert run_protocol(random_model, truthfulqa, protocol, **settings).comparison.n_computed == 0


@pytest.mark.parametrize(
    ("changed", "n_computed"),
    [
        ({"seeds": (1,)}, 8),
        ({"max_new_tokens": 3}, 8),
        ({"judge": "exact"}, 8),
        # The unsteered model depends on no fit.
        ({"protocol": PaperProtocol(margin=3.0, n_layers=(1,), product=PLAIN, iti_heads=4, iti_alpha=2.0)}, 6),
    ],
)
def test_evaluations_are_kept_under_all_that_they_depend_on(random_model, truthfulqa, tmp_path, changed, n_computed):
    protocol = PaperProtocol(margin=2.0, n_layers=(1,), product=PLAIN, iti_heads=4, iti_alpha=2.0)
    settings = {"protocol": protocol, "max_new_tokens": 2, "judge": "overlap", "out": tmp_path}
    assert run_protocol(random_model, truthfulqa, **settings).comparison.n_computed == 8
    assert run_protocol(random_model, truthfulqa, **{**settings, **changed}).comparison.n_computed == n_computed


def test_another_model_and_other_data_are_evaluated_anew(random_model, truthfulqa, facts, tmp_path, foreign_folder):
    protocol = PaperProtocol(margin=2.0, n_layers=(1,), product=PLAIN, iti_heads=4, iti_alpha=2.0)
    settings = {"protocol": protocol, "max_new_tokens": 2, "judge": "overlap", "out": tmp_path}
    run_protocol(random_model, truthfulqa, **settings)
    moved = run_protocol(random_model, truthfulqa, **settings, test_data=facts.head(4))
    # Two folds on the same other data: the unsteered model is evaluated there once, and validation is as before.
    assert moved.comparison.n_computed == 5
    other = rl.load_model(foreign_folder)
    with torch.no_grad():
        next(iter(other.original_model.parameters())).add_(0.1)
    assert run_protocol(other, truthfulqa, **settings).comparison.n_computed == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"judge": lambda prompt, answer: "correct"}, "`judge`: finished evaluations are kept under its name"),
        ({"fwd_hooks": [("blocks.0.hook_out", lambda value, hook: value)]}, "`fwd_hooks` are functions"),
    ],
)
def test_what_a_later_run_would_not_know_is_refused_with_a_folder(random_model, truthfulqa, tmp_path, options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        run_protocol(random_model, truthfulqa, out=tmp_path, **options)


def test_the_paper_edits_one_layer_the_better_of_two(random_model, truthfulqa, monkeypatch):
    rules = []

    class Recorded(rl.RiskAwareDetector):
        def fit(self, *caches):
            rules.append(self.vote_rule)
            return super().fit(*caches)

    monkeypatch.setattr("radiant_lens.studies.protocols.RiskAwareDetector", Recorded)
    protocol = PaperProtocol(margin=2.0, product=PLAIN, iti_heads=4, iti_alpha=2.0)
    choices = run_protocol(random_model, truthfulqa, protocol, max_new_tokens=2).choices
    # The authors' code votes by the least FNR.
    assert rules == ["fnr", "fnr"]
    for _, fold in choices.groupby("fold"):
        assert sorted(fold["layers"]) == [[0], [1]]
        assert fold["n_layers"].tolist() == [1, 1]
        assert fold.loc[fold["chosen"], "product"].item() == fold["product"].max()


def test_candidates_are_the_best_ranked_layers_one_at_a_time(gaussian_cache):
    caches = [gaussian_cache(n_layers=4, seed=seed) for seed in (0, 1)]
    detector = rl.RiskAwareDetector(loss="lda").fit(*caches)
    first, second, *_ = detector.layer_risk_.argsort().tolist()
    policies = PaperProtocol().candidates(detector)
    assert [policy.heads for policy in policies] == [f"layer:{first}", f"layer:{second}"]
    assert [{site.layer for site in policy.sites(detector)} for policy in policies] == [{first}, {second}]
    assert {(policy.geometry, policy.gate, policy.margin) for policy in policies} == {("procrustes", "vote", 15.0)}
    # The older protocol, which compares numbers of layers, still loads.
    numbers = PaperProtocol(15.0, 1.0, (1, 2, 3)).candidates(detector)
    assert [len({site.layer for site in policy.sites(detector)}) for policy in numbers] == [1, 2, 3]


def test_transfer_tests_on_the_other_data(random_model, truthfulqa, facts):
    protocol = PaperProtocol(margin=2.0, n_layers=(1,), product=PLAIN, iti_heads=4, iti_alpha=2.0)
    other = facts.head(4)
    # Two folds, each tested on all of the other data.
    result = run_protocol(random_model, truthfulqa, protocol, test_data=other, max_new_tokens=2)
    tested = result.comparison.evaluations["RADIANT"].prompts
    assert tested == other.prompts * 2


@pytest.mark.parametrize("name", ["nq_open-transfer-llama-7b", "trivia_qa-transfer-llama-7b"])
def test_a_transfer_table_tests_on_the_other_questions(random_model, truthfulqa_file, tmp_path, name):
    table = PAPER_TABLES[name]
    small = replace(table.protocol, n_layers=(1,), margin=2.0, iti_heads=4, iti_alpha=2.0, product=PLAIN)
    rows = [(f"who has the {a}", a.upper(), f"{a.upper()}; the {a}", f"no {a}") for a in WORDS[:6]]
    other = published(tmp_path / f"{table.test_data}.csv", rows)
    options = {"judge": "overlap", "max_new_tokens": 2, "metrics": ("answers", "choice", "text")}
    result = replace(table, protocol=small).run(random_model, truthfulqa_file, other, **options)
    tested = result.comparison.evaluations["RADIANT"]
    assert {p.group for p in tested.prompts} == set(rl.load_dataset(table.test_data, path=other).groups)
    assert {"mc1", "mc2", "correct", "kl"} <= set(tested.metrics)
    # The judge here is another one, since the table's own is a model that is not on this machine.
    assert table.options["judge"] == "truthfulqa"


@pytest.fixture(scope="module")
def toxic_files(tmp_path_factory):
    """Files in the formats of Jigsaw and RealToxicityPrompts."""
    folder = tmp_path_factory.mktemp("toxic")
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "comment_text", "toxic", "severe_toxic"])
        for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS if a != b):
            writer.writerow([f"k{i}", f"the {a} {b} is lovely , you friend .", 0, 0])
            writer.writerow([f"r{i}", f"the {a} {b} is awful , you fool .", 1, 0])
    rows = [
        {"prompt": {"text": f"the {a} is", "toxicity": 0.1}, "continuation": {"text": f" {b} .", "toxicity": t}}
        for a in WORDS
        for b, t in (("lovely", 0.1), ("awful", 0.9))
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_toxicity_is_fitted_on_comments_and_tested_on_prompts(random_model, toxic_files):
    table = PAPER_TABLES["toxicity-gpt2-large"]
    small = replace(table, protocol=replace(table.protocol, n_layers=(1,), margin=2.0, iti_heads=4, iti_alpha=2.0))
    options = {"judge": "lexicon", "metrics": ("answers", "diversity", "text"), "fluency_model": None, "n_samples": 2}
    files = toxic_files / "train.csv", toxic_files / "prompts.jsonl"
    result = small.run(random_model, *files, max_new_tokens=3, **options)
    assert len(result.choices) == 2
    assert result.choices["product"].between(0, 1).all()
    metrics = result.comparison.evaluations["RADIANT"].metrics
    assert {"expected_maximum", "undesirable_probability", "kl", "dist_2"} <= set(metrics)
    # A fifth of the prompts is set apart to choose on, in each of the two folds.
    tested = {p.group for p in result.comparison.evaluations["RADIANT"].prompts}
    prompts = rl.load_dataset("realtoxicityprompts", path=files[1])
    assert tested == set(prompts.split((0.2, 0.8), seed=0)[1].groups)
    assert {"toxicity", 25} <= {table.options["judge"], table.options["n_samples"]}


def test_every_table_has_settings_that_can_run():
    known = ("truthfulqa", "nq_open", "trivia_qa", "jigsaw", "realtoxicityprompts")
    for table in PAPER_TABLES.values():
        table.protocol.check()
        assert table.data in known
        assert table.test_data is None or table.test_data in known
        assert "/" in table.model
    assert {t.test_data for t in PAPER_TABLES.values()} == {None, "nq_open", "trivia_qa", "realtoxicityprompts"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_folds": 1}, "`n_folds` must be a whole number of at least 2"),
        ({"validation": 1.0}, "`validation` must lie strictly between 0 and 1"),
        ({"n_layers": ()}, "`n_layers` must hold at least one number"),
        ({"n_layers": (3,)}, "`n_layers` must be a whole number between 1 and 2"),
        ({"n_candidates": 0}, "`n_candidates` must be a whole number of at least 1"),
        ({"n_candidates": 3}, "`n_candidates` must be a whole number between 1 and 2"),
        ({"margin": 0.0}, "`margin` must lie"),
        ({"iti_alpha": -1.0}, "`alpha` must lie"),
    ],
)
def test_refusals(random_model, truthfulqa, changes, words):
    with pytest.raises(InvalidArgumentError, match=words):
        run_protocol(random_model, truthfulqa, PaperProtocol(**changes))


def test_an_unknown_metric_of_the_product_is_refused(random_model, truthfulqa):
    protocol = PaperProtocol(margin=2.0, n_layers=(1,), product=("correct", "informativ"))
    with pytest.raises(UnknownNameError, match="'informativ' is not a known metric"):
        studies.run_protocol(random_model, truthfulqa, protocol, max_new_tokens=2)


def test_a_judge_that_says_nothing_of_informativeness_chooses_by_other(random_model, truthfulqa_file, monkeypatch):
    table = PAPER_TABLES["truthfulqa-llama-7b"]
    small = replace(table, protocol=replace(table.protocol, n_layers=(1,), margin=2.0, iti_heads=4, iti_alpha=2.0))
    assert small.protocol.product == ("correct", "informative")
    chosen_on = []
    evaluate = kept_evaluations.evaluate

    def recorded(*arguments, **options):
        chosen_on.append(evaluate(*arguments, **options))
        return chosen_on[-1]

    monkeypatch.setattr("radiant_lens.studies.kept_evaluations.evaluate", recorded)
    result = small.run(random_model, truthfulqa_file, n_groups=20, judge="overlap", max_new_tokens=4)
    # In each fold one candidate is judged on validation, then three methods on the other fold.
    metrics = [chosen_on[i].metrics for i in (0, 4)]
    products = [m["correct"].value * (1 - m["other"].value) for m in metrics]
    assert result.choices["product"].tolist() == pytest.approx(products)
    tested = result.comparison.evaluations["RADIANT"].prompts
    assert len({p.group for p in tested}) == 20


def test_a_table_by_its_command(command_line, foreign_folder, truthfulqa_file, tmp_path, monkeypatch):
    table = PAPER_TABLES["truthfulqa-llama-7b"]
    small = replace(table, protocol=replace(table.protocol, margin=2.0, iti_heads=4, iti_alpha=2.0))
    monkeypatch.setitem(PAPER_TABLES, "truthfulqa-llama-7b", small)
    options = ["--model", foreign_folder, "--data", truthfulqa_file, "--judge", "overlap", "--groups", 20]
    options += ["--out", tmp_path]
    status, out, err = command_line("ablate", "paper:truthfulqa-llama-7b", *options, "--json")
    assert status == 0, err
    # In each fold two candidates and three methods.
    assert len(list(tmp_path.glob("cells/*.json"))) == 10
    printed = json.loads(out)
    assert {row["row"] for row in printed["pooled"]} == {"no steering", "ITI", "RADIANT"}
    assert {"mc1", "mc2", "correct", "other", "kl"} <= {row["metric"] for row in printed["pooled"]}
    assert len(printed["choices"]) == 4
    settings = printed["settings"]
    assert [settings["table"], settings["files"]] == ["truthfulqa-llama-7b", [truthfulqa_file.name, None]]
    assert settings["groups"] == 20 and "verlap" in settings["judge"]
    assert "torch" in printed["versions"]
