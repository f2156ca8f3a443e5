"""The doctor's facts: threads, the rule for special tokens, and a Hub that cannot be reached."""

from __future__ import annotations

import json

import pytest
import torch

import radiant_lens as rl
from radiant_lens.checkup import check_up
from radiant_lens.cli import doctor
from radiant_lens.cli import threads as module
from radiant_lens.cli.doctor import examine, rows, token_rule
from radiant_lens.cli.threads import threads_advice, usable_cores
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.models.loading import load_plain


@pytest.mark.parametrize(
    ("threads", "cores", "load", "advice"),
    [
        (2, 2, 0.1, None),
        # The doctor itself is part of the load.
        (2, 2, 1.2, None),
        (8, 2, 0.1, "torch uses 8 threads, and 2 cores have a load of 0.1: set OMP_NUM_THREADS=2"),
        (2, 2, 5.0, "2 cores have a load of 5: set OMP_NUM_THREADS=1, or call torch.set_num_threads.1."),
        (16, 16, 9.0, "set OMP_NUM_THREADS=8"),
        (4, 2, None, "torch uses 4 threads, and 2 cores can be used: set OMP_NUM_THREADS=2"),
        (1, 1, 50.0, None),
    ],
)
def test_more_threads_than_free_cores_are_named(threads, cores, load, advice):
    text = threads_advice(threads, cores, load)
    assert text == "" if advice is None else advice.replace(".1.", "(1)") in text


@pytest.mark.parametrize(
    ("content", "cores"), [("max 100000", 64), ("200000 100000", 2), ("50000 100000", 1), ("?", 64)]
)
def test_the_quota_of_a_container_counts(monkeypatch, tmp_path, content, cores):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(module, "_QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(content)
    assert usable_cores() == cores


def test_the_rule_for_special_tokens_is_told(model):
    assert token_rule(model) == "texts begin with '<bos>' (as by the model's own tokenizer)"
    without = rl.load_model("tiny", prepend_bos=False)
    assert token_rule(without).startswith("texts begin without a BOS token (set by `prepend_bos`; the model's own")


def test_what_the_doctor_prints(command_line, monkeypatch):
    monkeypatch.setattr(doctor, "load_average", lambda: 30.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    status, out, _ = command_line("doctor", "tiny", "--json")
    report = json.loads(out)
    assert (status, report["ok"]) == (0, True)
    assert report["threads"]["load"] == 30.0 and "set OMP_NUM_THREADS=1" in report["threads"]["advice"]
    table = {row["check"]: row["result"] for row in rows(report)}
    assert table["dtype"] == "float32" and table["special tokens"].startswith("texts begin with '<bos>'")
    assert "OMP_NUM_THREADS" in table["threads"]
    assert not {"content", "weights", "config"} & set(table)


@pytest.mark.parametrize(("load", "told"), [(30.0, True), (0.1, False)])
def test_commands_that_run_a_model_say_so_too(command_line, monkeypatch, load, told):
    monkeypatch.setattr(module, "load_average", lambda: load)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    status, _, err = command_line("generate", "--max-new-tokens", "1", "Q:")
    assert status == 0 and ("radiant-lens: torch uses 2 threads, and 2 cores have a load of 30" in err) == told


def test_what_is_checked_is_what_is_used():
    report = examine("tiny", dtype="bfloat16", prepend_bos=False)
    assert report["ok"] and report["model"]["dtype"] == "bfloat16"
    assert report["model"]["special tokens"].startswith("texts begin without a BOS token (set by `prepend_bos`")


def test_the_command_checks_what_its_options_say(command_line):
    status, out, _ = command_line("doctor", "tiny", "--dtype", "bfloat16", "--no-prepend-bos", "--json")
    model = json.loads(out)["model"]
    assert status == 0 and model["dtype"] == "bfloat16" and "without a BOS token" in model["special tokens"]


def test_an_unknown_precision_is_bad_usage_and_no_failed_check(command_line):
    words = "`dtype` must be one of 'auto', 'float32', 'bfloat16', 'float16', 'float64'; got 'int8'"
    with pytest.raises(InvalidArgumentError, match=words):
        examine("tiny", dtype="int8")
    status, _, err = command_line("doctor", "tiny", "--dtype", "int8")
    assert status == 2 and words in " ".join(err.split())


def test_a_hub_that_cannot_be_reached_is_said(command_line):
    status, out, _ = command_line("doctor", "bert-base-uncased", "--json")
    (check,) = json.loads(out)["checks"]
    assert status == 1 and "the Hugging Face Hub cannot be reached (HF_HUB_OFFLINE is set)" in check["detail"]


def test_a_bridge_that_is_wrong_under_a_mask_alone_fails_the_check_up(foreign_folder, monkeypatch):
    bridge = rl.load_model(foreign_folder)
    forward = type(bridge).forward

    def seeing_all(self, *args, attention_mask=None, **options):
        logits = forward(self, *args, attention_mask=attention_mask, **options)
        return logits if attention_mask is None else logits + logits.mean(1, keepdim=True)

    monkeypatch.setattr(type(bridge), "forward", seeing_all)
    failures = {f.check for f in check_up(bridge, load_plain(foreign_folder, bridge)) if not f.holds}
    assert "logits agree with plain transformers" in failures
