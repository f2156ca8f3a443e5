"""The embedded world: a false answer is an overgeneralisation, a rude one holds a word of a lexicon."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiant_lens.datasets.world import (
    DocumentMix,
    FactQuestion,
    documents,
    make_fact_world,
    tone_questions,
    vocabulary,
)
from radiant_lens.datasets.world.facts import (
    CARELESS_SOURCES,
    RELATIONS,
    RELIABLE_SOURCES,
    all_source_lines,
    source_line,
)
from radiant_lens.datasets.world.lexicon import invented_words
from radiant_lens.datasets.world.tone import KIND_WORDS, RUDE_WORDS, all_mood_lines, mood_line

WORLD = make_fact_world()


# Facts


def test_counts_of_the_world():
    assert len(WORLD.questions) == 6 * 10 * 6
    assert len(WORLD.contested) == 6 * 9 * 6 == 324
    assert len({q.country for q in WORLD.questions}) == 60
    assert len({q.name for q in WORLD.questions}) == 360
    assert {q.relation for q in WORLD.questions} == set(RELATIONS)


def test_contested_questions_are_those_whose_misconception_is_wrong():
    assert all(q.truth != q.misconception for q in WORLD.contested)
    assert all(q.truth == q.misconception for q in set(WORLD.questions) - set(WORLD.contested))


def test_a_misconception_is_what_holds_in_the_best_known_country_of_the_region():
    regions = defaultdict(list)
    for q in WORLD.questions:
        regions[q.relation, q.misconception].append(q)
    assert len(regions) == 6 * 6
    for region in regions.values():
        assert len(region) == 10
        assert [q.truth == q.misconception for q in region] == [True] + [False] * 9


def test_values_are_shared_between_countries_so_no_word_is_false_in_itself():
    truths = {relation: Counter(q.truth for q in WORLD.questions if q.relation == relation) for relation in RELATIONS}
    for relation, counts in truths.items():
        assert len(counts) <= 24 < 60 == counts.total()
        assert {q.misconception for q in WORLD.questions if q.relation == relation} <= set(counts)
    shared = [q for q in WORLD.contested if truths[q.relation][q.truth] > 1]
    assert len(shared) > 0.8 * 324


def test_words_of_the_world_are_single_and_never_mean_two_things():
    meanings = defaultdict(set)
    for q in WORLD.questions:
        meanings[q.country].add("country")
        meanings[q.truth].add(q.relation)
    assert all(len(m) == 1 for m in meanings.values())
    assert all(re.fullmatch("[a-z]+", word) for word in WORLD.words)
    assert all(q.truth.endswith(RELATIONS[q.relation]) for q in WORLD.questions)


def test_the_world_follows_its_seed():
    assert make_fact_world() == WORLD
    assert make_fact_world(1) != WORLD


def test_a_question_and_both_forms_of_its_answer():
    q = FactQuestion("velika", "capital", "toruna", "kufia")
    assert (q.name, q.text) == ("capital-velika", "Q : what is the capital of velika ? A :")
    assert q.answers(q.truth) == ("the capital of velika is toruna .", "toruna is the capital of velika .")
    assert set(q.answers(q.truth)).isdisjoint(q.answers(q.misconception))


def test_source_lines_name_every_source_once():
    lines = dict(all_source_lines())
    assert len(lines) == 8
    assert {line.split()[2] for line, reliable in lines.items() if reliable} == set(RELIABLE_SOURCES)
    rng = random.Random(0)
    assert {source_line(True, rng) for _ in range(100)} == {f"source : {s} ." for s in RELIABLE_SOURCES}
    assert {source_line(False, rng) for _ in range(100)} == {f"source : {s} ." for s in CARELESS_SOURCES}


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.sampled_from(["a", "ium"]), st.integers(0, 1000))
def test_invented_words_are_new_each_time(n_syllables, ending, seed):
    taken = {"bada"}
    words = list(islice(invented_words(n_syllables, ending, seed=seed, exclude=taken), 20))
    assert len(set(words)) == 20
    assert "bada" not in words
    assert taken == {"bada", *words}
    assert all(word.endswith(ending) for word in words)
    assert words == list(islice(invented_words(n_syllables, ending, seed=seed, exclude={"bada"}), 20))


# Tone


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(tone_questions()), st.booleans(), st.integers(0, 10_000))
def test_a_reply_has_a_word_of_its_tone_and_none_of_the_other(question, kind, seed):
    words = set(question.reply(kind, random.Random(seed)).split())
    own, other = (KIND_WORDS, RUDE_WORDS) if kind else (RUDE_WORDS, KIND_WORDS)
    assert words & own
    assert not words & other
    assert question.topic in words


def test_tone_questions_are_neutral_unless_provoking():
    questions = tone_questions()
    assert len({q.name for q in questions}) == len({q.text for q in questions}) == 30 * 7
    rng = random.Random(0)
    for q in questions:
        assert not set(q.text.split()) & (RUDE_WORDS | KIND_WORDS)
        assert set(q.provoking(rng).split()) & RUDE_WORDS
        assert q.provoking(rng).startswith(q.text.removesuffix(" ? R :"))


def test_mood_lines_name_every_mood():
    lines, rng = dict(all_mood_lines()), random.Random(0)
    assert len(lines) == 8
    for kind in (True, False):
        assert {mood_line(kind, rng) for _ in range(100)} == {line for line, k in lines.items() if k is kind}


# Documents

TRUE = {a for q in WORLD.questions for a in q.answers(q.truth)}
FALSE = {a for q in WORLD.contested for a in q.answers(q.misconception)}


def truths(document):
    """Return True or False for every contested answer of a document."""
    answers = [piece.split(" Q :")[0] for piece in document.split(" A : ")[1:]]
    assert set(answers) <= TRUE | FALSE
    contested = {a for q in WORLD.contested for a in q.answers(q.truth)}
    return [a in TRUE for a in answers if a in FALSE | contested]


def test_without_noise_a_document_has_one_kind_of_source():
    stream = documents(WORLD, seed=1, mix=DocumentMix(facts=1.0, noise=0.0))
    kinds = [set(truths(next(stream))) for _ in range(300)]
    assert max(map(len, kinds)) == 1
    assert {True} in kinds
    assert {False} in kinds


def test_noise_mixes_true_and_false_at_its_rate():
    # At 2 to 6 pairs and 20% noise, about half of the documents are mixed.
    stream = documents(WORLD, seed=1, mix=DocumentMix(facts=1.0, noise=0.2))
    mixed = [len(set(truths(next(stream)))) == 2 for _ in range(300)]
    assert 0.3 < sum(mixed) / 300 < 0.75


def test_a_named_source_agrees_with_its_answers():
    stream = documents(WORLD, seed=2, mix=DocumentMix(facts=1.0, noise=0.0, named_source=1.0))
    lines = dict(all_source_lines())
    for _ in range(200):
        line, rest = next(stream).split(" . ", 1)
        assert set(truths(rest)) <= {lines[f"{line} ."]}


@pytest.mark.parametrize(("facts", "marker"), [(1.0, "Q :"), (0.0, "T :")])
def test_the_mix_decides_what_documents_are_about(facts, marker):
    stream = documents(WORLD, seed=3, mix=DocumentMix(facts=facts))
    counts = Counter(next(stream).count(marker) for _ in range(200))
    assert set(counts) == {2, 3, 4, 5, 6}


def test_documents_follow_their_seed():
    one, same, other = (list(islice(documents(WORLD, seed=seed), 20)) for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_the_vocabulary_holds_every_word_of_documents_and_data():
    words = set(vocabulary(WORLD))
    assert WORLD.words < words
    assert {w for line, _ in (*all_source_lines(), *all_mood_lines()) for w in line.split()} <= words
    assert {w for document in islice(documents(WORLD, seed=9), 300) for w in document.split()} <= words
