from __future__ import annotations

import pytest

import radiant_lens as rl
from radiant_lens.viz.explorer.engine import Engine


@pytest.fixture
def sent():
    return []


@pytest.fixture
def engine(explorer, sent):
    return Engine(explorer, sent.append)


def drain(engine: Engine) -> None:
    while engine.turn():
        pass


def kinds(sent: list) -> list[str]:
    return [message["kind"] for message in sent]


def answers(sent: list) -> list[str]:
    return [message["text"] for message in sent if message["kind"] == "answer"]


def test_a_front_end_is_shown_all_and_gets_two_answers(engine, sent):
    assert not engine.turn() and not sent
    engine.receive({"kind": "hello"})
    drain(engine)
    assert kinds(sent)[:3] == ["snapshot", "settings", "begin"]
    assert kinds(sent).count("answer") == 2
    # The data were read, too, once nothing else was wanted.
    assert engine.explorer.scores.complete and kinds(sent)[-1] == "snapshot"
    first = [m for m in sent if m["kind"] == "token"]
    sent.clear()
    engine.receive({"kind": "hello"})
    drain(engine)
    assert [m for m in sent if m["kind"] == "token"] == first


def test_a_newer_request_ends_the_older_answer(engine, sent):
    engine.receive({"kind": "hello"})
    for _ in range(4):
        engine.turn()
    assert not answers(sent)
    engine.receive({"kind": "set", "changes": {"strength": 3}})
    engine.receive({"kind": "set", "changes": {"strength": 2}})
    drain(engine)
    assert {m["run"] for m in sent if m["kind"] == "answer"} == {3}
    assert engine.explorer.settings.strength == 2


def test_stop_ends_an_answer(engine, sent):
    engine.receive({"kind": "hello"})
    engine.turn()
    engine.turn()
    engine.receive({"kind": "stop"})
    drain(engine)
    assert not answers(sent) and "stopped" in kinds(sent)


def test_a_newer_request_ends_the_search_for_a_strength(engine, sent, monkeypatch):
    engine.receive({"kind": "hello"})
    drain(engine)
    measured: list[float] = []
    at_kl = rl.Steering.at_kl

    def interrupted(self, model, data, budget):
        measured.append(budget)
        engine.receive({"kind": "set", "changes": {"strength": 0.5}})
        return at_kl(self, model, data, budget)

    monkeypatch.setattr(rl.Steering, "at_kl", interrupted)
    sent.clear()
    engine.receive({"kind": "set", "changes": {"budget": 0.1}})
    drain(engine)
    assert measured == [0.1] and "measuring" in kinds(sent)
    assert engine.explorer.settings.strength == 0.5 and engine.explorer.settings.budget is None
    assert len(answers(sent)) == 2 and "error" not in kinds(sent)


def test_a_budget_shows_its_strength_before_the_answer(engine, sent):
    engine.receive({"kind": "set", "changes": {"budget": 0.1}})
    drain(engine)
    order = kinds(sent)
    assert order.index("measuring") < order.index("begin") < order.index("token")
    settings = [m["settings"] for m in sent if m["kind"] == "settings"]
    assert settings[0]["strength"] == 1 and settings[-1]["strength"] == engine.explorer.settings.strength != 1


def test_a_refusal_is_a_message_and_the_explorer_goes_on(engine, sent):
    engine.receive({"kind": "set", "changes": {"gate": "all"}})
    engine.receive({"kind": "set", "changes": [1]})
    engine.receive({"kind": "head", "site": ["L0", 1]})
    engine.receive({"kind": "head", "site": [9, 1]})
    engine.receive({"kind": "set", "changes": {"prompt": "capital " * 2000}})
    for nonsense in (None, 3, {"kind": "delete"}, {}):
        engine.receive(nonsense)
    drain(engine)
    errors = [m["message"] for m in sent if m["kind"] == "error"]
    assert [error.split(";")[0].split(" (")[0] for error in errors[:3]] == [
        "`gate` must be one of 'none', 'head', 'vote', 'layer', 'joint'",
        "`changes` must be settings by their names",
        "`site` must be a layer and a head",
    ]
    assert "`layer` must be a whole number" in errors[3] and "context holds" in errors[4] and len(errors) == 5
    engine.receive({"kind": "set", "changes": {"prompt": "Q : what is the capital of dupeka ? A :"}})
    drain(engine)
    assert len(answers(sent)) == 2


def test_a_head_is_shown_again_when_it_is_taken_out(engine, sent):
    engine.receive({"kind": "head", "site": [1, 5]})
    engine.receive({"kind": "set", "changes": {"off": ["L1H5"]}})
    drain(engine)
    shown = [m["head"] for m in sent if m["kind"] == "head"]
    assert [head["on"] for head in shown] == [True, False, False]
    assert not shown[1]["top_tokens"] and shown[2]["top_tokens"]


def test_an_empty_prompt_waits_for_one(engine, sent):
    engine.receive({"kind": "set", "changes": {"prompt": "  "}})
    drain(engine)
    assert "idle" in kinds(sent)
    assert "begin" not in kinds(sent) and "error" not in kinds(sent)
