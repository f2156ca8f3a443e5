"""What each object shows of itself in a notebook: its one table or picture, in a few thousand characters."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

import radiant_lens as rl
from radiant_lens import studies
from radiant_lens.analysis.behaviour import certify_behaviour

LONGEST = 12_000


@pytest.fixture(scope="module")
def small(model, experiment):
    return replace(experiment, test=experiment.test.head(8), validation=experiment.validation.head(8))


@pytest.fixture(scope="module")
def shown(model, small, steering):
    """Objects by name; each is made once."""
    evaluation = rl.evaluate(model, small.test, steering, max_new_tokens=4)
    answer = rl.trace_answer(model, small.test.prompts[1].text, steering, max_new_tokens=6)
    comparison = studies.compare(small, {"plain": None, "steered": steering}, n_samples=1, max_new_tokens=4)
    return {
        "HeadCache": small.train_cache,
        "Steering": steering,
        "detector": small.detector,
        "HeadEffects": rl.head_effects(model, small.validation, steering),
        "Trace": answer.trace,
        "TracedAnswer": answer,
        "EditWrites": rl.edit_writes(model, small.test, steering),
        "certificate": steering.certify(small.test_cache()),
        "Evaluation": evaluation,
        "BehaviourCertificate": certify_behaviour(model, steering, small.test),
        "StudyResult": comparison,
        "ProtocolResult": studies.ProtocolResult(pd.DataFrame(), comparison),
        "HeadKnockOut": studies.knock_out(small, data=small.validation),
        "DetectingAndDoing": studies.detecting_and_doing(small),
    }


WORDS = {
    "Steering": ("<rect", "Edited heads", "Fitted on model tiny, data tiny-facts"),
    "HeadCache": ("desirable", "undesirable", "groups"),
    "detector": ("<rect", "Validation risk of each head", "heads significant"),
    "HeadEffects": ("estimated", "in nats"),
    "Trace": ("votes", "edits"),
    "TracedAnswer": ("background", "Darker tokens"),
    "EditWrites": ("token", "change"),
    "certificate": ("still flagged", "upper", "held-out groups"),
    "Evaluation": ("correct", "kl", "95% intervals"),
    "BehaviourCertificate": ("at least", "nats a token"),
    "ProtocolResult": ("plain", "steered", "StudyResult"),
    "StudyResult": ("plain", "steered", "kl"),
    "HeadKnockOut": ("effect", "log_odds"),
    "DetectingAndDoing": ("measured", "Rank correlations"),
}


def page_of(thing: object) -> str:
    bundle = getattr(thing, "_repr_mimebundle_", None)
    return bundle()["text/html"] if bundle else thing._repr_html_()


@pytest.mark.parametrize("name", WORDS)
def test_a_few_lines_and_one_table_or_picture(name, shown):
    page = page_of(shown[name])
    assert len(page) < LONGEST
    assert "tensor(" not in page
    assert page.count("<table") + page.count("<svg") + page.count("white-space") == 1
    for word in WORDS[name]:
        assert word in page, word


@pytest.mark.parametrize("name", WORDS)
def test_each_object_is_a_table_too(name, shown):
    assert len(shown[name].to_dataframe())


@pytest.mark.parametrize("name", ["Trace", "TracedAnswer", "EditWrites", "certificate"])
def test_a_repr_is_one_line_without_tensors(name, shown):
    text = repr(shown[name])
    assert "\n" not in text and len(text) < 500
    assert "tensor(" not in text


def test_texts_of_others_are_escaped(shown):
    answer = shown["TracedAnswer"]
    hostile = replace(answer, tokens=("<script>", *answer.tokens[1:]), answer="<script>")
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;script&gt;" in hostile._repr_html_()


def test_the_table_of_a_cache_has_a_row_for_each_example(gaussian_cache):
    cache = gaussian_cache(3)
    table = cache.to_dataframe()
    assert list(table) == ["text", "position", "label", "group"]
    assert table["text"].tolist() == [f"text {i}" for i in range(6)]
    assert table["label"].tolist() == cache.labels.tolist()
    chosen = cache.select([4, 1])
    assert chosen.to_dataframe()["text"].tolist() == ["text 4", "text 1"]
    assert chosen.to_dataframe()["group"].tolist() == [table["group"][4], table["group"][1]]


def test_the_table_of_a_detector_has_its_figures(experiment):
    detector, table = experiment.detector, experiment.detector.to_dataframe()
    assert len(table) == detector.head_risk_.numel()
    row = table.iloc[11]
    site = (int(row["layer"]), int(row["head"]))
    assert site == (1, 3)
    assert row["risk"] == float(detector.head_risk_[site])
    assert row["significant"] == bool(detector.head_significant_[site])
    with pytest.raises(rl.errors.NotFittedError, match="not fitted yet"):
        rl.RiskAwareDetector().to_dataframe()
    assert "<svg" not in page_of(rl.RiskAwareDetector())


def test_the_table_of_a_steering_has_its_certificates(steering):
    table = steering.to_dataframe()
    assert [tuple(site) for site in table[["layer", "head"]].to_numpy().tolist()] == list(steering.sites)
    assert table["margin"].tolist() == [certificate.margin for certificate in steering.certificates]
    # Only edited heads are dark.
    assert steering._repr_html_().count(", 1.00)") == len(steering.sites)


def test_the_tables_of_a_traced_answer_agree(shown):
    answer = shown["TracedAnswer"]
    tokens, edits = answer.to_dataframe(), answer.trace.to_dataframe()
    assert tokens["token"].tolist() == list(answer.tokens)
    assert tokens["part"].tolist().count("prompt") == answer.n_prompt
    assert tokens["edits"].sum() == edits["gated"].sum() == answer.trace.summary()["edits"].sum()
    assert tokens["displacement"].sum() == pytest.approx(edits["displacement"][edits["gated"].astype(bool)].sum())


def test_a_trace_that_was_not_recorded_says_so(model, steering):
    with rl.steer(model, steering) as trace:
        pass
    assert "not recorded; use `steer(model, steering, trace=True)`" in trace._repr_html_()
    with rl.steer(model, steering, trace=True) as empty:
        pass
    assert "0 edits" in empty._repr_html_()


def test_the_table_of_an_evaluation_says_why_a_metric_is_not_a_number(shown):
    evaluation = shown["Evaluation"]
    table = evaluation.to_dataframe().set_index("metric")
    assert table["value"].to_dict() == {name: m.value for name, m in evaluation.metrics.items()}
    parts = evaluation.parts.copy()
    parts.loc[parts["metric"] == "displacement", ["numerator", "denominator"]] = 0.0
    unedited = replace(evaluation, parts=parts)
    assert unedited.to_dataframe().set_index("metric").at["displacement", "note"] == "no edit"
    assert "no edit" in unedited._repr_html_()
    assert "nan" not in unedited._repr_html_()


def test_the_table_of_edit_writes_is_sorted_and_has_every_head(shown):
    writes = shown["EditWrites"]
    table = writes.to_dataframe()
    assert table["change"].is_monotonic_decreasing
    assert list(table)[2:] == [str(site) for site in writes.sites]
    assert torch.equal(torch.tensor(table["change"].to_numpy()), writes.total.sort(descending=True).values)
