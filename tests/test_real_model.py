"""SmolLM2 from its package: load, collect, fit, steer, and one fold of the benchmark on a small part of the data."""

from __future__ import annotations

import pytest
import torch

import radiant_lens as rl
from radiant_lens.datasets import ChatTemplate
from radiant_lens.errors import ModelLoadError
from radiant_lens.models.sources import find_source
from radiant_lens.studies.benchmark import Benchmark

NAME = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def model():
    # The package holds the weights; importing it would need packages that are not for us.
    try:
        find_source(NAME)
    except ModelLoadError as error:
        pytest.skip(str(error))
    return rl.load_model(NAME)


@pytest.fixture(scope="module")
def data(model):
    return rl.load_dataset("misconceptions", model=model).sample(60)


def test_texts_are_tokenized_as_the_chat_template_does_it(model, data):
    assert isinstance(data.template, ChatTemplate)
    prompt = data.prompts[0]
    turns = [{"role": "user", "content": prompt.question}]
    expected = model.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    statement = prompt.answered(prompt.best_answer)
    cache = rl.collect(model, [statement], positions="all")
    assert len(cache.z) > len(expected)
    first = rl.collect(model, [statement])
    assert int(first.positions.min()) == len(expected) - 1


def test_shared_rows_collect_what_separate_rows_collect(data):
    """In single precision: in bfloat16 the order of a sum alone changes activations by two percent."""
    model = rl.load_model(NAME, dtype="float32")
    statements = [s for s in data.statements if s.group in sorted(data.groups)[:2]]
    shared = rl.collect(model, statements).z
    alone = torch.cat([rl.collect(model, [statement]).z for statement in statements])
    assert float((shared - alone).norm() / alone.norm()) < 1e-5


def test_a_steering_changes_what_it_says_within_its_budget(model, data):
    train, validation, test = data.split((0.6, 0.2, 0.2))
    policy = rl.LeastKLPolicy(budget=0.2, heads="layer:15", n_draws=1)
    steering = policy.fit(model, train, validation=validation)
    assert steering.meta["least_kl"]["steps"][0]["measured_kl"] == pytest.approx(0.2, rel=0.05)
    prompt = test.prompts[0].text
    plain = model.generate(prompt, max_new_tokens=12, verbose=False, do_sample=False, prepend_bos=False)
    with rl.steer(model, steering, strength=4):
        steered = model.generate(prompt, max_new_tokens=12, verbose=False, do_sample=False, prepend_bos=False)
    assert plain != steered
    assert plain == model.generate(prompt, max_new_tokens=12, verbose=False, do_sample=False, prepend_bos=False)


def test_one_fold_of_the_benchmark(model, data):
    benchmark = Benchmark(
        model, data, arms=["prompt", "mean shift"], budgets=(0.1,), folds=(0,), gates=("none",), n_answered=4
    )
    result = benchmark.run()
    table = result.to_dataframe().set_index("arm")
    assert set(table.index) == {"none", "prompt", "mean shift"}
    assert 0.3 < table.loc["none", "mc2"] < 0.95 and table.loc["none", "kl"] == 0
    steered = result.questions[result.questions["arm"] == "mean shift"]
    assert steered["validation_kl"].iloc[0] == pytest.approx(0.1, rel=0.05)
    assert table.loc["prompt", "kl"] > 0
    assert (result.questions["verdict"] != "").sum() == 3 * 4
