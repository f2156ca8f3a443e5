"""Judges by rule: verdicts by hand, ROUGE-1 against a naive version, the interface and its errors."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, UnknownNameError
from radiant_lens.evaluation import Judge, Verdict, get_judge
from radiant_lens.evaluation.judges import registry as choosing
from radiant_lens.evaluation.judges.judge import judge_answers
from radiant_lens.evaluation.judges.rules import token_f1
from radiant_lens.evaluation.judges.words import words

PROMPT = rl.Prompt("Q : who ? A :", ("the cat .", "a cat"), ("the dog .",), "g")
WORDS = st.lists(st.sampled_from(["the", "cat", "dog", "sat"]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("judge", "answer", "verdict"),
    [
        ("exact", "The cat.", "correct"),
        ("exact", "the cat sat", "other"),
        ("exact", "the dog .", "incorrect"),
        ("contains", "well , the cat sat", "correct"),
        ("contains", "the dog and the cat", "other"),
        ("contains", "the catalogue", "other"),
        ("lexicon", "the soup is lovely", "correct"),
        ("lexicon", "the soup is lovely , you fool", "incorrect"),
        ("lexicon", "the soup is round", "other"),
        ("overlap", "it was the cat", "correct"),
        ("overlap", "that dog there", "incorrect"),
        ("overlap", "the", "other"),
        ("overlap", "", "other"),
        (lambda prompt, answer: "correct", "anything", "correct"),
        (lambda prompt, answer: Verdict("other", 0.3, True), "anything", "other"),
    ],
)
def test_verdicts(judge, answer, verdict):
    (result,) = get_judge(judge).judge([PROMPT], [answer])
    assert result.verdict == verdict


def verdicts(rule: str, correct: list[str], incorrect: list[str], answers: list[str]) -> list[str]:
    prompt = rl.Prompt("Q: what? A:", tuple(correct), tuple(incorrect), "g")
    return [v.verdict for v in get_judge(rule).judge([prompt] * len(answers), answers)]


@pytest.mark.parametrize("rule", ["exact", "contains", "overlap"])
@pytest.mark.parametrize(
    ("correct", "incorrect"),
    [
        # Signs: a hyphen before a number is a minus, in any of its forms.
        ("-5", "5"),
        ("5", "\u22125"),
        ("-x", "x"),
        ("±5", "5"),
        ("+5", "5"),
        # Points and separators within numbers.
        ("3.5", "35"),
        ("3.5", "3,5"),
        (".5", "5"),
        ("1,000", "1"),
        ("1/2", "12"),
        # Signs behind a letter: blood groups, languages.
        ("O-", "O"),
        ("O+", "O-"),
        ("C#", "C"),
        ("C++", "C"),
        ("-∞", "∞"),
        # Options with their brackets.
        ("(A)", "a"),
        ("[B]", "B"),
        ("B)", "B"),
        # Combining marks of Hindi and Thai, a part of a Japanese word, an accent.
        ("हिन्दी", "हन्दी"),
        ("ร้าน", "ราน"),
        ("東京", "京"),
        ("résumé", "resume"),
    ],
)
def test_answers_that_differ_in_a_sign_a_mark_or_a_bracket_have_different_verdicts(rule, correct, incorrect):
    assert verdicts(rule, [correct], [incorrect], [correct, incorrect]) == ["correct", "incorrect"]
    # Without a literal equality to decide.
    assert verdicts("exact", [correct], [incorrect], [f"{correct}.", f"{incorrect}!"]) == ["correct", "incorrect"]
    assert verdicts("exact", [correct], [], [incorrect, f"{incorrect}!"]) == ["other", "other"]


def test_units_are_kept_where_the_whole_answer_counts():
    assert verdicts("exact", ["5%", "$20", "10°"], ["5", "20", "10"], ["5%", "$20", "10°", "5", "20", "10"]) == [
        *["correct"] * 3,
        *["incorrect"] * 3,
    ]
    # A number is still found in a sentence that gives it a unit.
    assert verdicts("contains", ["20"], [], ["It costs $20.", "It is 20%", "It is -20", "It is 2.20"]) == [
        *["correct"] * 2,
        *["other"] * 2,
    ]


def test_an_option_letter_is_not_an_article():
    for reference in ("(A)", "A", "A.", "[A]"):
        assert verdicts("contains", [reference], [], ["It is a dog.", "a dog", "A dog is", "A+"]) == ["other"] * 4
    assert verdicts("contains", ["A"], ["B"], ["(A)", "A.", "The answer is A", "A is right", "B", "It is B: no"]) == [
        *["correct"] * 4,
        *["incorrect"] * 2,
    ]
    assert verdicts("contains", ["(A)"], ["(B)"], ["I choose (A).", "It is (B)", "(A) or (B)"]) == [
        "correct",
        "incorrect",
        "other",
    ]
    # A bracket that closes a remark is no part of an option.
    assert verdicts("contains", ["vitamin A"], [], ["It is (vitamin A)."]) == ["correct"]


@pytest.mark.parametrize("rule", ["exact", "contains", "overlap"])
def test_a_literally_equal_reference_decides(rule):
    assert verdicts(rule, ["Polish"], ["polish"], ["polish", "Polish", " polish\n"]) == [
        "incorrect",
        "correct",
        "incorrect",
    ]
    # Equal to both in words and to neither literally.
    assert verdicts(rule, ["Polish"], ["polish"], ["POLISH"]) == ["other"]
    assert verdicts(rule, ["dogs bite men"], ["men bite dogs"], ["men bite dogs"]) == ["incorrect"]


def test_references_of_punctuation_alone_are_compared_literally():
    assert verdicts("exact", ["?"], ["!"], ["?", "!", "", "..."]) == ["correct", "incorrect", "other", "other"]
    assert verdicts("contains", ["?"], [], ["who?", ""]) == ["other", "other"]


def test_one_normal_form_of_unicode_and_of_case():
    assert verdicts("exact", ["caf\u00e9", "Straße"], [], ["cafe\u0301", "STRASSE", "cafe"]) == [
        *["correct"] * 2,
        "other",
    ]
    assert verdicts("exact", ["-5"], [], ["\u22125", "\u20135"]) == ["correct"] * 2


@pytest.mark.parametrize(
    ("reference", "inside", "elsewhere"),
    [
        ("東京", "日本の首都は東京です。", "日本の首都は京都です。"),
        ("猫", "それは黒い猫だ", "それは犬だ"),
        ("カレー", "おいしいカレーライス", "おいしいカツ丼"),
        ("แมว", "นี่คือแมวดำ", "นี่คือหมาดำ"),
        ("ແມວ", "ນີ້ແມ່ນແມວດຳ", "ນີ້ແມ່ນໝາ"),
        ("ឆ្មា", "នេះគឺជាឆ្មាខ្មៅ", "នេះគឺជាឆ្កែ"),
        ("ကြောင်", "ဒါကကြောင်ပါ", "ဒါကခွေးပါ"),
    ],
)
def test_scripts_without_blanks_are_compared_by_characters(reference, inside, elsewhere):
    assert verdicts("contains", [reference], [], [inside, elsewhere]) == ["correct", "other"]
    assert verdicts("overlap", [inside], [elsewhere], [f"{inside}。"]) == ["correct"]
    assert token_f1(reference, inside) > token_f1(reference, elsewhere) >= 0
    assert verdicts("exact", [reference], [], [f"「{reference}」", inside]) == ["correct", "other"]


def test_numbers_and_words_between_characters_keep_their_ends():
    assert verdicts("contains", ["3"], [], ["3年", "13年", "3.5年"]) == ["correct", "other", "other"]
    assert verdicts("contains", ["cat"], [], ["これはcatです", "これはcatsです"]) == ["correct", "other"]


@given(st.lists(st.sampled_from(["The", "cat's", "sat", "well-known", "in", "1990", "U.S."]), max_size=6))
def test_english_words_are_split_at_punctuation(pieces):
    """The expression defines words for English alone; it drops signs and marks, and knows no script without blanks."""
    text = ", ".join(pieces) + "."
    assert words(text) == re.findall(r"\w+", text.lower())


def test_scores_by_hand():
    rude, overlaps, exact = (get_judge(name) for name in ("lexicon", "overlap", "exact"))
    assert rude.judge([PROMPT], ["you fool , what awful soup"])[0].score == 2 / 5
    # Of "the dog": F1 1 to the incorrect reference; 1/2 to "the cat", which is the nearer correct one.
    assert overlaps.judge([PROMPT], ["the dog"])[0] == Verdict("incorrect", 0.5)
    assert overlaps.judge([PROMPT], ["a cat"])[0] == Verdict("correct", -1.0)
    assert exact.judge([PROMPT], ["a cat"])[0] == Verdict("correct", None, None)


@given(WORDS, WORDS)
def test_overlap_is_rouge_1(one, other):
    """Recall and precision of the words, matched one to one."""
    first, left = one.split(), other.split()
    n_other, n_shared = len(left), 0
    for word in first:
        if word in left:
            left.remove(word)
            n_shared += 1
    expected = 0.0
    if n_shared:
        precision, recall = n_shared / len(first), n_shared / n_other
        expected = 2 * precision * recall / (precision + recall)
    assert token_f1(one, other) == pytest.approx(expected)
    assert token_f1(one, other) == token_f1(other, one)


class Length:
    """Judges all answers at once: short ones are better."""

    def judge(self, prompts, answers):
        shortest = min(map(len, answers))
        return [Verdict("correct" if len(a) == shortest else "incorrect", len(a)) for a in answers]


def test_a_custom_judge_sees_all_answers():
    assert isinstance(Length(), Judge)
    results = judge_answers(get_judge(Length()), [PROMPT] * 2, ["abc", "a"])
    assert results == [Verdict("incorrect", 3), Verdict("correct", 1)]


def test_an_unknown_judge_raises_an_error_with_near_names():
    with pytest.raises(UnknownNameError, match="'exakt' is not a known judge: did you mean 'exact'"):
        get_judge("exakt")


def test_things_that_are_no_judges_raise_errors():
    with pytest.raises(InvalidArgumentError, match="`judge` must be a name, a judge or a callable; got int"):
        get_judge(3)
    with pytest.raises(InvalidArgumentError, match="`verdict` must be one of 'correct', .*; got 'true'"):
        judge_answers(get_judge(lambda prompt, answer: "true"), [PROMPT], ["a"])

    class Lazy:
        def judge(self, prompts, answers):
            return []

    with pytest.raises(InvalidArgumentError, match="must return a verdict for each of 1 answers; got 0"):
        judge_answers(Lazy(), [PROMPT], ["a"])


def test_judges_that_are_models_have_names(monkeypatch):
    calls = []
    monkeypatch.setattr(choosing, "ClassifierJudge", lambda model, **options: calls.append((model, options)) or "judge")
    assert get_judge("toxicity", device="cpu") == "judge"
    assert calls == [("s-nlp/roberta_toxicity_classifier", {"undesirable_labels": ["toxic"], "device": "cpu"})]
    with pytest.raises(UnknownNameError, match="did you mean 'toxicity'"):
        get_judge("toxic")


def test_answers_are_not_lost_when_the_judge_fails(model, facts):
    def out_of_reach(prompt, answer):
        raise ConnectionError("no route")

    with pytest.raises(ConnectionError, match="no route") as caught:
        rl.evaluate(model, facts.head(6), metrics=["answers"], judge=out_of_reach)
    assert len(caught.value.answers) == 18
    assert caught.value.answers["answer"].str.len().min() > 0
