"""Scores of given text under a steering, against a naive loop."""

from __future__ import annotations

import pytest
import torch
from conftest import logits_set
from scipy import stats
from sklearn.metrics import log_loss

import radiant_lens as rl
from radiant_lens.evaluation import score_statements
from radiant_lens.models.tokens import answer_start_position, encode


def test_scores_agree_with_a_naive_loop(model, steering, experiment):
    statements = [s for s in experiment.test.statements if s.label == 0][:5]
    scored = score_statements(model, statements, steering, max_tokens=100)
    for i, (statement, row) in enumerate(zip(statements, encode(model, [s.text for s in statements]))):
        span = range(answer_start_position(row, statement.answer_start), len(row.ids))
        tokens = torch.tensor([row.ids])
        with torch.no_grad():
            plain = model(tokens)[0].log_softmax(-1)
            hooks = steering.hooks(start=torch.tensor([span.start]))
            steered = model.run_with_hooks(tokens, fwd_hooks=hooks)[0].log_softmax(-1)
        log_prob = kl = 0.0
        for pos in span[:-1]:
            log_prob += float(steered[pos, row.ids[pos + 1]])
            kl += float((plain[pos].exp() * (plain[pos] - steered[pos])).sum())
        assert float(scored.log_prob[i]) == pytest.approx(log_prob, rel=1e-3, abs=1e-4)
        assert float(scored.kl[i]) == pytest.approx(kl, rel=1e-3, abs=1e-4)
        assert float(scored.n_tokens[i]) == len(span) - 1
    assert float(scored.kl.sum()) > 0
    assert 0 < float(scored.n_edited.sum()) <= float(scored.n_tokens.sum())


def test_an_impossible_token_changes_no_score(model, steering, experiment):
    """Some models give tokens that their vocabulary is padded with a logit of minus infinity."""
    statements = [s for s in experiment.test.statements if s.label == 0][:5]
    never = model.tokenizer.pad_token_id
    scored = []
    for logit in (-1e4, -torch.inf):
        with logits_set(model, never, logit):
            scored.append(score_statements(model, statements, steering))
    assert float(scored[0].kl.sum()) > 0
    for improbable, impossible in zip(*scored):
        torch.testing.assert_close(impossible, improbable)


def test_displacements_agree_with_the_trace_of_each_text(model, steering, experiment):
    statements = [s for s in experiment.test.statements if s.label == 0][:5]
    scored = score_statements(model, statements, steering, max_tokens=100)
    for i, (statement, row) in enumerate(zip(statements, encode(model, [s.text for s in statements]))):
        span = range(answer_start_position(row, statement.answer_start), len(row.ids))
        with rl.steer(model, steering, trace=True, start=span.start) as trace, torch.no_grad():
            model(torch.tensor([row.ids]))
        table = trace.to_dataframe()
        # The last token predicts nothing that is scored.
        edits = table[table["gated"] & (table["position"] < span[-1])]
        assert float(scored.n_edits[i]) == len(edits)
        assert float(scored.n_edited[i]) == edits["position"].nunique()
        assert float(scored.displacement[i]) == pytest.approx(edits["displacement"].sum(), rel=1e-4)
    assert float(scored.n_edits.sum()) > float(scored.n_edited.sum()) > 0
    unsteered = score_statements(model, statements)
    assert float(unsteered.n_edits.sum()) == float(unsteered.displacement.sum()) == 0


def test_agrees_with_scipy_and_scikit_learn(model, steering, experiment):
    statement = next(s for s in experiment.test.statements if s.label == 0)
    (row,) = encode(model, [statement.text])
    span = range(answer_start_position(row, statement.answer_start), len(row.ids))
    with torch.no_grad():
        plain = model(torch.tensor([row.ids]))[0, span.start : -1].double().softmax(-1).numpy()
        hooks = steering.hooks(start=torch.tensor([span.start]))
        steered = model.run_with_hooks(torch.tensor([row.ids]), fwd_hooks=hooks)
    steered = steered[0, span.start : -1].double().softmax(-1).numpy()
    scored = score_statements(model, [statement], steering)
    target = row.ids[span.start + 1 :]
    loss = log_loss(target, steered, labels=range(steered.shape[1]), normalize=False)
    assert -float(scored.log_prob[0]) == pytest.approx(loss, rel=1e-4, abs=1e-5)
    assert float(scored.kl[0]) == pytest.approx(stats.entropy(plain, steered, axis=1).sum(), rel=1e-3, abs=1e-5)
    assert float(scored.kl[0]) != pytest.approx(stats.entropy(steered, plain, axis=1).sum(), rel=1e-3)
