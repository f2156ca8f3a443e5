"""Generated answers: the same for the same seed, alone or in a batch."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from conftest import logits_set
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

import radiant_lens as rl
from radiant_lens.datasets.records import Statement
from radiant_lens.errors import RadiantError
from radiant_lens.evaluation import generate_answers
from radiant_lens.evaluation.generation import _cut, _Drawing, draws, generate_tokens
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.tiny import model_folder


def test_answers_end_at_the_first_stop_string():
    assert _cut(" it is so . Q : what", (".", "?")) == "it is so ."
    assert _cut(" it is so ", (".",)) == "it is so"
    assert _cut(" it is so\nQ: what?", ("\n", "Q:")) == "it is so"
    assert _cut(" it is so Q: what?", ("\n", "Q:")) == "it is so"


def test_answers_are_the_same_for_the_same_seed(model, experiment):
    prompts = [p.text for p in experiment.test.prompts[:6]]
    one = generate_answers(model, prompts, n_samples=3, seed=1, stop=(".",))
    assert one == generate_answers(model, prompts, n_samples=3, seed=1, stop=(".",))
    assert one != generate_answers(model, prompts, n_samples=3, seed=2, stop=(".",))
    assert all(len(given) == 3 for given in one)
    assert all(answer.count(".") <= 1 for given in one for answer in given)


def test_sampled_answers_do_not_depend_on_the_batch(model, experiment):
    prompts = [p.text for p in experiment.test.prompts[::20]]
    together = generate_answers(model, prompts, n_samples=2, stop=(".",))
    assert together == generate_answers(model, prompts, n_samples=2, stop=(".",), max_tokens=1)
    assert together[:3] == generate_answers(model, prompts[:3], n_samples=2, stop=(".",))
    assert together != generate_answers(model, prompts[::-1], n_samples=2, stop=(".",))[::-1]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_come_as_often_as_the_model_says(model, temperature):
    prompt = "Q : what is the capital of"
    tokens = model.to_tokens(prompt)
    probabilities = (model(tokens)[0, -1].double() / temperature).softmax(-1).detach()
    n = 4000
    new = generate_tokens(model, tokens.expand(n, -1), torch.ones(n, tokens.shape[1]), draws(n, 1, 0), temperature, ())
    counts = new[:, 0].bincount(minlength=len(probabilities))
    common = probabilities > 0.01
    expected = torch.cat([probabilities[common], probabilities[~common].sum()[None]]) * n
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    assert chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-3
    assert chisquare(seen.numpy(), expected.roll(1).numpy()).pvalue < 1e-6


def test_a_draw_falls_on_the_token_whose_share_it_lies_in():
    logits = torch.tensor([[[9.0, 9.0, 9.0], [0.2, 0.0, 0.8]]]).expand(5, -1, -1).log()
    uniform = torch.tensor([[0.0], [0.19], [0.21], [0.99], [1 - 2**-24]])
    shares = _Drawing(uniform, 1.0)(None, None, logits)
    assert shares[:, 0].argmax(-1).tolist() == [0, 0, 2, 2, 2]
    assert shares.shape == (5, 1, 3)


def test_no_hook_stays_behind(model):
    generate_answers(model, ["Q : what is the"])
    with pytest.raises(IndexError):
        generate_tokens(model, torch.tensor([[10**6]]), torch.ones(1, 1), draws(1, 1, 0), 1.0, ())
    assert not model._forward_hooks


def test_greedy_answers_do_not_depend_on_the_batch(model, experiment):
    prompts = [p.text for p in experiment.test.prompts[::40]]
    together = generate_answers(model, prompts, temperature=0, stop=(".",))
    alone = [generate_answers(model, [p], temperature=0, stop=(".",))[0] for p in prompts]
    small = generate_answers(model, prompts, temperature=0, stop=(".",), max_tokens=1)
    assert together == alone == small


def test_generation_leaves_the_global_seed_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate_answers(model, ["Q : what is the"], seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_no_number_is_no_answer(model):
    def spoil(z, hook):
        return z * torch.nan

    prompts = ["Q : what", "Q : what is the capital of"]
    said = Statement("Q : what is it ? A : soup .", 1, "g", 19)
    for hooks in ([], [("blocks.3.attn.hook_z", spoil)]):
        with model.hooks(fwd_hooks=hooks):
            expected = pytest.raises(RadiantError, match="logits are not numbers") if hooks else nullcontext()
            with expected:
                generate_answers(model, prompts, max_new_tokens=2)
            with expected:
                score_statements(model, [said])


@pytest.mark.parametrize(
    ("value", "tokens"), [(torch.nan, 3), (torch.inf, 3), (-torch.inf, slice(None))], ids=["NaN", "infinity", "none"]
)
def test_logits_without_probabilities_are_no_numbers(model, value, tokens):
    said = Statement("Q : what is it ? A : soup .", 1, "g", 19)
    with logits_set(model, tokens, value):
        for read in (
            lambda: generate_answers(model, ["Q : what"], max_new_tokens=2),
            lambda: score_statements(model, [said]),
        ):
            with pytest.raises(RadiantError, match=r"logits are not numbers \(NaN or infinity\)"):
                read()


def test_double_precision_has_no_numbers_for_padded_rows_and_says_so():
    plain = AutoModelForCausalLM.from_pretrained(model_folder(), attn_implementation="eager").eval().double()
    double = rl.load_model(plain)
    assert generate_answers(double, ["Q : what", "A : what"], max_new_tokens=2)
    with pytest.raises(RadiantError, match="float64 has none for padded rows"):
        generate_answers(double, ["Q : what", "Q : what is the capital of"], max_new_tokens=2)
