from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from plain_models import random_steering

import radiant_lens as rl
from radiant_lens.errors import ConvergenceError, DataError, InvalidArgumentError, UnknownNameError
from radiant_lens.evaluation import generate_answers
from radiant_lens.models.predictions import token_kl
from radiant_lens.models.tokens import encode
from radiant_lens.viz.explorer import Explorer, Source
from radiant_lens.viz.explorer.messages import event_message, snapshot
from radiant_lens.viz.explorer.prompts import examples, prompt_reader
from radiant_lens.viz.explorer.streams import Answer, Token, TokenKL

CHAT = (
    "{% for turn in messages %}{{ turn['role'] }} : {{ turn['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}A :{% endif %}"
)


def texts(explorer: Explorer) -> dict[str, str]:
    return {event.side: event.text for event in explorer.answer() if isinstance(event, Answer)}


def tokens(explorer: Explorer, side: str) -> list[Token]:
    return [event for event in explorer.answer() if isinstance(event, Token) and event.side == side]


def generated(model, explorer: Explorer) -> str:
    options = {"max_new_tokens": explorer.settings.max_new_tokens, "temperature": 0.0, "stop": explorer.data.stop}
    return generate_answers(model, [explorer.settings.prompt], **options)[0][0]


@pytest.mark.parametrize("strength", [0.0, 0.7, 3.0])
def test_answers_are_those_of_generate_answers(model, explorer, strength):
    explorer.set(strength=strength)
    answers = texts(explorer)
    assert answers["plain"] == generated(model, explorer)
    with rl.steer(model, explorer.steering):
        assert answers["steered"] == generated(model, explorer)
    assert (answers["plain"] == answers["steered"]) == (strength == 0)


def test_tokens_are_the_pieces_of_the_answer(explorer):
    explorer.set(strength=3)
    events = list(explorer.answer())
    for side in ("plain", "steered"):
        end = next(e for e in events if isinstance(e, Answer) and e.side == side)
        pieces = [e.text for e in events if isinstance(e, Token) and e.side == side]
        assert "".join(pieces[: end.n_tokens]).strip() == end.text
        assert end.ended in ("stop", "limit")


def test_the_kl_is_that_between_two_passes_over_the_whole_text(model, explorer):
    explorer.set(strength=1.5)
    events = list(explorer.answer())
    n = sum(isinstance(e, Token) and e.side == "steered" for e in events)
    streamed = [value for e in events if isinstance(e, TokenKL) for value in e.values]
    assert len(streamed) == n > 4
    prompt = encode(model, [explorer.settings.prompt])[0].ids
    options = {"max_new_tokens": n, "do_sample": False, "return_type": "tokens", "verbose": False}
    with rl.steer(model, explorer.steering), torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), **options)
    start = len(prompt) - 1
    with torch.no_grad():
        plain = model(ids)[0, start:-1].log_softmax(-1)
        with rl.steer(model, explorer.steering, start=start):
            steered = model(ids)[0, start:-1].log_softmax(-1)
    assert torch.allclose(torch.tensor(streamed), token_kl(plain, steered), rtol=1e-2, atol=1e-5)
    assert max(streamed) > 0.01
    explorer.set(strength=0)
    assert max(v for e in explorer.answer() if isinstance(e, TokenKL) for v in e.values) < 1e-5


def test_votes_and_lengths_are_those_of_the_trace(model, explorer, facts):
    explorer.set(strength=0.8)
    streamed = tokens(explorer, "steered")
    traced = rl.trace_answer(model, explorer.settings.prompt, explorer.steering, max_new_tokens=8, stop=facts.stop)
    table = traced.trace.to_dataframe()
    for i, token in enumerate(streamed):
        rows = table[table["position"] == traced.n_prompt - 1 + i]
        assert {f"L{r.layer}H{r.head}" for r in rows[rows["vote"]].itertuples()} == set(map(str, token.votes))
        assert {f"L{r.layer}H{r.head}" for r in rows[rows["gated"]].itertuples()} == set(map(str, token.edited))
        assert token.displacement == pytest.approx(rows["displacement"].sum(), rel=1e-3)
    assert any(token.votes for token in streamed)


def test_the_plain_model_is_watched_and_not_edited(model, explorer):
    plain = tokens(explorer, "plain")
    assert any(token.votes for token in plain)
    assert all(not token.edited and token.displacement == 0 for token in plain)
    assert texts(explorer)["plain"] == generated(model, explorer)


def test_the_plain_answer_is_kept_until_the_prompt_changes(explorer, monkeypatch):
    first = texts(explorer)["plain"]
    passes: list[int] = []
    model = explorer.model.original_model
    handle = model.register_forward_pre_hook(lambda module, args: passes.append(1))
    try:
        explorer.set(strength=2, gate="none", off=["L0H3"])
        n_tokens = len(tokens(explorer, "steered"))
        # One pass for each token, and one of the plain model for every four.
        assert len(passes) == n_tokens + -(-n_tokens // 4)
        assert texts(explorer)["plain"] == first
        explorer.set(prompt="Q : what is the metal of dupeka ? A :")
        assert texts(explorer)["plain"] != first
    finally:
        handle.remove()


def test_between_two_tokens_the_model_carries_no_hook(model, explorer):
    prompt = torch.tensor([encode(model, [explorer.settings.prompt])[0].ids])
    with torch.no_grad():
        before = model(prompt)
        for event in explorer.answer():
            assert torch.equal(model(prompt), before), event


STATES = {
    "as it is": {},
    "strength and gate": {"strength": 1.7, "gate": "none"},
    "one head out": {"off": ["L0H3"], "strength": 8.0},
    "few heads in": {"off": ["L0H3", "L1H0", "L1H5", "L2H2", "L2H7"], "strength": 40.0, "gate": "none"},
    "every head out": {"off": "L0H3 L1H0 L1H5 L2H2 L2H7 L3H1"},
    "a budget": {"budget": 1.0, "gate": "none"},
    "a text with quotes": {
        "prompt": "Q : 'what'\nis \"the\" capital of dupeka ? A :",
        "max_new_tokens": 4,
        "strength": 20.0,
    },
}


@pytest.mark.parametrize("name", STATES)
def test_the_code_gives_the_same_texts(model, edits, explorer, name, capsys):
    explorer.set(**STATES[name])
    answers = texts(explorer)
    names = {"model": model, "steering": edits}
    exec(explorer.code(), names)
    assert {side: names[side] for side in answers} == answers
    assert capsys.readouterr().out.splitlines()[-1] == answers["steered"].splitlines()[-1]
    assert (answers["plain"] == answers["steered"]) == (name == "every head out")


@pytest.mark.parametrize("form", ["chat", "rendered"])
def test_the_code_of_a_chat_gives_the_same_texts(model, edits, facts, monkeypatch, form):
    monkeypatch.setattr(model.tokenizer, "chat_template", CHAT)
    explorer = Explorer(model, edits, facts, max_new_tokens=6)
    text = "what is the capital of dupeka ?"
    explorer.set(prompt=text if form == "chat" else f"Q : {text} A :", form=form, strength=2)
    answers, names = texts(explorer), {"model": model, "steering": edits}
    exec(explorer.code(), names)
    assert {side: names[side] for side in answers} == answers
    assert ("ChatTemplate(model.tokenizer)" in explorer.code()) == (form == "chat")


def test_the_code_of_a_command_loads_model_and_steering(edits, facts, model, tmp_path):
    edits.save(tmp_path / "edits")
    explorer = Explorer(model, edits, facts, source=Source("tiny", str(tmp_path / "edits"), {"device": "cpu"}))
    explorer.set(strength=2, max_new_tokens=6)
    answers, names = texts(explorer), {}
    exec(explorer.code(), names)
    assert {side: names[side] for side in answers} == answers


def test_a_budget_is_met_by_at_kl_and_measured_once(model, edits, explorer, monkeypatch):
    explorer.set(budget=0.1, off=["L1H5"])
    assert explorer.needs_strength
    strength = explorer.meet_budget()
    kept = edits.select([s for s in edits.sites if str(s) != "L1H5"])
    assert kept.at_kl(model, explorer._kl_sample, 0.1).meta["strength"] == strength == explorer.settings.strength
    monkeypatch.setattr(rl.Steering, "at_kl", None)
    explorer.set(strength=1)
    assert explorer.settings.budget is None
    explorer.set(budget=0.1)
    assert explorer.meet_budget() == strength
    explorer.set(gate="none")
    assert explorer.needs_strength


def test_a_budget_that_cannot_be_met_is_an_error(model, facts):
    still = random_steering(4, 8, 24, sites=[(0, 0)], strength=0.0)
    explorer = Explorer(model, still, facts)
    explorer.set(budget=0.5)
    with pytest.raises(ConvergenceError, match="No strength gives a KL of 0.5"):
        list(explorer.answer())


REFUSALS = [
    ({"strenght": 1}, UnknownNameError, "'strenght' is not a known setting of the explorer: did you mean 'strength'"),
    ({"strength": "x"}, InvalidArgumentError, "`strength` must lie between .*; got 'x'"),
    ({"strength": float("nan")}, InvalidArgumentError, "`strength` must lie between .*; got nan"),
    ({"budget": 0}, InvalidArgumentError, "`budget` must lie strictly between 0 and 10; got 0"),
    (
        {"gate": "all"},
        InvalidArgumentError,
        "`gate` must be one of 'none', 'head', .* 'joint'; got 'all'",
    ),
    ({"off": ["L0H0"]}, InvalidArgumentError, "`off` must be some of the 6 edited heads, such as L0H3; got L0H0"),
    ({"off": 3}, InvalidArgumentError, r"`off` must be heads such as \['L0H3'\]; got 3"),
    ({"off": ["first"]}, InvalidArgumentError, "`heads` must be pairs"),
    ({"form": "chat"}, InvalidArgumentError, "`form` must be one of 'text'; got 'chat'"),
    ({"prompt": 3}, InvalidArgumentError, "`prompt` must be a str; got int 3"),
    ({"max_new_tokens": 0}, InvalidArgumentError, "`max_new_tokens` must be a whole number between 1 and 400; got 0"),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSALS)
def test_a_refused_change_leaves_the_settings(explorer, changes, error, message):
    before = explorer.settings
    with pytest.raises(error, match=message):
        explorer.set(
            max_new_tokens=changes.get("max_new_tokens", 3),
            **{k: v for k, v in changes.items() if k != "max_new_tokens"},
        )
    assert explorer.settings == before


def test_what_needs_data_says_so(model, edits):
    explorer = Explorer(model, edits)
    assert explorer.examples == () and explorer.settings.prompt == ""
    with pytest.raises(InvalidArgumentError, match="`budget` cannot be set to 0.1: it is measured on data, .* without"):
        explorer.set(budget=0.1)
    assert explorer.head((0, 3)).no_tokens == "Tokens are ranked on data: rl.explore(model, steering, data)."
    with pytest.raises(InvalidArgumentError, match="`prompt` must hold some text to continue; got none"):
        list(explorer.answer())
    bad = rl.Dataset("bad", (rl.Statement("Q : x A : y .", 1),), ())
    assert "data set 'bad' has no desirable statements" in Explorer(model, edits, bad).allowed.budget


def test_gates_need_a_detector_and_strengths_a_map(model, edits):
    scores = replace(edits.scores, weights=torch.zeros_like(edits.scores.weights))
    blind = Explorer(model, replace(edits, scores=scores, gate="none"))
    with pytest.raises(InvalidArgumentError, match="`gate` cannot be 'vote': this steering was fitted without a detec"):
        blind.set(gate="vote")
    assert not blind.allowed.gates["none"]


def test_other_objects_are_refused(model, edits, facts):
    with pytest.raises(InvalidArgumentError, match="`steering` must be a Steering; got str 'folder'"):
        Explorer(model, "folder")
    with pytest.raises(InvalidArgumentError, match="`data` must be a Dataset or a NoneType; got str 'tiny-facts'"):
        Explorer(model, edits, "tiny-facts")
    with pytest.raises(InvalidArgumentError, match="`effects` must be a HeadEffects or a NoneType; got list"):
        Explorer(model, edits, facts, effects=[])
    with pytest.raises(InvalidArgumentError, match="`model` must be a TransformerBridge; got str 'tiny'"):
        Explorer("tiny", edits)


def test_a_prompt_beyond_the_context_is_an_error(explorer):
    explorer.set(prompt="capital " * 2000)
    with pytest.raises(DataError, match="the model's context holds"):
        list(explorer.answer())


def test_scores_are_those_of_collected_activations(model, edits, explorer):
    assert explorer.head((1, 5)).no_tokens == "The texts have not been read yet."
    counts = list(explorer.scores.read(model))
    assert explorer.scores.complete and counts == sorted(counts) and len(counts) > 3
    cache = rl.collect(model, explorer.scores.statements)
    scores = torch.einsum("elhd,lhd->elh", cache.z.float(), edits.scores.weights.float()) + edits.scores.biases.float()
    details = explorer.head((1, 5))
    assert explorer.scores.n_tokens == len(cache)
    assert details.top_tokens[0].score == pytest.approx(float(scores[:, 1, 5].max()), rel=1e-3)
    flags = scores >= 0
    assert details.data_risk.fpr == pytest.approx(float(flags[cache.labels == 0, 1, 5].double().mean()), abs=2e-3)
    assert details.data_risk.fnr == pytest.approx(float((~flags)[cache.labels == 1, 1, 5].double().mean()), abs=2e-3)
    best = int(scores[:, 1, 5].argmax())
    text = cache.texts[int(cache.text_index[best])]
    top = details.top_tokens[0]
    assert f"{top.before}{top.token}{top.after}" in text and top.label == int(cache.labels[best])


def test_reading_that_was_left_is_taken_up(model, explorer, edits, facts):
    whole = Explorer(model, edits, facts)
    list(whole.scores.read(model))
    for _ in range(3):
        next(explorer.scores.read(model))
    list(explorer.scores.read(model))
    assert explorer.scores.n_tokens == whole.scores.n_tokens
    assert explorer.head((2, 7)).top_tokens == whole.head((2, 7)).top_tokens


def test_a_head_has_its_risk_and_its_effect(model, edits, explorer, facts):
    detector = {"L0H3": {"fpr": 0.1, "fnr": 0.2, "risk": 0.3}, "L1H0": "?"}
    recorded = replace(edits, meta={**edits.meta, "metrics": {"detector": detector}})
    effects = rl.head_effects(model, facts.head(4), edits)
    details = Explorer(model, recorded, effects=effects).head((0, 3))
    assert (details.risk.fpr, details.risk.fnr, details.risk.risk) == (0.1, 0.2, 0.3)
    assert details.effect[0] == pytest.approx(float(effects.estimated[0]))
    assert explorer.head((0, 3)).risk is None and explorer.head((0, 3)).effect is None
    assert details.edited and details.on
    assert not explorer.head((0, 4)).edited
    with pytest.raises(InvalidArgumentError, match="`layer` must be a whole number between 0 and 3; got 9"):
        explorer.head((9, 0))


def test_a_detector_gives_the_risk_of_every_head(model, edits, gaussian_cache):
    train, validation = (gaussian_cache(60, n_layers=4, n_heads=8, d_head=24, seed=seed) for seed in (0, 1))
    detector = rl.RiskAwareDetector(max_iterations=2).fit(train, validation=validation)
    explorer = Explorer(model, edits, detector=detector)
    assert explorer.head((3, 7)).risk.risk == pytest.approx(float(detector.head_risk_[3, 7]))
    risk = snapshot(explorer)["risk"]
    assert risk["on"] == "the detector's validation data"
    assert torch.tensor(risk["values"]).shape == (4, 8)


def test_examples_come_from_the_data(model, facts, explorer):
    prompts = {p.text: p for p in facts.prompts}
    assert 6 < len(explorer.examples) <= 12
    assert all(prompts[e.prompt].best_answer == e.right_answer for e in explorer.examples)
    only_statements = rl.Dataset("s", facts.atoms[:4], ())
    beginnings = examples(only_statements, prompt_reader(model, None))
    assert {e.prompt for e in beginnings} <= {s.text[: s.answer_start].rstrip() for s in facts.atoms[:4]}


def test_messages_and_snapshot_are_json(explorer):
    for event in explorer.answer():
        json.dumps(event_message(event), allow_nan=False)
    shown = json.loads(json.dumps(snapshot(explorer), allow_nan=False))
    assert shown["sites"] == ["L0H3", "L1H0", "L1H5", "L2H2", "L2H7", "L3H1"]
    assert shown["settings"]["off"] == []
