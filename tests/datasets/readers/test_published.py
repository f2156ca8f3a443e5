"""Published formats, from files made here and from the Hub replaced by a function."""

from __future__ import annotations

import csv
import json
import time

import datasets as hub
import pytest

from radiant_lens import load_dataset
from radiant_lens.datasets import TextTemplate, read_records, write_records
from radiant_lens.errors import DataError, InvalidArgumentError, UnknownNameError

CSV = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
MC = {
    "question": "Who? ",
    "mc1_targets": {"Me.": 1, "You.": 0},
    "mc2_targets": {"I.": 1, "Me.": 1, "You.": 0, "They.": 0},
}
HUB_MC = {
    "question": "Who?",
    "mc1_targets": {"choices": ["Me.", "You."], "labels": [1, 0]},
    "mc2_targets": {"choices": ["I.", "Me.", "You.", "They."], "labels": [1, 1, 0, 0]},
}
RTP = {
    "filename": "f",
    "challenging": False,
    "prompt": {"text": "He said:", "toxicity": 0.2},
    "continuation": {"text": " A: hello", "toxicity": 0.5},
}
COMMENTS = "id,comment_text,toxic,severe_toxic,obscene,threat,insult,identity_hate\n"


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def jsonl(tmp_path, *rows):
    return write(tmp_path, "data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def said(d):
    return [(s.text[s.answer_start :], s.label) for s in d.statements]


# Questions


def test_a_row_of_the_truthfulqa_csv(tmp_path):
    path = write(tmp_path, "t.csv", "\ufeff" + CSV + "A,C,Who? ,Me,Me; I;,You; They.,http\n")
    d = load_dataset("truthfulqa", path=path)
    assert said(d) == [("Me.", 0), ("I.", 0), ("You.", 1), ("They.", 1)]
    (prompt,) = d.prompts
    assert (prompt.text, prompt.question, prompt.group) == ("Q: Who? A:", "Who?", "who?")
    assert (prompt.best_answer, prompt.best_incorrect_answer, prompt.mc1_incorrect) == ("Me.", "", None)
    assert (d.name, d.judge, d.stop, d.skipped) == ("truthfulqa", "overlap", ("\n", "Q:"), ())
    assert d.statements[0].text == "Q: Who? A: Me."
    # By its path alone the file is no TruthfulQA: no periods are added.
    assert said(load_dataset(path)) == [("Me", 0), ("I", 0), ("You", 1), ("They.", 1)]


def test_the_csv_of_2025_has_a_best_incorrect_answer(tmp_path):
    header = "Type,Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers,Source\n"
    d = load_dataset("truthfulqa", path=write(tmp_path, "t.csv", header + "A,C,Who?,Me,They,Me; I,You; They,\n"))
    assert (d.prompts[0].best_incorrect_answer, d.prompts[0].incorrect_answers) == ("They.", ("You.", "They."))


@pytest.mark.parametrize("row", [MC, HUB_MC])
def test_multiple_choice_of_the_file_and_of_the_hub(tmp_path, row):
    d = load_dataset("truthfulqa", path=write(tmp_path, "mc.json", [row]))
    assert said(d) == [("I.", 0), ("Me.", 0), ("You.", 1), ("They.", 1)]
    (prompt,) = d.prompts
    assert (prompt.best_answer, prompt.mc1_incorrect) == ("Me.", ("You.",))
    assert prompt.incorrect_answers == ("You.", "They.")


def test_equal_sets_of_incorrect_answers_are_carried_once_and_the_binary_choice_too(tmp_path):
    row = {**MC, "mc1_targets": {"They.": 0, "Me.": 1, "You.": 0}, "mc0_targets": {"Me.": 1, "They.": 0}}
    (prompt,) = load_dataset("truthfulqa", path=jsonl(tmp_path, row)).prompts
    assert (prompt.mc1_incorrect, prompt.best_incorrect_answer) == (None, "They.")


def test_iti_rows_of_both_data_sets(tmp_path):
    nq = load_dataset(
        "nq_open", path=jsonl(tmp_path, {"question": "who", "answer": ["me", "I"], "false_answer": "you"})
    )
    assert said(nq) == [("me", 0), ("I", 0), ("you", 1)]
    answer = {"aliases": ["I", "me"], "normalized_aliases": ["i", "me"], "value": "me"}
    trivia = load_dataset("trivia_qa", path=jsonl(tmp_path, {"question": "w", "answer": answer, "false_answer": "ME"}))
    assert said(trivia) == [("I", 0), ("me", 0)]
    assert trivia.prompts[0].best_answer == "me"
    assert trivia.skipped == ("line 1: incorrect answer 'ME' is left out, it also is a correct one.",)
    assert repr(trivia) == "Dataset('trivia_qa': 2 statements, 1 prompts, 1 groups, 1 skipped, label 1 = false_answer)"


def test_questions_that_occur_twice_are_never_parted(tmp_path):
    rows = "".join(f"A,C,{q},a,a,b,\n" for q in ("one", "two", "One ", "three"))
    d = load_dataset("trivia_qa", path=write(tmp_path, "t.csv", CSV + rows))
    assert (len(d.prompts), d.groups) == (4, {"one", "two", "three"})


def test_a_best_answer_that_no_list_has_comes_first_and_repeats_are_named(tmp_path):
    d = load_dataset("nq_open", path=write(tmp_path, "t.csv", CSV + "A,C,q,z,a; b; a,None; c,\n"))
    assert said(d) == [("z", 0), ("a", 0), ("b", 0), ("None", 1), ("c", 1)]
    assert d.skipped == ("line 2: answer 'a' counts once, the list repeats it.",)


def test_a_template_is_laid_around_questions(tmp_path):
    path = write(tmp_path, "t.csv", CSV + "A,C,who?,me,me,you,\n")
    for template in ("Question: {question}\nAnswer: {answer}", TextTemplate("Question: {question}\nAnswer: {answer}")):
        d = load_dataset("nq_open", path=path, template=template)
        assert d.prompts[0].text == "Question: who?\nAnswer:"
        assert [s.text for s in d.statements] == ["Question: who?\nAnswer: me", "Question: who?\nAnswer: you"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**MC, "question": " "}, "`question` is empty"),
        ({**MC, "mc1_targets": {"a": 1, "b": 1}}, "`mc1_targets` must have one correct answer; it has 2"),
        ({**MC, "mc2_targets": {"a": 2}}, "`mc2_targets` must give each answer 0 or 1"),
        ({**MC, "mc2_targets": {"choices": ["a"], "labels": [1, 0]}}, "`mc2_targets` must give each answer 0 or 1"),
        ({**MC, "mc2_targets": 3}, "`mc2_targets` must give each answer 0 or 1"),
        ({"question": "q"}, "missing column 'mc1_targets' and 'mc2_targets'"),
    ],
)
def test_bad_questions_are_named_by_their_line(tmp_path, row, words):
    path = jsonl(tmp_path, HUB_MC, row, HUB_MC)
    with pytest.raises(DataError, match=f"data.jsonl has rows that cannot be used \\(1\\): line 2: {words}"):
        load_dataset("truthfulqa", path=path)
    d = load_dataset("truthfulqa", path=path, on_bad_rows="report")
    assert len(d.prompts) == 2
    assert len(d.skipped) == 1 and d.skipped[0].startswith("line 2: ")


def test_a_question_without_answers_is_a_bad_row(tmp_path):
    with pytest.raises(DataError, match="line 3: there are no answers"):
        load_dataset("nq_open", path=write(tmp_path, "t.csv", CSV + "A,C,q,a,a,b,\nA,C,p,,,,\n"))


def test_rows_of_json_are_counted_not_lined(tmp_path):
    with pytest.raises(DataError, match="row 2: a row must hold named columns; got 3"):
        load_dataset("truthfulqa", path=write(tmp_path, "mc.json", [MC, 3]))


# Toxicity


def test_comments_are_answers_throughout(tmp_path):
    rows = 'a,"Q: x\nA: y",0,0,0,1,0,0\nb,same,1,1,0,0,0,0\nc,Same ,1,0,0,0,0,0\n'
    d = load_dataset("jigsaw", path=write(tmp_path, "train.csv", COMMENTS + rows))
    assert said(d) == [("Q: x\nA: y", 0), ("same", 1), ("Same ", 1)]
    assert [s.group for s in d.statements] == ["a", "b", "b"]
    assert (d.prompts, d.judge, d.template) == ((), "toxicity", None)


def test_any_chosen_label_columns(tmp_path):
    path = write(tmp_path, "train.csv", COMMENTS + "a,x,0,0,0,1,0,0\nb,y,1,0,0,0,0,0\nc,z,0,0,1,0,0,0\n")
    assert [s.label for s in load_dataset(path, columns={"label": "threat"}).statements] == [1, 0, 0]
    both = load_dataset("jigsaw", path=path, columns={"label": ("toxic", "threat")})
    assert [s.label for s in both.statements] == [1, 1, 0]


def test_comments_that_were_never_scored_are_bad_rows_named_by_their_first_line(tmp_path):
    path = write(tmp_path, "t.csv", COMMENTS + 'a,"x\ny\nz",0,0,0,0,0,0\nb,"p\nq",-1,-1,-1,-1,-1,-1\nc,,1,0,0,0,0,0\n')
    bad = "line 5: `toxic` must be 0 (desirable) or 1 (undesirable); got '-1': "
    d = load_dataset("jigsaw", path=path, columns={"label": ["toxic"]}, on_bad_rows="report")
    assert d.skipped[0].startswith(bad)
    assert d.skipped[1:] == ("line 7: `comment_text` is empty.",)
    assert said(d) == [("x\ny\nz", 0)]
    with pytest.raises(DataError, match=r"rows that cannot be used \(2\): line 5: .* line 7: "):
        load_dataset("jigsaw", path=path)


def test_comments_without_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match="line 2: missing column 'label' .*; the label is read from 'toxic', or from"):
        load_dataset("jigsaw", path=write(tmp_path, "test.csv", "id,comment_text\na,b\n"))


def test_reading_is_linear(tmp_path):
    def seconds(n):
        path = tmp_path / f"{n}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COMMENTS.strip().split(","))
            writer.writerows([f"{i:x}", f"comment {i}, of\nsome length " * 8, i % 2, *[0] * 5] for i in range(n))
        start = time.process_time()
        d = load_dataset("jigsaw", path=path)
        assert (len(d.statements), len(d.groups), sum(s.label for s in d.statements)) == (n, n, n // 2)
        return time.process_time() - start

    # The first file of all pays for imports. A quadratic reader would take 100 times as long, not 10.
    seconds(50)
    assert seconds(5000) < 40 * max(seconds(500), 0.005)


@pytest.mark.parametrize("name", ["realtoxicityprompts", None])
def test_a_text_file_has_a_prompt_on_each_line(tmp_path, name):
    path = write(tmp_path, "rtp_insult.txt", "He called her a\n\n“You are” \u2028 so\r\n")
    d = load_dataset(path) if name is None else load_dataset(name, path=path)
    assert [p.text for p in d.prompts] == ["He called her a", "“You are” \u2028 so"]
    assert (len(d.statements), d.judge, d.prompts[0].correct_answers) == (0, "toxicity", ())


def test_prompts_of_realtoxicityprompts_and_their_continuations(tmp_path):
    unscored = {**RTP, "prompt": {"text": "b", "toxicity": None}, "continuation": {"text": " c", "toxicity": None}}
    rows = [RTP, {**RTP, "continuation": {"text": " bye", "toxicity": 0.49}}, unscored, {**RTP, "continuation": None}]
    d = load_dataset("realtoxicityprompts", path=jsonl(tmp_path, *rows))
    assert said(d) == [("A: hello", 1), ("bye", 0)]
    assert d.statements[0].text == "He said: A: hello"
    assert [(p.text, p.correct_answers, p.incorrect_answers) for p in d.prompts] == [
        (text, (), ()) for text in ("He said:", "He said:", "b", "He said:")
    ]
    assert d.groups == {"he said:", "b"}
    assert d.skipped == ("line 3: the continuation has no toxicity: a prompt, but no statement.",)
    assert d.judge == "toxicity"


def test_only_nontoxic_prompts(tmp_path):
    rows = [{**RTP, "prompt": {"text": f"p{t}", "toxicity": t}} for t in (0.49, 0.5, None)]
    d = load_dataset("realtoxicityprompts", path=jsonl(tmp_path, *rows), format="nontoxic")
    assert [p.text for p in d.prompts] == ["p0.49"]
    assert d.skipped == (
        "line 2: left out, the prompt has toxicity 0.5.",
        "line 3: left out, the prompt has no toxicity.",
    )
    with pytest.raises(DataError, match="has no rows that can be used: line 1: left out, the prompt has toxicity 0.5"):
        load_dataset("realtoxicityprompts", path=jsonl(tmp_path, rows[1]), format="nontoxic")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**RTP, "prompt": {"text": " "}}, "`prompt` is empty"),
        ({**RTP, "prompt": 3}, "`prompt` must be a text, or hold 'text' and scores; got 3"),
        ({**RTP, "continuation": {"text": "a", "toxicity": 1.5}}, r"`toxicity` must lie in \[0, 1\]; got 1.5"),
        ({**RTP, "continuation": {"text": "a", "toxicity": "high"}}, r"`toxicity` must lie in \[0, 1\]; got 'high'"),
    ],
)
def test_bad_prompts_are_named_by_their_line(tmp_path, row, words):
    with pytest.raises(DataError, match=f"line 2: {words}"):
        load_dataset("realtoxicityprompts", path=jsonl(tmp_path, RTP, row))


def test_open_prompts_survive_writing(tmp_path):
    d = load_dataset("realtoxicityprompts", path=jsonl(tmp_path, RTP))
    path = write_records(tmp_path / "out.jsonl", d)
    again = load_dataset(path, judge="toxicity")
    assert (again.statements, again.prompts) == (d.statements, d.prompts)
    with pytest.raises(DataError, match="line 2: the prompt has no answers to compare with; .* judge='toxicity'"):
        load_dataset(path)


def test_questions_survive_writing(tmp_path):
    d = load_dataset("truthfulqa", path=write(tmp_path, "mc.json", [MC]), template="Q: {question} A:{answer}")
    path = write_records(tmp_path / "out.jsonl", d)
    assert read_records(path) == (d.statements, d.prompts)
    only_prompts = tmp_path / "prompts.jsonl"
    only_prompts.write_text(path.read_text().splitlines()[-1])
    assert load_dataset(only_prompts).prompts == d.prompts


# The Hub


@pytest.fixture
def asked(monkeypatch):
    """Return the list of calls to the Hub, which is replaced by one row of each data set."""
    calls = []
    rows = {
        ("truthfulqa/truthful_qa", "multiple_choice"): HUB_MC,
        ("truthfulqa/truthful_qa", "generation"): {
            "question": "Who?", "best_answer": "Me", "correct_answers": ["I", "Me"],
            "incorrect_answers": ["You", "They"],
        },
        ("OamPatel/iti_nq_open_val", None): {"question": "q", "answer": ["a"], "false_answer": "b"},
        ("OamPatel/iti_trivia_qa_val", None): {"question": "q", "answer": {"aliases": ["a"]}, "false_answer": "b"},
        ("tasksource/jigsaw_toxicity", None): {"id": "1", "comment_text": "c", "toxic": 1},
        ("allenai/real-toxicity-prompts", None): RTP,
    }  # fmt: skip

    def load(repository, config, *, split):
        calls.append((repository, config, split))
        return hub.Dataset.from_list([rows[repository, config]])

    monkeypatch.setattr(hub, "load_dataset", load)
    return calls


@pytest.mark.parametrize(
    ("name", "call", "answers"),
    [
        (
            "truthfulqa",
            ("truthfulqa/truthful_qa", "multiple_choice", "validation"),
            [("I.", 0), ("Me.", 0), ("You.", 1), ("They.", 1)],
        ),
        ("nq_open", ("OamPatel/iti_nq_open_val", None, "validation"), [("a", 0), ("b", 1)]),
        ("trivia_qa", ("OamPatel/iti_trivia_qa_val", None, "validation"), [("a", 0), ("b", 1)]),
        ("jigsaw", ("tasksource/jigsaw_toxicity", None, "train"), [("c", 1)]),
        ("realtoxicityprompts", ("allenai/real-toxicity-prompts", None, "train"), [("A: hello", 1)]),
    ],
)
def test_names_come_from_the_hub(asked, name, call, answers):
    d = load_dataset(name)
    assert asked == [call]
    assert (d.name, said(d)) == (name, answers)


def test_both_configurations_of_the_hub_give_the_same_statements(asked):
    one, other = load_dataset("truthfulqa"), load_dataset("truthfulqa", format="generation")
    assert [c for _, c, _ in asked] == ["multiple_choice", "generation"]
    assert one.statements == other.statements
    assert one.prompts != other.prompts


def test_without_a_network_a_file_is_proposed(monkeypatch):
    def load(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "load_dataset", load)
    with pytest.raises(DataError, match=r"'OamPatel/iti_nq_open_val' cannot be loaded from the Hub \(ConnectionError: "
                                        r"no route\)\. Without a network, give the published .*path="):  # fmt: skip
        load_dataset("nq_open")


def test_a_file_needs_no_hub(asked, tmp_path):
    load_dataset("nq_open", path=write(tmp_path, "t.csv", CSV + "A,C,q,a,a,b,\n"))
    assert asked == []


# Options


def test_any_file_with_named_columns(tmp_path):
    path = write(tmp_path, "mine.csv", "sentence,bad,topic\nA: x,1,t\ny,0,u\n")
    d = load_dataset(path, columns={"text": "sentence", "label": "bad", "group": "topic"})
    assert [(s.text, s.label, s.group, s.answer_start) for s in d.statements] == [("A: x", 1, "t", 3), ("y", 0, "u", 0)]
    path = write(tmp_path, "qa.csv", "q,good,evil\nwho?,me,you\n")
    d = load_dataset(path, columns={"question": "q", "correct_answers": "good", "incorrect_answers": "evil"})
    assert said(d) == [("me", 0), ("you", 1)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"columns": {"txt": "a"}}, UnknownNameError, "'txt' is not a known column: did you mean 'text'"),
        ({"columns": {"group": "topik"}}, DataError, "has no column 'topik'; there are: label, text"),
        (
            {"columns": {"text": ("a", "b")}},
            DataError,
            "Only 'label', .* can be made of several columns; got .* 'text'",
        ),
        ({"columns": {"text": 3}}, InvalidArgumentError, "`columns` must give 'text' the name of a column; got 3"),
        ({"columns": "text"}, InvalidArgumentError, "`columns` must map our names .* 'sentence'}; got 'text'"),
        ({"columns": {"label": ("label", "c")}}, DataError, "missing column 'c'"),
        ({"format": "jigsav"}, UnknownNameError, "'jigsav' is not a known format here: did you mean 'jigsaw'"),
        ({"template": "{question} {answer}"}, InvalidArgumentError, "`template` is laid around questions; .*'records'"),
        (
            {"path": "x.csv"},
            InvalidArgumentError,
            "`path` is the file of a published data set .* cannot be given with a file or an object; got 'x.csv'",
        ),
        ({"on_bad_rows": "skip"}, InvalidArgumentError, "`on_bad_rows` must be one of 'raise', 'report'; got 'skip'"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, error, words):
    path = write(tmp_path, "mine.csv", "text,label\na,0\n")
    assert len(load_dataset(path)) == 1
    with pytest.raises(error, match=words):
        load_dataset(path, **options)


@pytest.mark.parametrize("option", ["path", "format", "columns", "template"])
def test_the_embedded_data_sets_take_no_options_of_files(option):
    with pytest.raises(InvalidArgumentError, match=f"`{option}` cannot be given with tiny-facts"):
        load_dataset("tiny-facts", **{option: "x"})


def test_formats_of_another_data_set_are_refused(tmp_path):
    path = write(tmp_path, "mine.csv", "text,label\na,0\n")
    with pytest.raises(DataError, match="in no format of this data set: it needs columns 'comment_text'; there are"):
        load_dataset("jigsaw", path=path)
    with pytest.raises(UnknownNameError, match="'jigsaw' is not a known format here"):
        load_dataset("nq_open", path=path, format="jigsaw")
    with pytest.raises(InvalidArgumentError, match="`format` 'answer_csv' is of files, give `path`; the Hub has "):
        load_dataset("truthfulqa", format="answer_csv")


def test_a_name_that_is_nearly_published_is_put_right():
    with pytest.raises(UnknownNameError, match="did you mean 'truthfulqa'"):
        load_dataset("truthful_qa")
