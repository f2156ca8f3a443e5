"""Steering a model: rows do not affect each other, caches do not matter, nothing is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, ModelMismatchError, RadiantError


@pytest.fixture(scope="module")
def prompts(experiment):
    """Sixteen prompts of mixed lengths, after misconceptions, so that edits happen."""
    test, texts = experiment.test, []
    for n in (1, 2, 3, 4):
        after_n = replace(test, contexts=replace(test.contexts, n_before=n)).prompts
        texts += [p.text for p in after_n if p.condition == "after_undesirable"][:4]
    assert len({len(text.split()) for text in texts}) == 4
    return texts


def greedy(model, prompt, **options):
    return model.generate(prompt, max_new_tokens=10, do_sample=False, verbose=False, **options)


def as_list(text):
    return [text] if isinstance(text, str) else list(text)


def n_hooks(model) -> int:
    points = {id(h): h for h in model.hook_dict.values()}.values()
    return sum(len(h.fwd_hooks) for h in points) + len(model.original_model._forward_pre_hooks)


def test_same_text_alone_in_a_batch_and_without_cache(model, steering, prompts):
    plain = as_list(greedy(model, prompts))
    with rl.steer(model, steering):
        batch = as_list(greedy(model, prompts))
        alone = [greedy(model, p) for p in prompts]
        uncached = as_list(greedy(model, prompts, use_past_kv_cache=False))
    assert batch == alone
    assert batch == uncached
    assert batch != plain


def test_trace_is_the_same_with_and_without_cache(model, steering, prompts):
    frames = []
    for cached in (True, False):
        with rl.steer(model, steering, trace=True) as trace:
            greedy(model, prompts[:4], use_past_kv_cache=cached)
        frames.append(trace.to_dataframe())
    exact = ["call", "row", "position", "layer", "head", "vote", "gated"]
    assert frames[0][exact].equals(frames[1][exact])
    assert abs(frames[0]["displacement"] - frames[1]["displacement"]).max() < 1e-3
    assert frames[0]["gated"].any()


def test_trace_starts_at_the_last_prompt_token_of_each_row(model, steering, prompts):
    with rl.steer(model, steering, trace=True) as trace:
        greedy(model, prompts)
    first = trace.to_dataframe().groupby("row")["position"].min()
    lengths = [model.to_tokens(p).shape[1] for p in prompts]
    assert first.tolist() == [n - 1 for n in lengths]


def test_trace_agrees_with_the_gate(model, steering, prompts):
    with rl.steer(model, steering, trace=True) as trace:
        greedy(model, prompts[:3])
    frame = trace.to_dataframe()
    assert ((frame["displacement"] > 0) == frame["gated"]).all()
    assert not frame.loc[~frame["vote"], "gated"].any()


def test_an_unrecorded_trace_says_so(model, steering):
    with rl.steer(model, steering) as trace:
        pass
    with pytest.raises(RadiantError, match="trace=True"):
        trace.to_dataframe()


def test_logits_are_equal_to_the_bit_when_nothing_is_edited(model, steering, experiment, prompts):
    identity = rl.IdentityPolicy(steering).fit(experiment.train_cache, experiment.detector)
    tokens = model.to_tokens(prompts[0])
    with torch.no_grad():
        plain = model(tokens)
        with rl.steer(model, identity):
            same = model(tokens)
        with rl.steer(model, steering):
            edited = model(tokens)
    assert torch.equal(plain, same)
    assert not torch.equal(plain, edited)
    assert torch.equal(plain[:, :-1], edited[:, :-1])


def test_padding_does_not_matter(model, steering, prompts):
    short, long = sorted(prompts[:2] + prompts[-2:], key=len)[::3]
    alone = model.to_tokens(short)
    n_pad = model.to_tokens(long).shape[1] - alone.shape[1]
    assert n_pad > 0
    pad = torch.full((1, n_pad), model.tokenizer.pad_token_id)
    with torch.no_grad(), rl.steer(model, steering):
        expected = model(alone)[0, -1]
        left = model(torch.cat([pad, alone], 1), attention_mask=torch.tensor([[0] * n_pad + [1] * alone.shape[1]]))[
            0, -1
        ]
        right = model(torch.cat([alone, pad], 1), attention_mask=torch.tensor([[1] * alone.shape[1] + [0] * n_pad]))
    torch.testing.assert_close(left, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(right[0, alone.shape[1] - 1], expected, rtol=1e-4, atol=1e-4)


def test_no_hook_is_left_after_an_exception(model, steering, prompts):
    before = n_hooks(model)
    with pytest.raises(KeyboardInterrupt), rl.steer(model, steering):
        assert n_hooks(model) > before
        greedy(model, prompts[0])
        raise KeyboardInterrupt
    assert n_hooks(model) == before


def test_hooks_work_with_the_model_directly(model, steering, prompts):
    tokens = model.to_tokens(prompts[0])
    with torch.no_grad():
        direct = model.run_with_hooks(tokens, fwd_hooks=steering.hooks())
        from_last = model.run_with_hooks(tokens, fwd_hooks=steering.hooks(start=torch.tensor([tokens.shape[1] - 1])))
        with rl.steer(model, steering):
            steered = model(tokens)
    assert torch.equal(direct, steered)
    torch.testing.assert_close(from_last, steered, rtol=1e-5, atol=1e-5)


def test_start_says_where_edits_begin(model, steering, prompts):
    tokens = model.to_tokens(prompts[-1])
    with rl.steer(model, steering, trace=True, start=5) as trace, torch.no_grad():
        model(tokens)
    assert trace.to_dataframe()["position"].min() == 5
    with pytest.raises(InvalidArgumentError, match="one position for each"), rl.steer(model, steering, start=[1, 2]):
        model(tokens)


def test_two_generations_in_one_block_are_two_calls(model, steering, prompts):
    with rl.steer(model, steering, trace=True) as trace:
        first = greedy(model, prompts[0])
        greedy(model, prompts[1])
        again = greedy(model, prompts[0])
    assert first == again
    assert trace.to_dataframe()["call"].unique().tolist() == [0, 1, 2]


def test_a_detector_and_a_steering_chain(model, steering, experiment, prompts):
    layer = steering.layers[0]
    records = []
    hook = rl.compose(experiment.detector.hook(records.append), steering.hook(layer))
    tokens = model.to_tokens(prompts[0])
    with torch.no_grad():
        chained = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", hook)])
        alone = model.run_with_hooks(
            tokens, fwd_hooks=[h for h in steering.hooks() if h[0] == f"blocks.{layer}.attn.hook_z"]
        )
    assert torch.equal(chained, alone)
    assert records[0].layer == layer
    assert records[0].scores.shape == (*tokens.shape, model.cfg.n_heads)


def test_compose_runs_left_to_right_and_passes_over_none():
    add, double = (lambda z, hook: z + 1), (lambda z, hook: 2 * z)
    assert rl.compose(add, double)(3, None) == 8
    assert rl.compose(double, lambda z, hook: None, add)(3, None) == 7


def test_a_steering_for_another_model_is_refused(steering, foreign_folder):
    foreign = rl.load_model(foreign_folder)
    with pytest.raises(ModelMismatchError, match="architecture"), rl.steer(foreign, steering):
        pass
    with pytest.raises(InvalidArgumentError, match="load_model"), rl.steer(foreign.original_model, steering):
        pass
