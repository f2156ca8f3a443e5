"""`side_effects` on the embedded model: every value against a computation of its own, and every refusal."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import rich.progress
import torch

import radiant_lens as rl
from radiant_lens import distributed
from radiant_lens.datasets import ChatTemplate
from radiant_lens.datasets.harmless import world_requests, world_statements
from radiant_lens.errors import DataError, InvalidArgumentError, ModelMismatchError
from radiant_lens.evaluation import generate_answers, score_choices, score_statements
from radiant_lens.evaluation.side_effects import SideEffects, side_effects
from radiant_lens.evaluation.side_effects.inputs import choose_template, read_texts


@pytest.fixture(scope="module")
def questions(facts):
    """The plain questions of 20 countries."""
    return rl.Dataset("questions", (), facts.bare_prompts[:20])


@pytest.fixture(scope="module")
def strong(experiment):
    """A steering that changes everything."""
    return rl.ITIPolicy(alpha=5.0, n_heads=24).fit(experiment.train_cache, experiment.detector)


@pytest.fixture(scope="module")
def nothing(experiment, strong):
    """A steering that edits nothing."""
    return rl.IdentityPolicy(strong).fit(experiment.train_cache, experiment.detector)


@pytest.fixture(scope="module")
def result(model, strong, questions) -> SideEffects:
    return side_effects(model, strong, benchmark=questions, max_new_tokens=20)


def test_neutral_text_is_scored_as_by_score_statements(model, strong, result):
    statements = world_statements()
    plain, steered = (score_statements(model, statements, s) for s in (None, strong))
    nats = [float(-side.log_prob.sum() / side.n_tokens.sum()) for side in (plain, steered)]
    effect = result.metrics["cross_entropy"]
    assert [effect.plain.value, effect.steered.value] == pytest.approx(nats)
    assert effect.difference.value == pytest.approx(nats[1] - nats[0])
    assert result.metrics["perplexity"].steered.value == pytest.approx(math.exp(nats[1]))
    assert result.metrics["kl"].steered.value == pytest.approx(float(steered.kl.sum() / steered.n_tokens.sum()))
    # ITI has no gate.
    assert result.metrics["edited_share"].steered.value == 1
    assert effect.n_groups == len({s.group for s in statements}) == 60


def test_answers_are_those_of_generation(model, strong, result):
    prompts = world_requests()
    sampling = {"max_new_tokens": 20, "temperature": 0, "stop": (".",)}
    assert result.answers["plain"].tolist() == [a for (a,) in generate_answers(model, prompts, **sampling)]
    with rl.steer(model, strong):
        assert result.answers["steered"].tolist() == [a for (a,) in generate_answers(model, prompts, **sampling)]
    assert result.answers["request"].tolist() == [p.text for p in prompts]
    assert len(result.changed_answers()) > 20
    assert len(result.changed_answers(3)) == 3


def test_accuracy_is_that_of_score_choices(model, strong, questions, result):
    effect = result.metrics["accuracy"]
    for side, steering in ((effect.plain, None), (effect.steered, strong)):
        assert side.value == score_choices(model, questions.prompts, steering)["mc1"].mean()
    assert effect.plain.value != effect.steered.value


def test_a_strong_steering_is_seen_and_none_is_not(model, nothing, result):
    for name in ("cross_entropy", "perplexity", "kl", "edited_share", "repetition", "dist_1"):
        assert result.metrics[name].reading == "changed", name
    same = side_effects(model, nothing, max_new_tokens=5)
    assert {effect.reading for effect in same.metrics.values()} == {"no clear change"}
    assert all(effect.difference.value == 0 for effect in same.metrics.values())
    assert same.changed_answers().empty
    assert "accuracy" not in same.metrics


def test_values_do_not_depend_on_the_batches(model, strong, questions):
    texts = [s.text for s in world_statements()[:20]]
    requests = rl.Dataset("few", (), tuple(world_requests()[:12]), stop=(".",))
    together, alone = (
        side_effects(
            model, strong, texts, requests=requests, benchmark=questions.head(12), max_new_tokens=20, max_tokens=n
        )
        for n in (None, 1)
    )
    assert alone.answers.equals(together.answers)
    for name, effect in together.metrics.items():
        for mine, other in zip(effect[:3], alone.metrics[name][:3]):
            assert mine == pytest.approx(other, abs=1e-5), name


def test_texts_and_requests_of_the_caller(model, strong):
    texts = [s.text for s in world_statements()[:8]]
    requests = rl.Dataset("mine", (), tuple(world_requests()[:3]), stop=(".",))
    mine = side_effects(model, strong, texts, requests=requests, max_new_tokens=5)
    scored = score_statements(model, [rl.Statement(text, 0, text) for text in texts])
    expected = float(-scored.log_prob.sum() / scored.n_tokens.sum())
    assert mine.metrics["cross_entropy"].plain.value == pytest.approx(expected)
    assert mine.metrics["words"].n_groups == 3
    assert mine.metrics["words"].reading == "too few groups"
    assert (mine.settings["n_texts"], mine.settings["n_requests"]) == (8, 3)


def test_only_desirable_statements_of_a_data_set_are_neutral(model, facts):
    part = facts.head(10)
    texts = read_texts(model, part)
    assert len(texts) == sum(s.label == 0 for s in part.statements) < len(part.statements)


def test_a_file_of_multiple_choice_questions(model, strong, tmp_path, facts):
    prompts = facts.bare_prompts[:12]
    path = tmp_path / "slice.jsonl"
    rows = [
        {"question": p.text.removeprefix("Q : ").removesuffix(" A :"), "answer": 1,
         "choices": [p.incorrect_answers[0], p.correct_answers[0]]}
        for p in prompts
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    from_file = side_effects(
        model, strong, benchmark=path, template="Q : {question} A : {answer}", max_new_tokens=2
    ).metrics["accuracy"]
    single = [replace(p, correct_answers=p.correct_answers[:1], incorrect_answers=p.incorrect_answers[:1],
                      best_answer="", mc1_incorrect=None) for p in prompts]  # fmt: skip
    assert from_file.plain.value == score_choices(model, single)["mc1"].mean()
    assert from_file.n_groups == 12


def test_the_template_is_the_tokenizers_own(model, monkeypatch):
    assert choose_template(model, None).prompt("who?") == "Q: who? A:"
    assert choose_template(model, "Say {question} so {answer}").prompt("who?") == "Say who? so"
    chat = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
    )
    monkeypatch.setattr(model.tokenizer, "chat_template", chat)
    assert isinstance(choose_template(model, None), ChatTemplate)
    assert choose_template(model, None).prompt("who?") == "[user]who?[bot]"


def test_english_is_for_tokenizers_that_have_words_for_it(model):
    assert read_texts(model, None) == world_statements()
    # A tokenizer without an unknown token can write anything.
    any_text = SimpleNamespace(tokenizer=SimpleNamespace(unk_token_id=None))
    assert read_texts(any_text, None)[0].group == "neutral-01"


def test_tables(result):
    frame = result.to_dataframe()
    assert frame["metric"].tolist() == list(result.metrics)
    row = frame.set_index("metric").loc["kl"]
    effect = result.metrics["kl"]
    assert (row["plain"], row["steered"], row["low"], row["high"]) == (0, effect.steered.value, *effect.difference[1:])
    table = result.to_markdown().splitlines()
    assert len(table) == 2 + len(result.metrics)
    assert table[4].startswith("| KL from plain to steered on neutral text, nats a token | 0.000 | ")
    assert f"{effect.difference:+.3f}" in table[4]
    assert table[4].endswith("| changed |")
    assert repr(result).startswith("SideEffects(10 metrics, changed: cross_entropy +")
    assert repr(result).endswith("of 30 answers differ)")


def test_a_notebook_shows_every_metric(result):
    page = result._repr_html_()
    assert page.count("<tr>") == 1 + len(result.metrics)
    for name, effect in result.metrics.items():
        assert f">{name}<" in page and f">{effect.difference:+.3f}<" in page
    assert f"{len(result.changed_answers())} of 30 answers to harmless requests differ" in page


def test_progress_is_shown_step_by_step(model, nothing, monkeypatch):
    shown = []

    class Recorded(rich.progress.Progress):
        def update(self, task, **values):
            super().update(task, **values)
            shown.append((values.get("description"), self.tasks[task].completed))

    monkeypatch.setattr(distributed, "Progress", Recorded)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    side_effects(model, nothing, max_new_tokens=1, progress=True)
    assert shown == [("side effects: neutral text", 0), ("side effects: answers", 1)]
    side_effects(model, nothing, max_new_tokens=1)
    assert len(shown) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": "one text"}, InvalidArgumentError, "`data` must be a list; got 'one text'"),
        ({"data": [1]}, InvalidArgumentError, "`data` must hold str alone; got 1"),
        ({"data": []}, DataError, "The neutral text .`data`. has no examples"),
        ({"requests": "hello"}, InvalidArgumentError, "`requests` must be a list; got 'hello'"),
        ({"requests": []}, DataError, "`requests` has no examples"),
        ({"benchmark": 7}, InvalidArgumentError, "`benchmark` must be a Dataset or a file of questions; got 7"),
        ({"benchmark": "missing.jsonl"}, DataError, "There is no file 'missing.jsonl'"),
        ({"max_new_tokens": 0}, InvalidArgumentError, "`max_new_tokens` must be a whole number of at least 1; got 0"),
        ({"temperature": -1}, InvalidArgumentError, "`temperature` must lie at or above 0; got -1"),
        ({"seed": -1}, InvalidArgumentError, "`seed` must be"),
        ({"max_tokens": 0}, InvalidArgumentError, "`max_tokens` must be a whole number of at least 1; got 0"),
        ({"template": "no placeholders"}, InvalidArgumentError, "`template` must hold '{question}'"),
        ({"data": ["the " * 300]}, DataError, "Text 0 has .* tokens; the model's context holds 256"),
        ({"requests": ["the " * 250]}, DataError, "with 40 new ones that is more than the 256"),
    ],
)
def test_bad_input_is_refused_before_any_pass(model, strong, options, error, message):
    passes = []
    handle = model.register_forward_hook(lambda *arguments: passes.append(1))
    try:
        with pytest.raises(error, match=message):
            side_effects(model, strong, **options)
    finally:
        handle.remove()
    assert not passes


def test_other_objects_are_refused(model, strong, facts):
    with pytest.raises(InvalidArgumentError, match="`steering` must be a"):
        side_effects(model, None)
    with pytest.raises(InvalidArgumentError, match="`model` must be a"):
        side_effects("tiny", strong)
    other = replace(strong, meta={**strong.meta, "model": {**strong.meta["model"], "architecture": "other"}})
    with pytest.raises(ModelMismatchError, match="made for model 'tiny'"):
        side_effects(model, other)
    bare = rl.Dataset("bare", (), tuple(replace(p, incorrect_answers=()) for p in facts.bare_prompts[:3]))
    with pytest.raises(DataError, match="`benchmark` has no question with correct and incorrect answers"):
        side_effects(model, strong, benchmark=bare)
    undesirable = rl.Dataset("bad", tuple(s for s in facts.atoms if s.label == 1))
    with pytest.raises(DataError, match="The neutral text"):
        side_effects(model, strong, undesirable)


def test_sampled_answers_are_paired_by_their_random_numbers(model, nothing):
    one = side_effects(model, nothing, max_new_tokens=5, temperature=1.0, seed=3)
    assert (one.answers["plain"] == one.answers["steered"]).all()
    other = side_effects(model, nothing, max_new_tokens=5, temperature=1.0, seed=4)
    assert not other.answers["plain"].equals(one.answers["plain"])


def test_the_model_is_left_as_it_was(model, strong):
    tokens = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        before = model(tokens)
    side_effects(model, strong, max_new_tokens=2)
    with torch.no_grad():
        assert torch.equal(model(tokens), before)
