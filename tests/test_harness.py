"""lm-evaluation-harness: the numbers of a naive loop and of the harness's own model; local tasks; its command line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import logits_set

import radiant_lens as rl
from radiant_lens.cli import main
from radiant_lens.errors import (
    ArtefactError,
    DataError,
    InvalidArgumentError,
    ModelLoadError,
    ModelMismatchError,
    RadiantError,
    UnknownNameError,
)
from radiant_lens.evaluation import generate_answers

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'radiant-lens[harness]'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from radiant_lens.harness import SteeredLM
from radiant_lens.tiny import model_folder

ROOT = Path(rl.__file__).parent.parent


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test here may even try to reach another machine."""

    def refuse(self, address):
        raise AssertionError(f"tried to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def prompts(experiment):
    """Bare prompts, and prompts after one to four misconceptions, so that edits happen."""
    # Edits follow from what precedes the question: under misconceptions the gates open.
    test, chosen = experiment.test, []
    for n in (1, 2, 3, 4):
        longer = replace(test, contexts=replace(test.contexts, n_before=n)).prompts
        chosen += [p for p in longer if p.condition == "after_undesirable"][:4]
    chosen += experiment.test.bare_prompts[:4]
    assert len({len(p.text.split()) for p in chosen}) > 3
    return chosen


@pytest.fixture(scope="module")
def pairs(prompts):
    """(context, continuation): true and false answers, single words with one context, an empty context, a long one."""
    answers = [(p.text, f" {a}") for p in prompts for a in (p.correct_answers[0], p.incorrect_answers[0])]
    words = [(prompts[0].text, f" {word}") for word in ("the", "soup", "red")]
    # The same tokens with two places where the answer begins: edits begin elsewhere too.
    text = f"{prompts[1].text} {prompts[1].incorrect_answers[0]}".split()
    moved = [(" ".join(text[:n]), " " + " ".join(text[n:])) for n in (8, len(text) - 1)]
    long = " ".join([prompts[0].text] * 30)
    return [*answers, *words, *moved, ("", "the capital of dupeka"), (long, answers[0][1])]


@pytest.fixture(scope="module")
def texts(model, experiment):
    """Whole texts, the last one of a window and a half, full of misconceptions."""
    short = [s.text for s in experiment.test.statements[:3]]
    words = " ".join(s.text for s in experiment.test.statements if s.label == 1).split()[:400]
    assert len(model.tokenizer(" ".join(words))["input_ids"]) > 380
    return [*short, " ".join(words)]


def ask(kind, arguments):
    return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


def naive(model, ids, n_new, steering, *, start=None):
    """The last `n_new` tokens of one window: log-probability, and whether each is the likeliest."""
    ids = ids[-257:]
    first = len(ids) - n_new - 1
    at = torch.tensor([first if start is None else start])
    hooks = [] if steering is None else steering.hooks(start=at)
    with torch.no_grad():
        log_probs = model.run_with_hooks(torch.tensor([ids[:-1]]), fwd_hooks=hooks)[0].double().log_softmax(-1)
    steps = range(first, len(ids) - 1)
    total = sum(float(log_probs[i, ids[i + 1]]) for i in steps)
    return total, all(int(log_probs[i].argmax()) == ids[i + 1] for i in steps)


def naive_pair(model, context, continuation, steering):
    whole = model.tokenizer(context + continuation)["input_ids"]
    return naive(model, whole, len(whole) - max(len(model.tokenizer(context)["input_ids"]), 1), steering)


def naive_text(model, text, steering, *, start=0):
    """Each token but BOS once, in windows of 256, all of it edited."""
    ids, total = model.tokenizer(text)["input_ids"], 0.0
    for begin in range(1, len(ids), 256):
        window = ids[: min(begin + 256, len(ids))]
        total += naive(model, window, len(window) - begin, steering, start=start)[0]
    return total


def close(answers, expected, tolerance):
    numbers, flags = zip(*answers)
    assert numbers == pytest.approx([n for n, _ in expected], abs=tolerance, rel=tolerance)
    assert list(flags) == [f for _, f in expected]


@pytest.fixture(params=["plain", "steered"])
def chosen(request, steering):
    return None if request.param == "plain" else steering


def test_pairs_equal_a_naive_loop_at_any_batch_size(model, chosen, pairs):
    expected = [naive_pair(model, *pair, chosen) for pair in pairs]
    for batch_size in (1, 5, 64):
        answers = SteeredLM(model, steering=chosen, batch_size=batch_size).loglikelihood(ask("loglikelihood", pairs))
        close(answers, expected, 1e-5)
    assert {flag for _, flag in expected} == {True, False}


def test_texts_equal_a_naive_loop_at_any_batch_size(model, chosen, texts):
    expected = [naive_text(model, text, chosen) for text in texts]
    for batch_size in (1, 4):
        lm = SteeredLM(model, steering=chosen, batch_size=batch_size)
        answers = lm.loglikelihood_rolling(ask("loglikelihood_rolling", [(t,) for t in texts]))
        assert answers == pytest.approx(expected, rel=1e-5)


def test_where_edits_begin_matters(model, steering, pairs, texts):
    """The twin of the two tests above: a naive loop that edits elsewhere, or not at all, gives other numbers."""
    context, continuation = pairs[0]
    ids = model.tokenizer(context + continuation)["input_ids"]
    n_new = len(ids) - len(model.tokenizer(context)["input_ids"])
    right, elsewhere = naive_pair(model, context, continuation, steering), len(ids) - n_new
    wrong = [naive(model, ids, n_new, None), *(naive(model, ids, n_new, steering, start=i) for i in (0, elsewhere))]
    assert all(abs(right[0] - other[0]) > 1e-3 for other in wrong)
    whole = naive_text(model, texts[-1], steering)
    assert abs(whole - naive_text(model, texts[-1], None)) > 0.1
    # The last window begins with text that is continuation, too, though it was scored in the window before.
    assert abs(whole - naive_text(model, texts[-1], steering, start=None)) > 0.1


def test_unsteered_is_the_harness_s_own_model(model, pairs, texts, prompts):
    ours = SteeredLM(model, batch_size=8)
    # Its cache of logits (0.4.13) mixes up continuations that begin at different places of the same tokens.
    theirs = HFLM(pretrained=str(model_folder()), device="cpu", batch_size=8, logits_cache=False)
    close(ours.loglikelihood(ask("loglikelihood", pairs)), theirs.loglikelihood(ask("loglikelihood", pairs)), 1e-4)
    rolling = ask("loglikelihood_rolling", [(t,) for t in texts])
    # With the tokenizer's BOS `hf` would read two, its prefix and the text's own (lm-evaluation-harness #3333).
    theirs.add_bos_token = False
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling), rel=1e-4)
    theirs.add_bos_token = None
    generate = ask("generate_until", [(p.text, {"until": ["."], "max_gen_toks": 12}) for p in prompts])
    assert ours.generate_until(generate) == theirs.generate_until(generate)


def test_generation_is_that_of_generate_answers_alone_and_in_batches(model, steering, prompts):
    texts = [p.text for p in prompts]
    generate = ask("generate_until", [(t, {"until": [" ."], "max_gen_toks": 12}) for t in texts])
    with rl.steer(model, steering):
        expected = [a[0].split(" .")[0] for a in generate_answers(model, texts, max_new_tokens=12, temperature=0)]
    for batch_size in (1, 3, 16):
        answers = SteeredLM(model, steering=steering, batch_size=batch_size).generate_until(generate)
        assert [a.split(" .")[0].strip() for a in answers] == expected
    plain = SteeredLM(model, batch_size=16).generate_until(generate)
    assert sum(a.strip() != e for a, e in zip(plain, expected)) >= 4


def test_stop_strings_options_and_length(model, steering, prompts):
    lm = SteeredLM(model, steering=steering, batch_size=4)

    def generated(**options):
        return lm.generate_until(ask("generate_until", [(p.text, options) for p in prompts[:4]]))

    # The harness cuts at a stop string wherever it is, unlike `generate_answers` with its markers.
    free = generated(max_gen_toks=12)
    assert generated(max_gen_toks=12, until=["capital", "is"]) == [t.split("capital")[0].split("is")[0] for t in free]
    assert [len(t.split()) for t in generated(max_gen_toks=3)] == [3] * 4
    sampled = [generated(max_gen_toks=12, do_sample=True, temperature=5.0) for _ in range(2)]
    assert sampled[0] != sampled[1]
    assert free == generated(max_gen_toks=12, do_sample=False)
    with pytest.raises(AssertionError, match="must be less than model's maximum sequence length"):
        generated(max_gen_toks=256)


def test_long_and_empty_contexts(model, steering, prompts):
    lm = SteeredLM(model, steering=steering, batch_size=2)
    long = " ".join([prompts[0].text] * 40)
    options = {"max_gen_toks": 6, "until": []}
    answers = lm.generate_until(ask("generate_until", [(long, options), ("", options), (prompts[0].text, options)]))
    assert lm.n_truncated == {"generate_until": 1}
    ids = model.tokenizer(long)["input_ids"][-250:]
    with rl.steer(model, steering), torch.no_grad():
        output = model.generate(
            torch.tensor([ids]), max_new_tokens=6, do_sample=False, return_type="tokens", verbose=False
        )
    assert answers[0] == model.tokenizer.decode(output[0, 250:], skip_special_tokens=True)
    assert len(answers[1].split()) > 1
    lm.loglikelihood(ask("loglikelihood", [(long, " the soup"), ("the", " soup")]))
    assert lm.get_model_info()["n_truncated"] == {"generate_until": 1, "loglikelihood": 1}
    assert lm.get_model_info()["steering"] == repr(steering)


def test_the_window_can_be_made_smaller(model, texts):
    small = SteeredLM(model, max_length=32, max_gen_toks=5)
    rolling = ask("loglikelihood_rolling", [(texts[-1],)])
    assert (small.max_length, small.max_gen_toks) == (32, 5)
    assert small.loglikelihood_rolling(rolling) < SteeredLM(model).loglikelihood_rolling(rolling)


def test_batches_of_the_size_that_fits(model, steering, pairs):
    auto = SteeredLM(model, steering=steering, batch_size="auto", max_batch_size=4)
    requests = ask("loglikelihood", pairs[:6])
    expected = SteeredLM(model, steering=steering, batch_size="3").loglikelihood(requests)
    close(auto.loglikelihood(requests), expected, 1e-5)
    assert auto.loglikelihood([]) == []


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, prompts):
    """A folder with three local tasks; returns it and their names."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": p.text, "choices": [p.correct_answers[0], p.incorrect_answers[0]], "text": p.text} for p in prompts
    ]
    (folder / "facts.json").write_text(json.dumps(rows))
    metrics = {
        "multiple_choice": ["acc"],
        "generate_until": ["exact_match"],
        "loglikelihood_rolling": ["word_perplexity"],
    }
    extra = {
        "multiple_choice": {"doc_to_choice": "{{choices}}", "doc_to_target": 0},
        "generate_until": {
            "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": ["Q"], "max_gen_toks": 7},
        },
        "loglikelihood_rolling": {"doc_to_target": "{{text}}"},
    }
    for kind, names in metrics.items():
        task = {
            "task": f"local_{kind}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "facts.json")}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            "output_type": kind,
            "doc_to_text": "" if kind == "loglikelihood_rolling" else "{{question}}",
            "metric_list": [{"metric": n, "higher_is_better": True} for n in names],
            **extra[kind],
        }
        # JSON is YAML.
        (folder / f"{kind}.yaml").write_text(json.dumps(task))
    return folder, [f"local_{kind}" for kind in metrics]


def evaluated(lm, tasks, **options):
    folder, names = tasks
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(model=lm, tasks=names, task_manager=manager, bootstrap_iters=0, **options)


def values(results):
    return {
        (task.removeprefix("local_"), name.split(",")[0]): value
        for task, metrics in results["results"].items()
        for name, value in metrics.items()
        if name.split(",")[0] in ("acc", "exact_match", "word_perplexity")
    }


@pytest.fixture(scope="module")
def measured(model, steering, tasks):
    """Results of three local tasks, without and with steering."""
    return [values(evaluated(SteeredLM(model, steering=s, batch_size=8), tasks)) for s in (None, steering)]


def test_tasks_from_python(model, steering, prompts, measured):
    plain, steered = measured
    for steer, results in ((None, plain), (steering, steered)):
        right = [
            naive_pair(model, p.text, f" {p.correct_answers[0]}", steer)[0]
            > naive_pair(model, p.text, f" {p.incorrect_answers[0]}", steer)[0]
            for p in prompts
        ]
        assert results["multiple_choice", "acc"] == pytest.approx(sum(right) / len(prompts))
    assert steered["multiple_choice", "acc"] >= plain["multiple_choice", "acc"] + 0.3
    assert steered["generate_until", "exact_match"] >= plain["generate_until", "exact_match"] + 0.3
    assert steered["loglikelihood_rolling", "word_perplexity"] != plain["loglikelihood_rolling", "word_perplexity"]


def test_tasks_by_name(steering, tasks, measured, tmp_path):
    """`simple_evaluate(model="radiant-lens")`, its options as text, on a saved steering."""
    path = steering.save(tmp_path / "steering")
    results = evaluated("radiant-lens", tasks, model_args=f"steering={path}", batch_size=8, device="cpu")
    assert values(results) == pytest.approx(measured[1])
    assert get_model("radiant-lens") is SteeredLM
    assert results["config"]["model_signature"]["name"] == "tiny"


def test_later_versions_find_the_model_by_its_entry_point():
    declared = (ROOT / "pyproject.toml").read_text().split('[project.entry-points."lm_eval.models"]\n')[1]
    assert declared.startswith(f'radiant-lens = "{SteeredLM.__module__}:{SteeredLM.__name__}"\n')


def test_the_command_line(steering, tasks, measured, tmp_path):
    """A process of its own: `radiant-lens lm-eval --model radiant-lens ...`."""
    path = steering.save(tmp_path / "steering")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    arguments = (
        f"--model radiant-lens --model_args pretrained=tiny,steering={path} --batch_size 8 --tasks {','.join(tasks[1])}"
    )
    arguments += f" --include_path {tasks[0]} --output_path {tmp_path / 'out'}"
    command = [sys.executable, "-c", "from radiant_lens.cli import main; main()", "lm-eval", *arguments.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "|local_multiple_choice" in done.stdout
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert values(json.loads(written.read_text())) == pytest.approx(measured[1])


def test_options_of_the_command_line_are_lm_eval_s_own(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["radiant-lens", "lm-eval", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "Language Model Evaluation Harness" in capsys.readouterr().out
    assert sys.argv == ["radiant-lens", "lm-eval", "--help"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steering": "nowhere"}, ArtefactError, "There is no folder 'nowhere' with a saved steering"),
        ({"steering": 3}, InvalidArgumentError, "`steering` must be a folder or a Steering; got int"),
        ({"pretrained": "./nowhere"}, ModelLoadError, "There is no folder './nowhere'"),
        ({"pretrained": "tinny"}, UnknownNameError, "did you mean 'tiny'"),
        ({"dtype": "int8"}, InvalidArgumentError, "`dtype` must be one of 'auto', 'float32'"),
        ({"batch_size": 0}, InvalidArgumentError, "`batch_size` must be a whole number of at least 1; got 0"),
        ({"batch_size": "many"}, InvalidArgumentError, "`batch_size` must be a whole number"),
        ({"max_length": 1}, InvalidArgumentError, "`max_length` must be a whole number of at least 2"),
        ({"max_gen_toks": 0}, InvalidArgumentError, "`max_gen_toks` must be a whole number"),
        ({"steerng": "x"}, TypeError, "unexpected keyword argument 'steerng'"),
    ],
)
def test_wrong_arguments_raise_errors(monkeypatch, tmp_path, options, error, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        SteeredLM(**options)


@pytest.mark.parametrize("given", ["steerng=x", {"steerng": "x"}])
def test_an_unknown_option_among_model_args_raises_an_error(tasks, given):
    with pytest.raises(UnknownNameError, match="'steerng' is not a known option .* did you mean 'steering'"):
        evaluated("radiant-lens", tasks, model_args=given)


def test_a_steering_for_another_model_raises_an_error(steering, foreign_folder):
    with pytest.raises(ModelMismatchError, match="architecture"):
        SteeredLM(foreign_folder, steering=steering)


def test_logits_that_are_not_numbers_raise_an_error(model, pairs):
    with logits_set(model, 3, torch.inf), pytest.raises(RadiantError, match="logits are not numbers"):
        SteeredLM(model).loglikelihood(ask("loglikelihood", pairs[:1]))


def test_continuations_without_tokens_or_beyond_the_window_raise_errors(model):
    lm = SteeredLM(model)
    with pytest.raises(DataError, match="1 to 256 tokens; got 0"):
        lm.loglikelihood(ask("loglikelihood", [("the capital", "")]))
    with pytest.raises(DataError, match="1 to 256 tokens; got 300"):
        lm.loglikelihood(ask("loglikelihood", [("the capital", " the" * 300)]))


def test_without_the_harness_the_command_names_the_package_to_install():
    code = "import sys; sys.modules['lm_eval'] = None; sys.argv = ['radiant-lens', 'lm-eval', 'ls']; "
    code += "from radiant_lens.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "pip install 'radiant-lens[harness]'" in done.stderr
    assert "Traceback" not in done.stderr
