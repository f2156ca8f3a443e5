"""Rows in which answers share their prompt, against a row for each text."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shifted_heads import every_head

import radiant_lens as rl
from radiant_lens.analysis.sensitivity import gain_gradient
from radiant_lens.evaluation import score_choices, score_statements
from radiant_lens.models import packing
from radiant_lens.models.packing import (
    PackedRow,
    RowLimit,
    answer_passes,
    fill_rows,
    make_pass,
    pack_rows,
    predict,
    shares_prompts,
)
from radiant_lens.models.tokens import AnswerRow, answer_rows, ordinary_tokens
from radiant_lens.sites import hook_name


@pytest.fixture(scope="module")
def rows(model, facts):
    """Three questions with four answers each, bare."""
    prompts = replace(facts.head(3), contexts=None).prompts[:3]
    statements = [p.answered(a) for p in prompts for a in (*p.correct_answers, *p.incorrect_answers)]
    return list(answer_rows(model, statements))


def alone(monkeypatch, call):
    """The result of a call for which no row is shared."""
    with monkeypatch.context() as patch:
        patch.setattr(packing, "shares_prompts", lambda model: False)
        return call()


def log_probs(model, rows, **options) -> torch.Tensor:
    total = torch.zeros(len(rows))
    with torch.no_grad():
        for batch in answer_passes(model, rows, **options):
            scored = predict(model, batch).log_prob(batch.targets)
            total.index_add_(0, batch.texts, scored)
    return total


def test_a_row_holds_its_prompt_once(model, rows):
    packed = pack_rows(model, rows, max_tokens=4096)
    assert len(packed) == 3 < len(rows)
    assert sorted(i for row in packed for i in row.texts) == list(range(len(rows)))
    for row in packed:
        for i, answer in zip(row.texts, row.answers):
            assert row.prompt + answer == rows[i].ids
            assert len(row.prompt) == rows[i].start + 1
    assert sum(row.length for row in packed) < sum(len(row.ids) for row in rows)


@pytest.mark.parametrize(("n_prompt", "n_answer", "width"), [(40, 10, 576), (300, 5, 576), (1, 20, 576), (8, 4, 192)])
def test_a_row_ends_where_more_answers_would_cost_more_than_they_save(n_prompt, n_answer, width):
    """By trying every number of answers: what an answer costs, of tokens and of their pairs."""
    lengths = {n: n_prompt + n * n_answer for n in range(1, 400)}
    costs = {n: (length + length**2 / width) / n for n, length in lengths.items()}
    rows = fill_rows(n_prompt, [n_answer] * 400, RowLimit(10**6, width))
    # Rows of one length are rarely the best one; near it the cost hardly changes.
    assert sum(len(row) * costs[len(row)] for row in rows) < 1.03 * 400 * min(costs.values())


@given(st.integers(1, 60), st.lists(st.integers(1, 80), min_size=1, max_size=40), st.integers(20, 2000))
def test_rows_of_one_prompt_are_of_about_one_length(n_prompt, lengths, width):
    limit = RowLimit(10**6, width)
    rows = fill_rows(n_prompt, lengths, limit)
    assert [i for row in rows for i in row] == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    room, mean = limit.tokens(n_prompt) - n_prompt, sum(lengths) / len(rows)
    assert all(n <= room or len(row) == 1 for n, row in zip(filled, rows))
    assert all(n < mean + max(lengths) for n in filled)
    # Without a width, as earlier versions had it: each row as full as it can be.
    (first, *_) = fill_rows(n_prompt, lengths, RowLimit(n_prompt + max(lengths), None))
    assert sum(lengths[: len(first) + 1]) > max(lengths) or len(first) == len(lengths)


def test_texts_with_only_a_first_token_in_common_share_no_row(model):
    tokens = ordinary_tokens(model, 40)
    rows = [AnswerRow([tokens[0], *tokens[i : i + 20]], 0) for i in range(1, 9)]
    assert len(pack_rows(model, rows, max_tokens=4096)) == 8
    assert all(batch.attention is None for batch in answer_passes(model, rows, max_tokens=4096))


def test_rows_end_at_the_limit(model, rows):
    limit = max(len(row.ids) for row in rows) + 2
    packed = pack_rows(model, rows, max_tokens=limit)
    assert len(packed) > 3
    assert all(row.length <= limit or len(row.answers) == 1 for row in packed)


def test_the_mask_and_the_positions_of_a_small_row():
    batch = make_pass([PackedRow([7, 8], [0, 1], [[1, 2], [3]]), PackedRow([9], [2], [[4]])], pad_id=0)
    assert batch.tokens.tolist() == [[7, 8, 1, 2, 3], [9, 4, 0, 0, 0]]
    assert batch.position_ids is not None
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 2]
    assert batch.starts.tolist() == [1, 0]
    assert batch.attention is not None
    # Queries by keys: an answer sees the prompt and itself.
    assert batch.attention[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    # Padding sees the prompt, and nothing sees padding.
    assert batch.attention[1].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], *[[1, 0, 0, 0, 0]] * 3]
    assert list(zip(*(t.tolist() for t in (batch.texts, batch.rows, batch.columns, batch.targets)))) == [
        (0, 0, 1, 1),
        (0, 0, 2, 2),
        (1, 0, 1, 3),
        (2, 1, 0, 4),
    ]


def test_without_a_shared_prompt_nothing_is_masked(model, rows):
    (batch,) = answer_passes(model, [rows[0]], max_tokens=4096)
    assert batch.attention is None
    assert batch.position_ids is None


def test_log_probabilities_are_those_of_separate_rows(model, rows, monkeypatch):
    shared = log_probs(model, rows, max_tokens=4096)
    torch.testing.assert_close(shared, alone(monkeypatch, lambda: log_probs(model, rows, max_tokens=4096)))
    torch.testing.assert_close(shared, log_probs(model, rows, max_tokens=30), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gate", ["none", "head"])
def test_scores_under_a_steering_are_those_of_separate_rows(model, facts, steering, gate, monkeypatch):
    statements = replace(facts.head(8), contexts=None).statements
    gated = replace(steering, gate=gate)
    shared = score_statements(model, statements, gated)
    for one, other in zip(shared, alone(monkeypatch, lambda: score_statements(model, statements, gated))):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert float(shared.kl.sum()) > 0
    assert float(shared.n_edits.sum()) > 0


def test_choices_are_those_of_separate_rows(model, facts, steering, monkeypatch):
    prompts = replace(facts.head(8), contexts=None).prompts
    shared = score_choices(model, prompts, steering)
    separate = alone(monkeypatch, lambda: score_choices(model, prompts, steering))
    assert (shared["mc2"] - separate["mc2"]).abs().max() < 1e-4


def test_texts_of_one_number_share_a_pass(model, rows):
    together = [i // 4 for i in range(len(rows))]
    batches = list(answer_passes(model, rows, max_tokens=1, together=together))
    assert len(batches) == 3
    assert all(len({together[i] for i in batch.texts.tolist()}) == 1 for batch in batches)


def test_a_hook_of_the_user_sees_each_text_in_a_row_of_its_own(model, facts, monkeypatch):
    """A hook that reads positions means those of a text, not those of a row of several answers."""
    prompts = replace(facts.head(8), contexts=None).prompts
    statements = [p.answered(a) for p in prompts for a in (*p.correct_answers, *p.incorrect_answers)]

    def by_column(z, hook):
        return z * (1 + 0.1 * torch.arange(z.shape[1]))[:, None, None]

    hooks = [(hook_name(1), by_column)]
    for call in (
        lambda: score_statements(model, statements, fwd_hooks=hooks).log_prob,
        lambda: _inside(model, hooks, lambda: torch.tensor(score_choices(model, prompts)["mc2"])),
    ):
        torch.testing.assert_close(call(), alone(monkeypatch, call))
    plain = score_statements(model, statements).log_prob
    assert not torch.allclose(score_statements(model, statements, fwd_hooks=hooks).log_prob, plain)


def _inside(model, hooks, call):
    with model.hooks(fwd_hooks=hooks):
        return call()


def test_equal_prompts_of_different_numbers_share_no_row(model, rows):
    together = [i % 2 for i in range(len(rows))]
    packed = pack_rows(model, rows, max_tokens=4096, together=together)
    assert len(packed) == 6
    assert all(len({together[i] for i in row.texts}) == 1 for row in packed)


def test_the_gain_of_equal_questions_is_that_of_each(model, facts):
    """Two records of one question: their shares are computed apart, however rows are cut."""
    prompt = replace(facts.head(3), contexts=None).prompts[0]
    twin = replace(prompt, group="twin")
    family = every_head(model)
    value = gain_gradient(model, [prompt], family).value
    for limit in (25, 30, 35, 40):
        assert gain_gradient(model, [prompt, twin], family, max_tokens=limit).value == pytest.approx(value, abs=1e-4)


def test_a_row_fits_the_context(rows, monkeypatch):
    model = rl.load_model("tiny")
    longest = max(len(row.ids) for row in rows)
    monkeypatch.setattr(model.cfg, "n_ctx", longest + 2)
    packed = pack_rows(model, rows, max_tokens=4096)
    assert len(packed) > 3
    assert all(row.length <= longest + 2 for row in packed)


def test_a_model_that_ignores_the_mask_gets_separate_rows(rows, monkeypatch):
    model = rl.load_model("tiny")
    assert shares_prompts(model)
    other = rl.load_model("tiny")
    forward = type(other).forward

    def without_mask(self, *args, **kwargs):
        mask = kwargs.get("attention_mask")
        kwargs["attention_mask"] = None if mask is not None and mask.ndim == 4 else mask
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(other, "forward", without_mask.__get__(other))
    assert not shares_prompts(other)
    assert len(pack_rows(other, rows, max_tokens=4096)) == len(rows)


def test_a_model_that_refuses_such_a_mask_gets_separate_rows(monkeypatch):
    model = rl.load_model("tiny")

    def refusing(*args, **kwargs):
        if kwargs["attention_mask"].ndim == 4:
            raise ValueError("no such mask")
        return type(model).forward(model, *args, **kwargs)

    monkeypatch.setattr(model, "forward", refusing)
    assert not shares_prompts(model)


def test_texts_beyond_a_sliding_window_get_separate_rows(rows, monkeypatch):
    model = rl.load_model("tiny")
    longest = max(len(row.ids) for row in rows)
    monkeypatch.setattr(model.original_model.config, "sliding_window", longest, raising=False)
    assert len(pack_rows(model, rows, max_tokens=4096)) < len(rows)
    monkeypatch.setattr(model.original_model.config, "sliding_window", longest - 1)
    assert len(pack_rows(model, rows, max_tokens=4096)) == len(rows)


def test_logits_are_computed_where_an_answer_is_predicted_alone(model, rows):
    (batch,) = answer_passes(model, rows, max_tokens=4096)
    assert batch.selects
    places, place = batch.places
    assert [tuple(pair) for pair in places[place].tolist()] == list(zip(batch.rows.tolist(), batch.columns.tolist()))
    shapes: list[tuple[int, int]] = []
    handle = model.original_model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: shapes.append(tuple(output.shape[:2]))
    )
    try:
        with torch.no_grad():
            some, every = predict(model, batch), predict(model, batch._replace(selects=False))
    finally:
        handle.remove()
    # Answers to one prompt share the place of their first tokens.
    assert len(places) == len(batch.targets) - len(rows) + len(batch.tokens)
    assert shapes == [(1, len(places)), tuple(batch.tokens.shape)]
    torch.testing.assert_close(some.logits, every.logits)
    assert torch.equal(some.place_of, every.place_of)
    # Not the logits of other places.
    assert (some.logits - every.logits.roll(1, 0)).abs().max() > 1


def test_passes_of_other_threads_have_all_their_logits(model, rows):
    (batch,) = answer_passes(model, rows, max_tokens=4096)
    tokens = torch.tensor([ordinary_tokens(model, 8)])
    shapes: list[torch.Size] = []
    beside = threading.Thread(target=lambda: shapes.append(model(tokens).shape))
    with torch.no_grad(), packing._logits_at(model, batch.places[0]):
        beside.start()
        beside.join()
    assert shapes[0][:2] == (1, 8)


def test_no_hook_is_left_after_an_error(model, rows):
    unembedding = model.original_model.get_output_embeddings()
    before = len(unembedding._forward_pre_hooks)
    (batch,) = answer_passes(model, rows, max_tokens=4096)
    with pytest.raises(Exception, match="index out of range"), torch.no_grad():
        predict(model, batch._replace(tokens=batch.tokens + 10**6))
    assert len(unembedding._forward_pre_hooks) == before


def test_a_model_that_does_not_keep_to_places_computes_all_logits(model, rows, monkeypatch):
    plain = type(model.original_model)
    whole = plain.forward

    def forward(self, *args, **options):
        output = whole(self, *args, **options)
        # A model of a fixed shape of logits.
        output.logits = output.logits.expand(2, -1, -1) if len(output.logits) == 1 else output.logits
        return output

    monkeypatch.setattr(plain, "forward", forward)
    monkeypatch.setattr(packing, "_SELECTS", {})
    (batch,) = answer_passes(model, rows, max_tokens=4096)
    assert not batch.selects


def test_a_model_without_an_unembedding_computes_all_logits(model, rows, monkeypatch):
    monkeypatch.setattr(model.original_model, "get_output_embeddings", lambda: None)
    monkeypatch.setattr(packing, "_SELECTS", {})
    (batch,) = answer_passes(model, rows, max_tokens=4096)
    assert not batch.selects


def test_a_hook_of_another_meets_all_logits(model, rows):
    with model.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, hook: logits)]):
        batches = list(answer_passes(model, rows, max_tokens=4096))
    assert not any(batch.selects for batch in batches)
    assert not any(batch.selects for batch in answer_passes(model, rows, max_tokens=4096, share=False))
