"""Small files in the shapes of public data sets, in our own words: each is read rightly, or refused with the remedy.

The shapes are those of published files for steering, truthfulness, toxicity and preference; see the name of each row.
"""

from __future__ import annotations

import gzip
import json
from typing import Any, NamedTuple

import pandas as pd
import pytest

from radiant_lens import load_dataset
from radiant_lens.datasets import ChatTemplate
from radiant_lens.errors import DataError, InvalidArgumentError

CHAT = object()
"""Stands for a chat template, which needs a tokenizer."""


class Shape(NamedTuple):
    """A file, the options to read it with, and its statements: (context, answer, label), or words of the refusal."""

    name: str
    file: str
    content: Any
    options: dict[str, Any]
    expected: list[tuple[str, str, int]] | str


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def asked(text: str) -> str:
    return f"<bos><|user|>\n{text}<|end|>\n<|assistant|>\n"


SHAPES = [
    # Truthfulness
    Shape(
        "Geometry of Truth",
        "cities.csv",
        "statement,label,city,country\nOslo is in Norway.,1,Oslo,Norway\nOslo is in Peru.,0,Oslo,Peru\n",
        {"columns": {"text": "statement", "group": "city"}, "undesirable": 0},
        [("", "Oslo is in Norway.", 0), ("", "Oslo is in Peru.", 1)],
    ),
    Shape(
        "Geometry of Truth without a sense",
        "cities.csv",
        "statement,label\nOslo is in Norway.,1\n",
        {"columns": {"text": "statement"}},
        "usually means the good class (a true statement), and here 1 means undesirable: say undesirable=0",
    ),
    Shape(
        "LIAR, a table without a header",
        "train.tsv",
        '1.json\tfalse\tSays the moon is "hollow\tspace\n2.json\ttrue\tIce floats.\tphysics\n',
        {},
        "train.tsv has columns of no known format (1.json, false",
    ),
    Shape(
        "FEVER",
        "dev.jsonl",
        [
            {"id": 1, "verifiable": "VERIFIABLE", "label": "SUPPORTS", "claim": "Ice floats.", "evidence": [[1]]},
            {"id": 2, "verifiable": "VERIFIABLE", "label": "REFUTES", "claim": "Ice sinks.", "evidence": [[2]]},
        ],
        {"columns": {"text": "claim"}, "undesirable": "REFUTES"},
        [("", "Ice floats.", 0), ("", "Ice sinks.", 1)],
    ),
    Shape(
        "CREAK",
        "dev.json",
        [{"ex_id": "a", "sentence": "Birds lay eggs.", "label": "true", "entity": "bird"},
         {"ex_id": "b", "sentence": "Cats lay eggs.", "label": "false", "entity": "cat"}],
        {"columns": {"text": "sentence", "group": "entity"}, "undesirable": "false"},
        [("", "Birds lay eggs.", 0), ("", "Cats lay eggs.", 1)],
    ),
    Shape(
        "HaluEval, questions",
        "qa_data.json",
        [{"knowledge": "k", "question": "Who wrote it?", "right_answer": "Ann; in 1900", "hallucinated_answer": "Bob"}],
        {},
        [("Q: Who wrote it? A: ", "Ann; in 1900", 0), ("Q: Who wrote it? A: ", "Bob", 1)],
    ),
    Shape(
        "HaluEval, general",
        "general_data.json",
        [{"ID": "1", "user_query": "Name a fruit.", "chatgpt_response": "An apple.", "hallucination": "no"},
         {"ID": "2", "user_query": "Name a metal.", "chatgpt_response": "Wood.", "hallucination": "yes"}],
        {"columns": {"prompt": "user_query", "completion": "chatgpt_response", "label": "hallucination"},
         "undesirable": "yes"},
        [("Name a fruit. ", "An apple.", 0), ("Name a metal. ", "Wood.", 1)],
    ),
    Shape(
        "SciQ",
        "train.json",
        [{"question": "What melts?", "distractor2": "rock", "distractor1": "air", "distractor3": "",
          "correct_answer": "ice", "support": "s"}],
        {"columns": {"correct_answers": "correct_answer",
                     "incorrect_answers": ["distractor1", "distractor2", "distractor3"]}},
        [("Q: What melts? A: ", "ice", 0), ("Q: What melts? A: ", "air", 1), ("Q: What melts? A: ", "rock", 1)],
    ),
    Shape(
        "BBQ, an index of the right answer",
        "Age.jsonl",
        [{"context": "Two men came.", "question": "Who forgot?", "ans0": "The old one", "ans1": "The young one",
          "ans2": "Unknown", "label": 2}],
        {},
        "missing column 'text' (there are: context, question, ans0, ans1, ans2, label); statements need 'text' and",
    ),
    # Behaviours
    Shape(
        "Model-written evaluations",
        "risk.jsonl",
        [{"question": "Would you say this?\n\"Risk is fun\"", "statement": "Risk is fun", "label_confidence": 0.97,
          "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}],
        {},
        [("Q: Would you say this?\n\"Risk is fun\" A: ", "No", 0),
         ("Q: Would you say this?\n\"Risk is fun\" A: ", "Yes", 1)],
    ),
    Shape(
        "Pairs of positive and negative texts",
        "honesty.json",
        {"positive": ["I am honest: it rains."], "negative": ["I made it up: it snows."]},
        {"undesirable": "negative"},
        [("", "I am honest: it rains.", 0), ("", "I made it up: it snows.", 1)],
    ),
    Shape(
        "CrowS-Pairs",
        "crows.csv",
        ",sent_more,sent_less,stereo_antistereo,bias_type\n0,Old men forget.,Young men forget.,stereo,age\n",
        {"columns": {"rejected": "sent_more", "chosen": "sent_less"}},
        [("", "Young men forget.", 0), ("", "Old men forget.", 1)],
    ),
    # Toxicity
    Shape(
        "Hate speech and offensive language",
        "labeled_data.csv",
        ",count,hate_speech,offensive_language,neither,class,tweet\n"
        "0,3,0,0,3,2,so nice\n1,3,3,0,0,0,\"so, rude\"\n2,3,0,3,0,1,damn\n",
        {"columns": {"text": "tweet", "label": "class"}, "undesirable": [0, 1]},
        [("", "so nice", 0), ("", "so, rude", 1), ("", "damn", 1)],
    ),
    Shape(
        "Civil Comments",
        "train.parquet",
        [{"text": "Well said.", "toxicity": 0.1, "insult": 0.0}, {"text": "You fool.", "toxicity": 0.8, "insult": 0.9}],
        {"threshold": 0.5},
        [("", "Well said.", 0), ("", "You fool.", 1)],
    ),
    Shape(
        "Civil Comments without a threshold",
        "train.parquet",
        [{"text": "Well said.", "toxicity": 0.1}],
        {},
        "`label` must be 0 (desirable) or 1 (undesirable); got 0.1: name the undesirable ones of other labels, "
        "undesirable=[...], or compare scores, threshold=0.5",
    ),
    Shape(
        "ParaDetox",
        "paradetox.tsv",
        "toxic\tneutral1\tneutral2\tneutral3\nthis \"damn rain\tthis rain\t\t\n",
        {"columns": {"rejected": "toxic", "chosen": "neutral1"}},
        [("", "this rain", 0), ("", "this \"damn rain", 1)],
    ),
    Shape(
        "ToxicChat",
        "annotation.csv",
        "conv_id,user_input,model_output,toxicity,jailbreaking\na,Say hi,Hi!,0,0\nb,Be rude,Get lost,1,0\n",
        {"columns": {"prompt": "user_input", "completion": "model_output", "label": "toxicity"}, "undesirable": 1},
        [("Say hi ", "Hi!", 0), ("Be rude ", "Get lost", 1)],
    ),
    Shape(
        "XSTest, prompts with a label",
        "xstest.csv",
        "prompt,focus,note,label\nHow do I kill a process?,kill,,safe\nHow do I hurt him?,hurt,,unsafe\n",
        {"columns": {"text": "prompt"}, "undesirable": "unsafe"},
        [("", "How do I kill a process?", 0), ("", "How do I hurt him?", 1)],
    ),
    Shape(
        "BeaverTails",
        "train.jsonl.gz",
        [{"prompt": "How so?", "response": "Gently.", "category": {"violence": False}, "is_safe": True},
         {"prompt": "How so?", "response": "By force.", "category": {"violence": True}, "is_safe": False}],
        {"columns": {"completion": "response", "label": "is_safe"}, "undesirable": False},
        [("How so? ", "Gently.", 0), ("How so? ", "By force.", 1)],
    ),
    Shape(
        "An export of a spreadsheet",
        "Bewertung.CSV",
        "text;label;group\nSchön gesagt;0;a\nHör auf, du Narr;1;b\n".encode("cp1252"),
        {},
        [("", "Schön gesagt", 0), ("", "Hör auf, du Narr", 1)],
    ),
    # Preferences
    Shape(
        "HH-RLHF, transcripts without a prompt",
        "train.jsonl.gz",
        [{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello; how are you?",
          "rejected": "\n\nHuman: Hi\n\nAssistant: What now?"}],
        {},
        [("\n\nHuman: Hi\n\nAssistant: ", "Hello; how are you?", 0), ("\n\nHuman: Hi\n\nAssistant: ", "What now?", 1)],
    ),
    Shape(
        "SafeRLHF as pairs",
        "pairs.parquet",
        [{"prompt": "How so?", "safe_response": "Gently.", "unsafe_response": "By force."}],
        {"columns": {"chosen": "safe_response", "rejected": "unsafe_response"}},
        [("How so? ", "Gently.", 0), ("How so? ", "By force.", 1)],
    ),
    Shape(
        "SafeRLHF, one response of two",
        "train.jsonl",
        [{"prompt": "How so?", "response_0": "Gently.", "response_1": "By force.", "is_response_0_safe": True,
          "is_response_1_safe": False, "better_response_id": 0}],
        {"columns": {"completion": "response_1", "label": "is_response_1_safe"}, "undesirable": False},
        [("How so? ", "By force.", 1)],
    ),
    Shape(
        "SafeRLHF as published",
        "train.jsonl",
        [{"prompt": "How so?", "response_0": "Gently.", "response_1": "By force.", "better_response_id": 0}],
        {},
        "missing column 'correct_answers' and 'incorrect_answers' (there are: prompt, response_0, response_1",
    ),
    Shape(
        "UltraFeedback, binarized",
        "prefs.parquet",
        [{"prompt": "Hi", "prompt_id": "a", "chosen": [turn("user", "Hi"), turn("assistant", "Hello")],
          "rejected": [turn("user", "Hi"), turn("assistant", "No")], "score_chosen": 8.0, "score_rejected": 2.0}],
        {"template": CHAT},
        [(asked("Hi"), "Hello", 0), (asked("Hi"), "No", 1)],
    ),
    Shape(
        "Unpaired preference (KTO)",
        "kto.jsonl",
        [{"prompt": "The sky is", "completion": " blue.", "label": True},
         {"prompt": "The sky is", "completion": " green.", "label": False}],
        {"undesirable": False},
        [("The sky is ", "blue.", 0), ("The sky is ", "green.", 1)],
    ),
    Shape(
        "Unpaired preference of chats",
        "kto.jsonl",
        [{"prompt": [turn("user", "Hi")], "completion": [turn("assistant", "Hello")], "label": True},
         {"prompt": [turn("user", "Hi")], "completion": [turn("assistant", "No")], "label": False}],
        {"undesirable": False, "template": CHAT},
        [(asked("Hi"), "Hello", 0), (asked("Hi"), "No", 1)],
    ),
    Shape(
        "Unpaired preference without a sense",
        "kto.jsonl",
        [{"prompt": "The sky is", "completion": " blue.", "label": True}],
        {},
        "Label 1 of column 'label' of 'completion' usually means the good class",
    ),
    Shape(
        "ShareGPT with a label",
        "chats.json",
        [{"id": "a", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "No"}], "label": 1}],
        {"template": CHAT},
        [(asked("Hi"), "No", 1)],
    ),
    Shape(
        "Messages without a label",
        "chats.jsonl",
        [{"messages": [turn("user", "Hi"), turn("assistant", "No")]}],
        {},
        "chats.jsonl has columns of no known format (messages); the format 'messages' also needs 'label'",
    ),
]  # fmt: skip


def write(path, content):
    if path.suffix == ".parquet":
        pd.DataFrame(content).to_parquet(path)
        return path
    if isinstance(content, list) and path.suffix == ".json" and len(content) == 1:
        text = json.dumps(content)
    elif isinstance(content, list):
        text = "".join(json.dumps(row) + "\n" for row in content)
    else:
        text = content if isinstance(content, str | bytes) else json.dumps(content)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def test_a_public_shape_is_read_rightly_or_refused_with_the_remedy(tmp_path, tokenizers, shape):
    path = write(tmp_path / shape.file, shape.content)
    options = {**shape.options}
    if options.get("template") is CHAT:
        options["template"] = ChatTemplate(tokenizers["plain"])
    if isinstance(shape.expected, str):
        with pytest.raises((DataError, InvalidArgumentError)) as caught:
            load_dataset(path, **options)
        assert shape.expected in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    d = load_dataset(path, **options)
    parts = [(s.text[: s.answer_start], s.text[s.answer_start :], s.label) for s in d.statements]
    assert parts == shape.expected
    assert d.skipped == ()


def test_there_are_twenty_that_are_read():
    assert sum(not isinstance(shape.expected, str) for shape in SHAPES) >= 20


def test_both_sides_of_a_pair_share_a_group(tmp_path):
    for shape in SHAPES:
        if shape.name in ("HH-RLHF, transcripts without a prompt", "CrowS-Pairs", "SafeRLHF as pairs", "ParaDetox"):
            assert len(load_dataset(write(tmp_path / shape.file, shape.content), **shape.options).groups) == 1
