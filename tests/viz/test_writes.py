"""Writes of edits: exact where no layer follows the edit, and the figure of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import DataError, InvalidArgumentError, ModelMismatchError, NothingToEditError


@pytest.fixture(scope="module")
def writes(model, experiment, steering):
    return rl.edit_writes(model, experiment.validation, steering, max_positions=64)


@pytest.fixture(scope="module")
def foreign(foreign_folder, facts):
    """A GPT-2 (LayerNorm, Conv1D) whose last MLP writes nothing, with edits in its last attention layer."""
    model = rl.load_model(foreign_folder, device="cpu")
    mlp = model.original_model.transformer.h[-1].mlp.c_proj
    mlp.weight.data.zero_()
    mlp.bias.data.zero_()
    train, validation, test = facts.head(60).split((0.6, 0.2, 0.2))
    cache = rl.collect(model, train)
    detector = rl.RiskAwareDetector().fit(cache, rl.collect(model, validation))
    steering = rl.ITIPolicy(alpha=3.0, heads=[(1, 0), (1, 3)]).fit(cache, detector)
    return model, test.statements[:3], steering


def test_writes_equal_the_change_of_logits_where_no_layer_follows(foreign):
    model, statements, steering = foreign
    statement = statements[0]
    writes = rl.edit_writes(model, [statement], steering)
    ids = model.to_tokens(statement.text)
    start = ids.shape[1] - writes.n_positions
    with torch.no_grad():
        plain = model(ids)[0, start:]
        with model.hooks(fwd_hooks=steering.hooks(torch.tensor([start]))):
            steered = model(ids)[0, start:]
    change = (steered - plain).double().mean(0)
    # A constant added to all logits changes no probability.
    change = change - change.mean()
    special = set(model.tokenizer.all_special_ids)
    ordinary = [i for i in range(len(change)) if i not in special]
    assert torch.allclose(writes.total, change[ordinary], atol=1e-5)
    assert writes.total.abs().max() > 1e-3


def test_writes_of_one_head_equal_those_of_the_head_alone(foreign):
    model, statements, steering = foreign
    both = rl.edit_writes(model, statements, steering)
    alone = rl.edit_writes(model, statements, steering.select([(1, 3)]))
    assert torch.allclose(both.by_head[1], alone.total, atol=1e-6)
    assert not torch.allclose(both.by_head[0], both.by_head[1], atol=1e-4)
    assert both.n_edits[1] == alone.n_edits[0] == alone.n_positions


def test_top_takes_both_ends(writes):
    top = writes.top(3)
    order = writes.total.sort(descending=True).values
    assert top["change"].tolist() == torch.cat([order[:3], order[-3:]]).tolist()
    assert writes.tokens[int(writes.total.argmax())] == top["token"][0]
    site = writes.sites[-1]
    assert writes.top(2, site)["change"][0] == float(writes.by_head[-1].max())
    assert "<pad>" not in writes.tokens
    with pytest.raises(InvalidArgumentError, match="`site` must be an edited head"):
        writes.top(2, (3, 7))


def test_the_figure_shows_all_heads_and_each(writes):
    figure = rl.viz.edit_writes(writes, n=4, max_heads=2)
    assert len(figure.data) == 3
    assert list(figure.data[0].text) == writes.top(4)["token"].tolist()
    assert list(figure.data[0].x) == pytest.approx(writes.top(4)["change"].tolist(), abs=1e-4)
    assert figure.layout.annotations[0].text == "all heads"
    assert f"2 of {len(writes.sites)} heads" in figure.layout.title.text


def test_heads_without_an_edit_have_no_panel(writes):
    n_edits = writes.n_edits.clone()
    n_edits[0] = 0
    by_head = writes.by_head.clone()
    # As `edit_writes` returns it for a head whose gate stays shut.
    by_head[0] = 0
    figure = rl.viz.edit_writes(replace(writes, n_edits=n_edits, by_head=by_head))
    assert len(figure.data) == len(writes.sites)
    assert not any(note.text.startswith(str(writes.sites[0])) for note in figure.layout.annotations)
    assert "1 head is edited at no position" in figure.layout.title.text.replace("<br>", " ")
    shown = [axis.title.text for axis in figure.select_xaxes() if axis.title.text]
    assert shown == ["change of the logit"] * min(2, len(figure.data))


def test_tokens_are_not_read_as_html(writes):
    evil = replace(writes, tokens=("<img src=x>", *writes.tokens[1:]), total=torch.arange(len(writes.tokens), 0.0, -1))
    assert rl.viz.edit_writes(evil).data[0].text[0] == "&lt;img src=x&gt;"


def test_bad_input_is_refused(model, experiment, steering, writes):
    with pytest.raises(InvalidArgumentError, match="`max_positions`"):
        rl.edit_writes(model, experiment.validation, steering, max_positions=0)
    with pytest.raises(NothingToEditError, match="No position of these statements is edited"):
        rl.edit_writes(model, [], steering)
    other = replace(steering, meta={**steering.meta, "model": {"weights": "other"}})
    with pytest.raises(ModelMismatchError):
        rl.edit_writes(model, experiment.validation, other)
    with pytest.raises(DataError, match="`writes.total` must be finite"):
        rl.viz.edit_writes(replace(writes, total=writes.total * torch.nan))


def test_a_model_that_norms_what_attention_writes_is_refused(model, experiment, steering, monkeypatch):
    block = type(model.blocks[0])
    monkeypatch.setattr(block, "ln1_post", object(), raising=False)
    with pytest.raises(InvalidArgumentError, match="normalises the output of attention"):
        rl.edit_writes(model, experiment.validation, steering)
