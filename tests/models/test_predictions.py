"""What passes predict, read a few rows at a time, against the same from all log-probabilities at once."""

from __future__ import annotations

import pytest
import torch

from radiant_lens.models import predictions
from radiant_lens.models.predictions import Predictions, token_kl

N_PLACES, N_TOKENS = 7, 50
PLACE = torch.tensor([3, 0, 0, 6, 1, 1, 1, 5, 2])  # none at place 4


@pytest.fixture(params=[1, 3, 100], ids="rows_{}".format, autouse=True)
def rows_at_a_time(request, monkeypatch):
    monkeypatch.setitem(predictions._AT_A_TIME, "cpu", request.param * N_TOKENS)


@pytest.fixture
def tokens(generator) -> torch.Tensor:
    return torch.randint(N_TOKENS, PLACE.shape, generator=generator)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def draw_logits(generator, dtype=torch.float32) -> torch.Tensor:
    return (3 * torch.randn((N_PLACES, N_TOKENS), generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_log_probabilities_and_their_gradient(generator, tokens, dtype):
    logits = draw_logits(generator, dtype).requires_grad_()
    weights = torch.randn(PLACE.shape, generator=generator)
    some = Predictions(logits, PLACE).log_prob(tokens)
    every = Predictions(logits, PLACE).log_probs().gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(some, every)
    gradients = [torch.autograd.grad((weights * own).sum(), logits)[0] for own in (some, every)]
    # Single precision, also for a model in double.
    torch.testing.assert_close(*gradients, **({"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float64 else {}))
    assert gradients[0].dtype == dtype
    assert (gradients[0][4] == 0).all()


def test_the_gradient_at_a_token_that_is_all_but_certain(generator):
    logits = torch.zeros((1, N_TOKENS), dtype=torch.bfloat16)
    logits[0, 7] = 12
    logits.requires_grad_()
    chosen = Predictions(logits, torch.zeros(1, dtype=torch.long)).log_prob(torch.tensor([7]))
    (gradient,) = torch.autograd.grad(chosen.sum(), logits)
    exact = 1 - logits.detach().double().softmax(-1)[0, 7]
    # Where 1 and the probability were rounded before they are subtracted, this were 0.
    assert 0 < exact < 1e-3
    assert float(gradient[0, 7]) == pytest.approx(float(exact), rel=1e-2)


def test_a_token_that_cannot_be(generator, tokens):
    logits = draw_logits(generator)
    logits[:, 9] = -torch.inf
    logits.requires_grad_()
    chosen = Predictions(logits, PLACE).log_prob(tokens.masked_fill(tokens == 9, 8))
    (gradient,) = torch.autograd.grad(chosen.sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient[:, 9] == 0).all()
    plain = draw_logits(generator).masked_fill(logits.detach().isneginf(), -torch.inf)
    assert Predictions(logits, PLACE).kl_from(plain).isfinite().all()
    uniform = torch.rand((40, len(PLACE)), generator=generator)
    assert (Predictions(logits, PLACE).draw(uniform) != 9).all()


def test_kl(generator):
    plain, steered = draw_logits(generator), draw_logits(generator)
    expected = token_kl(*(Predictions(logits, PLACE).log_probs() for logits in (plain, steered)))
    torch.testing.assert_close(Predictions(steered, PLACE).kl_from(plain), expected)


def test_draws_follow_the_distribution(generator):
    logits = draw_logits(generator)
    n = 20_000
    drawn = Predictions(logits, PLACE).draw(torch.rand((n, len(PLACE)), generator=generator))
    shares = torch.stack([torch.bincount(own, minlength=N_TOKENS) / n for own in drawn.T])
    expected = logits.softmax(-1)[PLACE]
    # Five standard errors.
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-4).all()
    # Predictions at one place are drawn each for themselves.
    assert (drawn[:, 1] != drawn[:, 2]).any()
    assert torch.equal(
        Predictions(logits, PLACE).draw(torch.full((1, len(PLACE)), 0.0))[0], torch.zeros(len(PLACE), dtype=torch.long)
    )


def test_no_place():
    empty = Predictions(torch.zeros((0, N_TOKENS)), torch.zeros(0, dtype=torch.long))
    assert empty.log_prob(torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert empty.draw(torch.zeros((2, 0))).shape == (2, 0)
    assert empty.kl_from(empty.logits).shape == (0,)
