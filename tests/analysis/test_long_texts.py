"""Texts beyond the model's context, where strengths are set and behaviour is certified: skipped and counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

import radiant_lens as rl
from radiant_lens.errors import DataError
from radiant_lens.models.lengths import within_context


@pytest.fixture(scope="module")
def shifted(experiment):
    return rl.MeanShiftPolicy(heads="all").fit(experiment.train_cache, experiment.detector)


@pytest.fixture(scope="module")
def short(experiment):
    """A part without contexts, and without the groups of the fit."""
    return replace(experiment.test.head(20), contexts=None)


@pytest.fixture(scope="module")
def long(short):
    """The same data with a desirable text and an answer that are longer than the context of 256 tokens."""
    group, words = short.atoms[0].group, "soup " * 300
    prompt = rl.Prompt("Q : what is soup ? A :", ("soup",), (words,), group)
    text = rl.Statement(words, 0, group)
    return replace(short, atoms=(*short.atoms, text), bare_prompts=(*short.bare_prompts, prompt))


def test_a_strength_is_that_of_the_texts_that_fit(model, shifted, short, long):
    with pytest.warns(UserWarning, match="1 of .* texts are longer than the 256 tokens .*: 1 skipped"):
        at_budget = shifted.at_kl(model, long, 0.05)
    assert at_budget.meta["strength"] == shifted.at_kl(model, short, 0.05).meta["strength"]
    with pytest.raises(DataError, match="has 301 tokens; the model's context holds 256 .*: shorten it, or give"):
        shifted.at_kl(model, replace(long, on_long="error"), 0.05)


def test_a_certificate_is_that_of_the_texts_that_fit(model, shifted, short, long):
    with pytest.warns(UserWarning, match="1 skipped") as warned:
        certificate = shifted.certify(model, long)
    # Desirable texts, questions with their answers, and the activations of all texts.
    assert len(warned) == 3
    assert str(certificate) == str(shifted.certify(model, short))
    with pytest.raises(DataError, match="has 301 tokens; the model's context holds 256"):
        shifted.certify(model, replace(long, on_long="error"))


def test_a_long_text_that_is_cut_is_measured(model, shifted, short, long):
    with pytest.warns(UserWarning, match="1 cut"):
        certificate = shifted.certify(model, replace(long, bare_prompts=short.bare_prompts, on_long="cut"))
    assert certificate.kl != shifted.certify(model, short).kl


def test_least_kl_fits_on_the_texts_that_fit(model, experiment, short, long):
    policy = rl.LeastKLPolicy(budget=0.01, coupling=0.3)
    validation = replace(experiment.validation.head(8), contexts=None)
    with pytest.warns(UserWarning, match="1 skipped") as warned:
        fitted = policy.fit(model, long, validation=validation)
    assert len(warned) == 2
    assert fitted.meta["least_kl"] == policy.fit(model, short, validation=validation).meta["least_kl"]
    for train, held_out in ((long, validation), (validation, long)):
        with pytest.raises(DataError, match="has 30. tokens; the model's context holds 256"):
            policy.fit(model, replace(train, on_long="error"), validation=replace(held_out, on_long="error"))


def test_where_texts_of_a_group_are_compared_the_group_goes(model, short, long):
    with pytest.warns(UserWarning, match="1 of .* texts are longer than the 256 tokens .*: 1 skipped") as warned:
        fitting = within_context(model, long)
    assert len(warned) == 2
    assert fitting.groups == short.groups - {short.atoms[0].group}
    assert within_context(model, short) is short
    with pytest.raises(DataError, match="has 301 tokens; the model's context holds 256"):
        within_context(model, replace(long, on_long="error"))
