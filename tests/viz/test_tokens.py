"""Views of a generation: every vote and edit of the trace is drawn, at its token."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import DataError, InvalidArgumentError, ModelMismatchError, RadiantError
from radiant_lens.hooks.trace import TraceRecord
from radiant_lens.steering.steering import LayerEdit
from radiant_lens.viz.circuits import EmptyView, bundle

PROMPT = "Q : what is the capital of dupeka ? A :"


@pytest.fixture(scope="module")
def answer(model, steering, facts):
    return rl.trace_answer(model, PROMPT, steering, stop=facts.stop)


def small_trace(n_heads: int = 2, n_pos: int = 2) -> rl.Trace:
    """Head 0 is edited at the first token, where the gate of head 1 is shut; at the second, head 0 is not trusted."""
    flagged = torch.zeros(1, n_pos, n_heads, dtype=torch.bool)
    gated, untrusted = flagged.clone(), flagged.clone()
    flagged[0, 0], gated[0, 0, 0] = True, True
    flagged[0, 1, 0], untrusted[0, 1, 0] = True, True
    displacement = gated[..., None] * torch.tensor([3.0, 4.0])
    edit = LayerEdit(1, torch.arange(n_heads), flagged, gated, untrusted, displacement)
    shown = torch.ones(1, n_pos, dtype=torch.bool)
    return rl.Trace(True, [TraceRecord(0, edit, torch.arange(n_pos), shown, torch.zeros(1, dtype=torch.long))])


def test_a_traced_answer_is_the_steered_one(model, steering, facts, answer):
    with rl.steer(model, steering):
        text = model.generate(PROMPT, max_new_tokens=20, do_sample=False, verbose=False)
    assert text.startswith(f"{PROMPT} {answer.answer}")
    assert answer.tokens[: answer.n_prompt] == ("<bos>", *PROMPT.split())
    assert answer.answer.endswith(".")
    table = answer.trace.to_dataframe()
    assert table["position"].min() == answer.n_prompt - 1
    assert table["position"].max() == len(answer.tokens) - 2


def test_patterns_are_of_the_edited_heads_and_the_steered_pass(model, steering, answer):
    weights = answer.patterns.weights
    assert answer.patterns.sites == steering.sites
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:2]), atol=1e-5)
    # The beginning-of-text token is added by the model itself.
    ids = model.to_tokens(" ".join(answer.tokens[1:]))
    _, cache = model.run_with_cache(ids)
    plain = torch.stack([cache[f"blocks.{s.layer}.attn.hook_pattern"][0, s.head] for s in steering.sites])
    first = [i for i, s in enumerate(steering.sites) if s.layer == steering.layers[0]]
    # Nothing is edited before the first edited layer's own values; later layers look elsewhere.
    assert torch.allclose(weights[first], plain[first], atol=1e-5)
    if len(steering.layers) > 1:
        assert not torch.allclose(weights, plain, atol=1e-3)


def test_timeline_by_hand():
    figure = rl.viz.vote_timeline(small_trace(), ["one", "two"])
    heat, *marks = figure.data
    assert heat.y == ("L1H0", "L1H1")
    assert [list(row) for row in heat.z] == [[5.0, 0.0], [0.0, 0.0]]
    assert [list(row) for row in heat.text] == [
        ["edited", "beyond the trust region, left alone"],
        ["votes, gate shut", "does not vote"],
    ]
    drawn = {mark.name: list(zip(mark.x, mark.y)) for mark in marks}
    assert drawn == {
        "edited": [(0, "L1H0")],
        "votes, gate shut": [(0, "L1H1")],
        "beyond the trust region, left alone": [(1, "L1H0")],
    }
    assert figure.layout.xaxis.ticktext == ("one", "two")


def test_timeline_of_a_real_answer(steering, answer):
    heat = rl.viz.vote_timeline(answer.trace, answer.tokens).data[0]
    table = answer.trace.to_dataframe()
    # Every displacement of the trace is drawn once.
    assert sum(map(sum, heat.z)) == pytest.approx(float(table["displacement"].sum()), rel=1e-6)
    assert list(heat.y) == [str(site) for site in steering.sites]


def test_the_heads_that_move_most_are_shown_and_counted():
    figure = rl.viz.vote_timeline(small_trace(30), ["one", "two"], max_heads=4)
    assert "L1H0" in figure.data[0].y
    assert len(figure.data[0].y) == 4
    assert "4 of 30 edited heads" in figure.layout.title.text


def idle_trace(*, votes: bool) -> rl.Trace:
    """The small trace with every gate shut."""
    record = small_trace().records[0]
    shut = torch.zeros_like(record.edit.gated)
    still = torch.zeros_like(record.edit.displacement)
    flagged = record.edit.flagged if votes else shut
    edit = record.edit._replace(flagged=flagged, gated=shut, untrusted=shut, displacement=still)
    return rl.Trace(True, [record._replace(edit=edit)])


def test_a_trace_without_edits_is_reported_in_words_not_as_zeros():
    figure = rl.viz.vote_timeline(idle_trace(votes=True), ["one", "two"])
    assert not figure.data
    words = figure.layout.annotations[0].text.replace("<br>", " ")
    assert words == "Nothing was edited: 2 heads read 2 tokens and voted 3 times."
    # Votes are still worth a view; displacements of zero are not.
    moved = rl.viz.colored_tokens(idle_trace(votes=True), ["one", "two"], by="displacement")
    assert isinstance(moved, EmptyView)
    assert "Nothing was edited" in moved.words
    assert rl.viz.colored_tokens(idle_trace(votes=True), ["one", "two"]).props["values"] == [1.0, 0.5]
    silent = rl.viz.colored_tokens(idle_trace(votes=False), ["one", "two"])
    assert silent == EmptyView("No edited head votes at any token.")


def test_the_scale_of_the_timeline_starts_at_zero_and_its_axes_have_titles():
    figure = rl.viz.vote_timeline(small_trace(), ["one", "two"])
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 5.0)
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("token that is read", "head")


def test_coloured_tokens_by_hand():
    votes = rl.viz.colored_tokens(small_trace(), ["one", "two", "three"])
    assert votes.props["values"] == [1.0, 0.5, 0.0]
    moved = rl.viz.colored_tokens(small_trace(), ["one", "two", "three"], by="displacement")
    assert moved.props["values"] == [5.0, 0.0, 0.0]
    assert moved.props["maxValue"] == 5.0


def test_no_token_is_read_as_html():
    evil = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>"]
    view = rl.viz.colored_tokens(small_trace(), evil)
    fragment = view.fragment()
    assert "<script>alert" not in fragment
    assert "<img" not in fragment
    # CircuitsVis hands tokens to innerHTML: there they must be escaped, not only within the script.
    props = json.loads(fragment[fragment.index("ColoredTokens, ") + 15 : fragment.index(")} else {")])
    assert props["tokens"][1] == " &lt;img src=x onerror=alert(1)&gt;"
    figure = rl.viz.vote_timeline(small_trace(), evil)
    assert "<" not in "".join(figure.layout.xaxis.ticktext)
    assert "<s>" not in str(figure.data[0].customdata)


def test_a_view_has_the_size_that_it_is_given(answer):
    view = rl.viz.colored_tokens(small_trace(), ["one", "two"], width=300, height=200)
    assert '<div class="radiant-lens-view" style="max-width: 300px; max-height: 200px">' in view.fragment()
    assert '<div class="radiant-lens-view">' in rl.viz.colored_tokens(small_trace(), ["one", "two"]).fragment()
    assert "max-width: 400px" in rl.viz.attention(answer.patterns, width=400).fragment()
    with pytest.raises(InvalidArgumentError, match="`height`"):
        rl.viz.attention(answer.patterns, height=1)
    with pytest.raises(InvalidArgumentError, match="`width`"):
        rl.viz.colored_tokens(small_trace(), ["one", "two"], width=1)


def test_views_need_no_network(answer):
    view = rl.viz.attention(answer.patterns)
    assert "https://unpkg.com" not in view._repr_html_()
    assert view._repr_html_().count("window.CircuitsVis=") == 1
    assert len(bundle()) > 1_000_000
    assert view.props["attentionHeadNames"] == [str(site) for site in answer.patterns.sites]
    few = rl.viz.attention(answer.patterns, max_heads=1)
    assert len(few.props["attention"]) == 1
    assert f"1 of {len(answer.patterns.sites)}" in few.caption


def test_an_empty_trace_is_reported_in_words(answer):
    figure = rl.viz.vote_timeline(rl.Trace(True), ["one"])
    assert "The trace is empty" in figure.layout.annotations[0].text
    view = rl.viz.colored_tokens(rl.Trace(True), ["one"])
    assert isinstance(view, EmptyView)
    assert "The trace is empty" in view._repr_html_()
    none = replace(answer.patterns, sites=())
    assert isinstance(rl.viz.attention(none), EmptyView)


def test_bad_input_is_refused(model, steering, answer):
    with pytest.raises(InvalidArgumentError, match=r"`trace` must be a Trace; got TracedAnswer: .* `answer.trace`"):
        rl.viz.vote_timeline(answer, answer.tokens)
    with pytest.raises(RadiantError, match="trace=True"):
        rl.viz.vote_timeline(rl.Trace(False), ["one"])
    with pytest.raises(InvalidArgumentError, match="got 1, and the trace reaches position 1"):
        rl.viz.vote_timeline(small_trace(), ["one"])
    with pytest.raises(InvalidArgumentError, match="The trace has no call 3"):
        rl.viz.colored_tokens(small_trace(), ["one", "two"], call=3)
    with pytest.raises(InvalidArgumentError, match="The trace has no row 1"):
        rl.viz.colored_tokens(small_trace(), ["one", "two"], row=1)
    with pytest.raises(InvalidArgumentError, match="`by` must be one of"):
        rl.viz.colored_tokens(small_trace(), ["one", "two"], by="colour")
    with pytest.raises(DataError, match="must be finite"):
        rl.viz.attention(replace(answer.patterns, weights=answer.patterns.weights * torch.nan))
    with pytest.raises(InvalidArgumentError, match="`max_new_tokens`"):
        rl.trace_answer(model, PROMPT, steering, max_new_tokens=0)
    other = replace(steering, meta={**steering.meta, "model": {"weights": "other"}})
    with pytest.raises(ModelMismatchError):
        rl.trace_answer(model, PROMPT, other)
