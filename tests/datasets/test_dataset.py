"""Data sets: contexts, and splits that no question crosses."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiant_lens import Contexts, Dataset, Prompt, Statement, load_dataset
from radiant_lens.errors import DataError, InvalidArgumentError
from radiant_lens.splits import split_groups

few = settings(deadline=None, max_examples=6)
NAMES = ("tiny-facts", "tiny-tone")


def small(n=8, **options) -> Dataset:
    """Two answers of each label to each of `n` questions."""
    statements, prompts = [], []
    for i in range(n):
        question = f"Q : what is {i} ? A :"
        right, wrong = (f"truth {i} .", f"surely {i} ."), (f"lie {i} .", f"myth {i} .")
        for label, answers in enumerate((right, wrong)):
            statements += [Statement(f"{question} {a}", label, f"g{i}", len(question) + 1) for a in answers]
        prompts.append(Prompt(question, right, wrong, f"g{i}", right[0]))
    return Dataset("small", tuple(statements), tuple(prompts), **options)


def asked(text):
    return re.findall(r"Q : what is (\d+) \?", text)


# Contexts


def test_one_transcript_for_each_group_label_and_length():
    statements = small(contexts=Contexts()).statements
    lengths = Counter((s.group, s.label, len(asked(s.text))) for s in statements)
    assert lengths == Counter((f"g{i}", label, n) for i in range(8) for label in (0, 1) for n in (1, 2, 3, 4))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_a_transcript_has_one_label_throughout_and_ends_with_its_own_question(seed):
    for s in small(contexts=Contexts(seed=seed)).statements:
        questions = asked(s.text)
        assert f"g{questions[-1]}" == s.group
        assert len(set(questions)) == len(questions)
        words = set(re.findall("truth|surely|lie|myth", s.text))
        assert words <= ({"lie", "myth"} if s.label else {"truth", "surely"})


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_answer_start_points_at_the_last_answer(seed):
    dataset = small(contexts=Contexts(seed=seed))
    answers = {(a.group, a.label, a.text[a.answer_start :]) for a in dataset.atoms}
    for s in dataset.statements:
        assert (s.group, s.label, s.text[s.answer_start :]) in answers
        assert s.text[: s.answer_start].endswith("A : ")


@pytest.mark.parametrize("name", NAMES)
def test_answer_start_points_at_an_answer_in_the_packaged_data(name):
    dataset = load_dataset(name)
    answers = {(p.group, a): label for p in dataset.bare_prompts for label, answers in enumerate(
        (p.correct_answers, p.incorrect_answers)) for a in answers}  # fmt: skip
    assert all(answers[s.group, s.text[s.answer_start :]] == s.label for s in dataset.statements)


def test_prompts_are_made_under_every_condition():
    dataset = small(contexts=Contexts(n_before=3))
    by_condition = Counter(p.condition for p in dataset.prompts)
    assert by_condition == {"bare": 8, "after_undesirable": 8, "after_desirable": 8}
    words = {"bare": "$^", "after_undesirable": "lie|myth", "after_desirable": "truth|surely"}
    for p in dataset.prompts:
        # The last question is the prompt's own, all others are its context.
        questions = asked(p.text)
        assert questions.pop() == p.group[1:]
        assert p.group[1:] not in questions
        assert len(questions) == len(re.findall(words[p.condition], p.text)) == (0 if p.condition == "bare" else 3)


def test_the_answers_of_a_prompt_do_not_depend_on_its_condition():
    dataset = small(contexts=Contexts())
    answers = {(p.group, p.correct_answers, p.incorrect_answers, p.best_answer) for p in dataset.prompts}
    assert len(answers) == 8


def test_prompts_that_have_a_condition_stay_unchanged():
    provoked = Prompt("Q : what , you fool ? A :", ("a",), ("b",), "g0", condition="provoked")
    base = small()
    dataset = Dataset("d", base.atoms, (*base.bare_prompts, provoked), contexts=Contexts(conditions=("bare",)))
    assert dataset.prompts == (provoked, *base.bare_prompts)


def test_contexts_follow_their_seed():
    one, same, other = (small(contexts=Contexts(seed=seed)) for seed in (0, 0, 1))
    assert one.statements == same.statements
    assert one.prompts == same.prompts
    assert one.statements != other.statements
    assert one.prompts != other.prompts


def test_without_contexts_records_stay_unchanged():
    dataset = small()
    assert dataset.statements is dataset.atoms
    assert dataset.prompts is dataset.bare_prompts


def test_contexts_longer_than_the_data_are_refused():
    with pytest.raises(DataError, match="Contexts of 3 other questions need 4 groups of each label; there are 3"):
        _ = small(3, contexts=Contexts()).statements
    with pytest.raises(DataError, match="Contexts of 2 other questions need 3 groups of each label; there are 2"):
        _ = small(2, contexts=Contexts(n_pairs=(1,))).prompts


# Splits


def questions_of(dataset):
    """Return the atomic questions: all text before each answer."""
    return {a.text[: a.answer_start].strip() for a in dataset.atoms}


@few
@given(st.sampled_from(NAMES), st.integers(0, 1000))
def test_no_question_of_one_part_is_read_in_another(name, seed):
    parts = load_dataset(name).split((0.6, 0.2, 0.2), seed=seed)
    marker = "Q : " if name == "tiny-facts" else "T : "
    read = []
    for part in parts:
        texts = [r.text for r in (*part.statements, *part.prompts)]
        pieces = {marker + piece.split("?")[0] for text in texts for piece in text.split(marker)[1:]}
        # A rude asker adds ", you fool" to the same question.
        read.append({re.sub(r" , you \w+ $", " ", piece) for piece in pieces})
    asked_ = [{q.split("?")[0] for q in questions_of(part)} for part in parts]
    assert all(r == a for r, a in zip(read, asked_))
    assert len(set().union(*asked_)) == sum(map(len, asked_))


def test_one_draw_of_contexts_before_a_split_would_cross_it():
    whole = small(30, contexts=Contexts())
    part = whole.split((0.5, 0.5))[0]
    # The twin of the test above: contexts made before the split read questions of the other part.
    crossing = [
        s for s in whole.statements if s.group in part.groups and any(f"g{q}" not in part.groups for q in asked(s.text))
    ]
    assert len(crossing) > 20


def test_a_split_keeps_every_row_and_follows_its_seed():
    dataset = small(20)
    parts = dataset.split((0.5, 0.3, 0.2), seed=3)
    assert [len(p.groups) for p in parts] == [10, 6, 4]
    assert sorted(a.text for p in parts for a in p.atoms) == sorted(a.text for a in dataset.atoms)
    assert sorted(q.text for p in parts for q in p.bare_prompts) == sorted(q.text for q in dataset.bare_prompts)
    assert (
        parts[0].groups
        == dataset.split((0.5, 0.3, 0.2), seed=3)[0].groups
        != dataset.split((0.5, 0.3, 0.2), seed=4)[0].groups
    )


def one_class_groups(n_rare=10, n_common=90) -> Dataset:
    names = [("r", 1, i) for i in range(n_rare)] + [("c", 0, i) for i in range(n_common)]
    return Dataset("rare", tuple(Statement(f"text {i}", label, f"{kind}{i}") for kind, label, i in names))


def test_every_part_has_its_share_of_the_groups_of_each_class():
    dataset = one_class_groups()
    for seed in range(30):
        parts = dataset.split(seed=seed)
        assert [sum(a.label for a in part.atoms) for part in parts] == [6, 2, 2]
        assert [len(part.groups) for part in parts] == [60, 20, 20]
    backwards = Dataset("rare", dataset.atoms[::-1])
    assert [p.groups for p in backwards.split(seed=29)] == [p.groups for p in parts]
    # The twin: groups alone leave a part without one class in some of the draws.
    draws = [split_groups(dataset.groups, (0.6, 0.2, 0.2), seed=seed) for seed in range(30)]
    assert any(not any(name.startswith("r") for name in part) for draw in draws for part in draw)


@pytest.mark.parametrize("name", [*NAMES, "misconceptions", "tone"])
def test_groups_of_both_classes_are_split_as_they_always_were(name):
    """Published figures were measured on these parts."""
    dataset = load_dataset(name)
    for seed in range(3):
        parts = dataset.split(seed=seed)
        assert [p.groups for p in parts] == list(split_groups(dataset.groups, (0.6, 0.2, 0.2), seed=seed))


def test_prompts_without_statements_are_a_kind_of_their_own():
    whole = small(20)
    dataset = Dataset("some", tuple(a for a in whole.atoms if int(a.group[1:]) >= 10), whole.bare_prompts)
    assert [(len(p.atoms), len(p.bare_prompts)) for p in dataset.split((0.6, 0.2, 0.2))] == [(24, 12), (8, 4), (8, 4)]


def test_parts_keep_the_settings_of_the_whole():
    part = small(20, contexts=Contexts(), judge="exact", stop=(".",)).split((0.5, 0.5))[1]
    assert (part.name, part.judge, part.stop, part.contexts) == ("small", "exact", (".",), Contexts())


def test_split_refuses_more_parts_than_groups():
    with pytest.raises(InvalidArgumentError, match="3 parts need as many groups; the data has 2"):
        small(2).split()


# Counting and choosing


def test_length_and_repr_count_records_in_context():
    dataset = small(contexts=Contexts(n_pairs=(1, 2)))
    assert len(dataset) == 8 * 2 * 2
    assert repr(dataset) == "Dataset('small': 32 statements, 24 prompts, 8 groups)"


def test_head_takes_the_first_groups():
    assert small(8).head(3).groups == {"g0", "g1", "g2"}
    with pytest.raises(InvalidArgumentError, match="`n_groups` must be a whole number of at least 1; got 0"):
        small(8).head(0)


def test_only_keeps_the_given_groups():
    part = small(8).only({"g1", "g5"})
    assert {r.group for r in (*part.atoms, *part.bare_prompts)} == {"g1", "g5"}


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="Data set 'none' is empty"):
        Dataset("none", ())
    with pytest.raises(DataError, match="'small' has none of these groups; one of its own is 'g0'"):
        small(4).only({"nowhere"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"conditions": ("wrong",)}, "`conditions` must be one of 'bare'"),
        ({"n_pairs": (0,)}, "`n_pairs` must be a whole number of at least 1"),
        ({"n_before": 0}, "`n_before` must be"),
    ],
)
def test_contexts_refuse_bad_settings(options, words):
    with pytest.raises(ValueError, match=words):
        Contexts(**options)
