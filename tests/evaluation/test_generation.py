"""Generated answers: the same for the same seed, alone or in a batch."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from conftest import logits_set
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

import radiant_lens as rl
from radiant_lens.datasets.records import Statement
from radiant_lens.errors import InvalidArgumentError, RadiantError
from radiant_lens.evaluation import generate_answers
from radiant_lens.evaluation.generation import Drawing, draws, generate_tokens
from radiant_lens.evaluation.likelihood import score_statements
from radiant_lens.evaluation.stops import cut_answer, has_ended
from radiant_lens.tiny import model_folder


@pytest.mark.parametrize(
    ("text", "stop", "answer"),
    [
        (" it is so . Q : what", (".", "?"), "it is so ."),
        (" it is so ", (".",), "it is so"),
        (" it is so\nQ: what?", ("\n", "Q:"), "it is so"),
        # A line break before the answer is no end of it.
        ("\nit is so\nQ: what?", ("\n", "Q:"), "it is so"),
        (" \n\n \t it is so", ("\n",), "it is so"),
        ("\n \n", ("\n",), ""),
        # A marker counts at the start of a line only.
        (" see the FAQ: it is so", ("\n", "Q:"), "see the FAQ: it is so"),
        (" it is so Q: what?", ("\n", "Q:"), "it is so Q: what?"),
        (" it is so\n  Q: what?", ("Q:",), "it is so"),
        ("\nQ: what?", ("\n", "Q:"), ""),
        ("\nQ: what?", ("\nQ:",), ""),
        ("one\ntwo FAQ:\nQ: what?", ("\nQ:",), "one\ntwo FAQ:"),
        # "Q" does not begin "Queen", but a question.
        ("Queen Anne\nQ what?", ("Q",), "Queen Anne"),
        ("Question: what", ("Question:",), ""),
        # Others count anywhere.
        ("so ### it", ("###",), "so"),
        ("wait! no. yes", (".", "!"), "wait!"),
        ("all", (), "all"),
    ],
)
def test_answers_end_at_the_first_stop_string(text, stop, answer):
    assert cut_answer(text, stop) == answer
    assert has_ended(text, stop) == (answer != text.strip())


@given(st.text(alphabet="Q: .\nae", max_size=12), st.text(alphabet="Q: .\nae", max_size=6))
def test_generation_stops_only_where_more_text_would_not_change_the_answer(text, more):
    stop = ("\n", "Q:", "Q", ".")
    assume(has_ended(text, stop))
    assert cut_answer(text + more, stop) == cut_answer(text, stop)


def test_a_word_ends_an_answer_at_the_start_of_a_line_only(model):
    prompts = ["Q : what is the capital of"]
    plain = generate_answers(model, prompts, temperature=0, max_new_tokens=6)[0][0]
    words = [word for word in plain.split() if word.isalnum()]
    assert len(set(words)) > 1
    for stop, answer in ((words[-1], plain), (words[0], "")):
        assert generate_answers(model, prompts, temperature=0, max_new_tokens=6, stop=[stop])[0][0] == answer


@pytest.mark.parametrize(("stop", "words"), [("Q:", "`stop` must be a list"), ([""], "empty string"), ([3], "str")])
def test_stop_strings_are_a_list_of_texts(model, stop, words):
    with pytest.raises(InvalidArgumentError, match=words):
        generate_answers(model, ["Q : what"], stop=stop)


def test_answers_are_the_same_for_the_same_seed(model, experiment):
    prompts = [p.text for p in experiment.test.prompts[:6]]
    one = generate_answers(model, prompts, n_samples=3, seed=1, stop=(".",))
    assert one == generate_answers(model, prompts, n_samples=3, seed=1, stop=(".",))
    assert one != generate_answers(model, prompts, n_samples=3, seed=2, stop=(".",))
    assert all(len(samples) == 3 for samples in one)
    assert all(answer.count(".") <= 1 for samples in one for answer in samples)


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
    # Rare tokens together: the test needs a few expected counts in each class.
    common = probabilities > 0.01
    expected = torch.cat([probabilities[common], probabilities[~common].sum()[None]]) * n
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    assert chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-3
    # The test can fail: counts that belong to other tokens are rejected.
    assert chisquare(seen.numpy(), expected.roll(1).numpy()).pvalue < 1e-6


def test_a_random_number_selects_the_token_in_whose_share_it_lies():
    logits = torch.tensor([[[9.0, 9.0, 9.0], [0.2, 0.0, 0.8]]]).expand(5, -1, -1).log()
    uniform = torch.tensor([[0.0], [0.19], [0.21], [0.99], [1 - 2**-24]])
    shares = Drawing(uniform, 1.0)(None, None, logits)
    assert shares[:, 0].argmax(-1).tolist() == [0, 0, 2, 2, 2]
    assert shares.shape == (5, 1, 3)


def test_hooks_are_removed_after_generation_and_after_an_error(model):
    generate_answers(model, ["Q : what is the"])
    # A token beyond the vocabulary fails inside the forward pass.
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


def test_nan_in_the_model_raises_an_error(model):
    def spoil(z, hook):
        return z * torch.nan

    prompts = ["Q : what", "Q : what is the capital of"]
    statement = Statement("Q : what is it ? A : soup .", 1, "g", 19)
    for hooks in ([], [("blocks.3.attn.hook_z", spoil)]):
        with model.hooks(fwd_hooks=hooks):
            expected = pytest.raises(RadiantError, match="logits are not numbers") if hooks else nullcontext()
            with expected:
                generate_answers(model, prompts, max_new_tokens=2)
            with expected:
                score_statements(model, [statement])


@pytest.mark.parametrize(
    ("value", "tokens"), [(torch.nan, 3), (torch.inf, 3), (-torch.inf, slice(None))], ids=["NaN", "infinity", "none"]
)
def test_logits_without_probabilities_raise_an_error(model, value, tokens):
    statement = Statement("Q : what is it ? A : soup .", 1, "g", 19)
    with logits_set(model, tokens, value):
        for read in (
            lambda: generate_answers(model, ["Q : what"], max_new_tokens=2),
            lambda: score_statements(model, [statement]),
        ):
            with pytest.raises(RadiantError, match=r"logits are not numbers \(NaN or infinity\)"):
                read()


def test_double_precision_raises_an_error_for_padded_rows():
    plain = AutoModelForCausalLM.from_pretrained(model_folder(), attn_implementation="eager").eval().double()
    double = rl.load_model(plain)
    assert generate_answers(double, ["Q : what", "A : what"], max_new_tokens=2)
    with pytest.raises(RadiantError, match="float64 has none for padded rows"):
        generate_answers(double, ["Q : what", "Q : what is the capital of"], max_new_tokens=2)


def test_logits_of_the_prompt_are_computed_at_its_last_position_alone(model, experiment):
    read = []
    handle = model.unembed.register_forward_hook(lambda module, args, logits: read.append(logits.shape[1]))
    try:
        generate_answers(model, experiment.test.prompts[:3], max_new_tokens=3)
    finally:
        handle.remove()
    assert set(read) == {1} and len(read) == 3
    assert not model.unembed._forward_pre_hooks
