"""`CAAPolicy`: the residual stream of one layer moves by the difference of its class means, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import ConvergenceError, DataError, InvalidArgumentError, LeakageError, NothingToEditError
from radiant_lens.policies import CAAPolicy, caa


@pytest.fixture(scope="module")
def parts(facts):
    return [replace(part.head(n), contexts=None) for part, n in zip(facts.split((0.6, 0.2, 0.2), seed=0), (30, 12, 12))]


def stream(model, text, layer, steering=None):
    """The residual stream after attention at the positions of a text."""
    values = []
    hooks = [(f"blocks.{layer}.hook_resid_mid", lambda value, hook: values.append(value.detach().clone()))]
    tokens = model.to_tokens(text)
    edits = [] if steering is None else steering.hooks(start=torch.zeros(1, dtype=torch.long))
    with torch.no_grad(), model.hooks(fwd_hooks=[*edits, *hooks]):
        model(tokens)
    return values[0][0]


def naive_difference(model, data, layer):
    """Means over the positions that predict tokens of the answers, text by text."""
    sums = {0: [], 1: []}
    for statement in data.statements:
        n_prompt = model.to_tokens(statement.text[: statement.answer_start]).shape[1]
        sums[statement.label].append(stream(model, statement.text, layer)[n_prompt - 1 : -1])
    desirable, undesirable = (torch.cat(sums[label]).double().mean(0) for label in (0, 1))
    return desirable - undesirable


def test_the_stream_of_the_layer_moves_by_the_difference_of_class_means(model, parts):
    train = parts[0].head(6)
    steering = CAAPolicy(layer=2, alpha=1.5).fit(model, train)
    text = train.statements[0].text
    moved = (stream(model, text, 2, steering) - stream(model, text, 2)).double()
    expected = 1.5 * naive_difference(model, train, 2)
    torch.testing.assert_close(moved, expected.expand_as(moved), rtol=1e-3, atol=1e-3 * float(expected.norm()))
    assert float(expected.norm()) > 0.1
    assert {site.layer for site in steering.sites} == {2}
    # Before the layer nothing moves.
    assert torch.equal(stream(model, text, 1, steering), stream(model, text, 1))


def test_the_layer_is_the_one_that_gains_most_on_validation_text(model, parts, monkeypatch):
    train, validation, _ = parts
    scores = {0: 0.1, 1: 0.3, 2: 0.2, 3: 0.0}
    tried = []

    def score(model, prompts, steering, **options):
        tried.append(steering.layers[0])
        return {"mc2": SimpleNamespace(mean=lambda: scores[steering.layers[0]])}

    monkeypatch.setattr(caa, "score_choices", score)
    steering = CAAPolicy(n_tried=3).fit(model, train, validation=validation)
    assert len(set(tried)) == 3
    assert steering.layers == (max(tried, key=scores.__getitem__),)
    assert steering.meta["policy"]["layer"] == steering.layers[0]
    assert set(train.groups) | set(validation.groups) <= set(steering.meta["seen_groups"])


def test_layers_whose_budget_is_not_met_are_passed_over(model, parts, monkeypatch):
    def never(self, *args, **options):
        raise ConvergenceError("no strength")

    monkeypatch.setattr(rl.Steering, "at_kl", never)
    with pytest.raises(ConvergenceError, match="layer 0: no strength"):
        CAAPolicy(n_tried=4).fit(model, parts[0], validation=parts[1])


def test_under_the_vote_of_its_layer_all_heads_move_or_none(model, experiment):
    steering = CAAPolicy(layer=1, gate="layer").fit(model, experiment.train.head(12), detector=experiment.detector)
    gated = steering.displace(experiment.train_cache.z[:400, 1], 1).gated
    assert torch.equal(gated.all(-1), gated.any(-1))
    assert bool(gated.any())
    assert not bool(gated.all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 9}, "`layer` must be a whole number between 0 and 3; got 9"),
        ({"alpha": 0}, "`alpha` must lie strictly above 0; got 0"),
        ({"gate": "head"}, "`gate` must be one of 'none', 'layer'; got 'head'"),
        ({"layer": 1, "gate": "layer"}, "`gate` 'layer' needs a detector"),
        ({"budget": 0}, "`budget` must lie strictly above 0"),
        ({"n_tried": 0}, "`n_tried` must be a whole number of at least 1"),
        ({}, "Without a `layer`, `fit` needs `validation` data to choose one"),
    ],
)
def test_what_is_out_of_range_is_refused(model, parts, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        CAAPolicy(**options).fit(model, parts[0])


def test_data_that_cannot_serve_are_refused(model, parts):
    train, validation, _ = parts
    with pytest.raises(LeakageError, match="training and validation must not share groups"):
        CAAPolicy().fit(model, train, validation=train)
    one_class = replace(train, atoms=tuple(s for s in train.atoms if s.label == 0))
    with pytest.raises(DataError, match="the training data"):
        CAAPolicy(layer=1).fit(model, one_class)
    with pytest.raises(DataError, match="there is no gain to differentiate"):
        CAAPolicy().fit(model, train, validation=replace(validation, bare_prompts=()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("singular", "the output projection of layer 1 does not reach every direction"),
        ("normed", "layer 1 normalises the output of its attention before adding it"),
        ("parallel", "layer 1 has no residual stream between attention and MLP"),
    ],
)
def test_models_whose_heads_cannot_write_every_vector_are_refused(change, reason):
    projection = torch.eye(6).reshape(2, 3, 6)
    if change == "singular":
        projection[1, 2] = 0
    block = SimpleNamespace(attn=SimpleNamespace(W_O=projection), **({"ln1_post": None} if change == "normed" else {}))
    hooks = {} if change == "parallel" else {"blocks.1.hook_resid_mid": None}
    model = SimpleNamespace(blocks=[block, block], hook_dict=hooks)
    with pytest.raises(NothingToEditError, match=reason):
        caa._right_inverse(model, 1)
    sound = SimpleNamespace(attn=SimpleNamespace(W_O=2 * torch.eye(6).reshape(2, 3, 6)))
    whole = SimpleNamespace(blocks=[sound, sound], hook_dict={"blocks.1.hook_resid_mid": None})
    assert torch.allclose(caa._right_inverse(whole, 1), torch.eye(6).double() / 2)
