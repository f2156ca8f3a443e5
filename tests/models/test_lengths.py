"""Texts beyond the context are skipped, cut or refused, and counted, in collection and in evaluation."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from plain_models import random_steering

import radiant_lens as rl
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.models.lengths import fit_context
from radiant_lens.models.tokens import encode, encode_text

CONTEXT = 256
SHORT = rl.Statement("Q : what ? A : the soup .", 0, "a", 15)
# One token a word, after the BOS token.
LONG = rl.Statement("Q : what ? A : " + "the " * 300, 1, "b", 15)
LONG_BEFORE = rl.Statement("the " * 300 + "A : the soup .", 1, "c", 1204)
DATA = [SHORT, LONG, LONG_BEFORE]


def n_tokens(model, text):
    return len(encode_text(model, text, rendered=False).ids)


def test_what_the_tests_assume(model):
    assert model.cfg.n_ctx == CONTEXT
    assert [n_tokens(model, s.text) > CONTEXT for s in DATA] == [False, True, True]


def test_texts_that_fit_cause_no_warning(model):
    exact = rl.Statement("the " * 254 + "soup", 0)
    assert n_tokens(model, exact.text) == CONTEXT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_context(model, [SHORT, exact], "skip").records == (SHORT, exact)
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than the 256 tokens"):
        fit_context(model, [SHORT, rl.Statement("the " * 255 + "soup", 0)], "skip")


def test_skipped_texts_are_counted(model):
    words = "2 of 3 texts are longer than the 256 tokens .*: 2 skipped; on_long='skip', 'cut' or 'error' decides"
    with pytest.warns(UserWarning, match=words) as caught:
        cache = rl.collect(model, DATA)
    assert caught[0].filename == __file__
    assert (cache.texts, cache.meta["too_long"]) == ((SHORT.text,), {"skipped": 2, "cut": 0})
    assert torch.equal(cache.z, rl.collect(model, [SHORT]).z)
    assert rl.collect(model, [SHORT]).meta["too_long"] == {"skipped": 0, "cut": 0}


def test_texts_are_cut_where_the_context_ends_if_some_of_the_answer_is_left(model):
    with pytest.warns(UserWarning, match="2 of 3 texts .*: 1 skipped and 1 cut"):
        cache = rl.collect(model, DATA, on_long="cut")
    assert cache.meta["too_long"] == {"skipped": 1, "cut": 1}
    assert cache.texts[0] == SHORT.text
    assert LONG.text.startswith(cache.texts[1]) and n_tokens(model, cache.texts[1]) == CONTEXT
    assert cache.positions.max() == CONTEXT - 1
    # One more word would be too long.
    assert n_tokens(model, LONG.text[: len(cache.texts[1]) + 4]) == CONTEXT + 1


def test_the_first_long_text_is_refused_on_request(model):
    with pytest.raises(DataError, match=r"Text 1 has 307 tokens; the model's context holds 256 \('Q : what .*'skip'"):
        rl.collect(model, DATA, on_long="error")
    with pytest.raises(InvalidArgumentError, match="`on_long` must be one of 'skip', 'cut', 'error'; got 'drop'"):
        rl.collect(model, DATA, on_long="drop")


def test_if_all_are_too_long_none_is_left(model):
    with pytest.raises(
        DataError, match="Text 0 has 307 tokens; .* all 2 texts are too long, so none is left; shorten them"
    ):
        rl.collect(model, DATA[1:])


def test_a_store_counts_them_too(model, tmp_path):
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 of 3 texts"):
            cache = rl.collect(model, DATA, store=tmp_path / "store")
        assert cache.meta["too_long"] == {"skipped": 2, "cut": 0}
        assert cache.texts == (SHORT.text,)


def test_a_character_of_several_bytes_may_be_several_tokens(model):
    """No text that is too long passes for a short one."""
    for text in ("é" * 200, "🙂" * 90, "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 64):
        for n in (1, 8, 64, 256):
            record = rl.Statement(text[:n] + "x", 0)
            try:
                fitting = fit_context(model, [record, SHORT], "error").records
            except DataError:
                assert n_tokens(model, record.text) > CONTEXT
            else:
                assert len(encode(model, fitting)) == 2


def test_a_data_set_may_bring_its_rule(model):
    data = rl.load_dataset([(s.text, s.label) for s in (SHORT, LONG)], on_long="cut")
    with pytest.warns(UserWarning, match="1 of 2 texts .* 1 cut"):
        assert rl.collect(model, data).meta["too_long"] == {"skipped": 0, "cut": 1}
    # The call's own rule comes before the data set's.
    with pytest.warns(UserWarning, match="1 of 2 texts .* 1 skipped"):
        assert rl.collect(model, data, on_long="skip").meta["too_long"] == {"skipped": 1, "cut": 0}
    assert [part.on_long for part in data.split((0.5, 0.5))] == ["cut", "cut"]
    assert rl.load_dataset("tone", on_long="error").on_long == "error"
    for refused in (lambda: rl.load_dataset("tone", on_long="trim"), lambda: rl.Dataset("x", (SHORT,), on_long="trim")):
        with pytest.raises(InvalidArgumentError, match="`on_long` must be one of 'skip', 'cut', 'error'; got 'trim'"):
            refused()


# Analysis


def test_effects_and_writes_leave_out_what_is_too_long(model):
    steering = random_steering(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    with pytest.warns(UserWarning, match="1 of 2 texts .* 1 skipped") as caught:
        effects = rl.head_effects(model, rl.Dataset("mine", (), (prompts(1), prompts(240))), steering)
    assert caught[0].filename == __file__
    assert torch.equal(
        effects.estimated, rl.head_effects(model, rl.Dataset("x", (), (prompts(1),)), steering).estimated
    )
    with pytest.raises(DataError, match="Text 1 has .* tokens; .* 256"):
        rl.head_effects(model, rl.Dataset("mine", (), (prompts(1), prompts(240))), steering, on_long="error")
    with pytest.warns(UserWarning, match="2 of 3 texts .* 2 skipped"):
        writes = rl.edit_writes(model, DATA, steering)
    assert torch.equal(writes.total, rl.edit_writes(model, [SHORT], steering).total)
    with pytest.warns(UserWarning, match="2 of 3 texts .* 1 skipped and 1 cut"):
        assert rl.edit_writes(model, DATA, steering, on_long="cut").n_positions > writes.n_positions


# Evaluation


def prompts(n_words):
    return rl.Prompt("the " * n_words + "Q : what ? A :", ("the soup",), ("stew " * 20,), f"p{n_words}")


def test_prompts_that_leave_no_room_for_new_tokens_are_skipped(model):
    data = rl.Dataset("mine", (SHORT, rl.Statement(LONG.text, 0, "d")), (prompts(1), prompts(240)))
    with (
        pytest.warns(UserWarning, match="1 of 2 texts are longer than the 237 tokens .* 1 skipped") as prompts_skipped,
        pytest.warns(UserWarning, match="1 of 2 texts are longer than the 256 tokens .* 1 skipped"),
    ):
        result = rl.evaluate(model, data, max_new_tokens=20)
    assert prompts_skipped[0].filename == __file__
    assert result.settings["too_long"] == {"skipped": 2, "cut": 0}
    assert [p.group for p in result.prompts] == ["p1"]
    alone = rl.evaluate(model, rl.Dataset("mine", (SHORT,), (prompts(1),)), max_new_tokens=20)
    assert result.metrics == alone.metrics
    assert alone.settings["too_long"] == {"skipped": 0, "cut": 0}


def test_prompts_must_have_room_for_their_answers(model):
    data = rl.Dataset("mine", (), (prompts(1), prompts(235)))
    assert len(rl.evaluate(model, data, max_new_tokens=5, metrics=["answers"]).prompts) == 2
    with pytest.warns(UserWarning, match="1 of 2 texts"):
        result = rl.evaluate(model, data, max_new_tokens=5, metrics=["choice"])
    assert [p.group for p in result.prompts] == ["p1"]


def test_the_best_answer_needs_room_too(model):
    """It may be none of the correct ones, and is scored all the same."""
    long = rl.Prompt("Q : what ? A :", ("the soup",), ("the bread",), best_answer="the " * 300)
    with pytest.warns(UserWarning, match="1 of 2 texts .* 1 skipped"):
        assert fit_context(model, [long, replace(long, best_answer="the soup")], "skip", answers=True).n_skipped == 1


def test_texts_are_cut_and_prompts_are_not(model):
    data = rl.Dataset("mine", (SHORT, rl.Statement(LONG.text, 0, "d", 15)), (prompts(1), prompts(240)))
    with (
        pytest.warns(UserWarning, match="1 of 2 texts .* 1 skipped"),
        pytest.warns(UserWarning, match="1 of 2 texts .* 1 cut"),
    ):
        result = rl.evaluate(model, data, on_long="cut")
    assert result.settings["too_long"] == {"skipped": 1, "cut": 1}


def test_a_long_record_is_refused_before_anything_is_generated(model, monkeypatch):
    monkeypatch.setattr(model, "generate", None)
    data = rl.Dataset("mine", (rl.Statement(LONG.text, 0, "d"), SHORT), (prompts(1),))
    with pytest.raises(DataError, match="Text 0 has 307 tokens"):
        rl.evaluate(model, data, on_long="error")
    with pytest.raises(DataError, match="Text 0 has 247 tokens; the model's context holds 256, 20 new ones included"):
        rl.evaluate(model, rl.Dataset("mine", (SHORT,), (prompts(240),)), on_long="skip")
    with pytest.raises(InvalidArgumentError, match="`on_long` must be one of"):
        rl.evaluate(model, data, on_long="drop")


def test_data_in_contexts_are_counted_as_the_model_reads_them(model):
    """The longest transcripts are too long, the shorter ones of the same statements are not."""
    atoms = tuple(rl.Statement("the " * 100 + f"soup {i}", i % 2, f"g{i // 2}") for i in range(8))
    data = rl.Dataset("mine", atoms, contexts=rl.Contexts(n_pairs=(1, 3)))
    with pytest.warns(UserWarning, match="4 of 8 texts .* 4 skipped"):
        result = rl.evaluate(model, data)
    assert result.settings["too_long"] == {"skipped": 4, "cut": 0}
