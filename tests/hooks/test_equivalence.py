"""The edits of a row do not depend on the batch, padding, caches, order or other hooks.

Random models and batches in single precision; which ones is fixed, since a gate may flip where a score is within its
rounding of zero. (In double precision the padding of transformers' eager attention is not a number.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_models import last_logits, n_hooks, on_cache, random_model, steered, strong
from transformers import DynamicCache

import radiant_lens as rl
from radiant_lens.errors import ModelMismatchError
from radiant_lens.sites import hook_name
from radiant_lens.steering.gates import GATES

quick = settings(deadline=None, max_examples=12, derandomize=True)
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
# Largest difference of a logit, as a share of the largest logit: about the precision of one rounding at each layer.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.006}
# Ids of the random models' words; others are special.
TOKENS = st.lists(st.integers(5, 50), min_size=1, max_size=9)
BATCHES = st.lists(TOKENS, min_size=2, max_size=4)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def plain(request):
    return random_model(request.param)


# Batches


@pytest.mark.parametrize("side", ["left", "right"])
@quick
@given(rows=BATCHES, gate=st.sampled_from(GATES), data=st.data())
def test_a_row_does_not_depend_on_its_batch_padding_or_place(plain, side, rows, gate, data):
    steering = strong(plain, gate)
    alone = torch.cat([steered(plain, steering, [row]) for row in rows])
    order = data.draw(st.permutations(range(len(rows))))
    together = steered(plain, steering, [rows[i] for i in order], side)
    torch.testing.assert_close(together, alone[list(order)], **CLOSE)


@quick
@given(rows=BATCHES, gate=st.sampled_from(GATES), side=st.sampled_from(["left", "right"]))
def test_a_row_of_a_bridge_does_not_depend_on_its_batch_or_padding(bridge, rows, gate, side):
    steering = strong(bridge, gate)
    alone = torch.cat([steered(bridge, steering, [row]) for row in rows])
    torch.testing.assert_close(steered(bridge, steering, rows, side), alone, **CLOSE)


def test_these_edits_change_the_logits(plain, bridge):
    """The twin: without an edit, with another gate, or with another text, the logits are others."""
    rows = [[7, 8, 9], [10, 11]]
    for model in (plain, bridge):
        always, gated = (steered(model, strong(model, gate), rows) for gate in ("none", "head"))
        assert (always - last_logits(model, rows)).abs().amax(1).min() > 0.1
        assert not torch.allclose(always, gated)
        assert not torch.allclose(always, always.flip(0))


@quick
@given(row=TOKENS, more=TOKENS, gate=st.sampled_from(GATES))
def test_a_cache_does_not_matter(plain, row, more, gate):
    """An answer token by token on a cache, at once on a cache (with all its logits), or in passes without a cache."""
    steering = strong(plain, gate)
    whole = torch.tensor([row + more])
    n = len(row)
    with torch.no_grad():
        with rl.steer(plain, steering, start=n - 1):
            expected = plain(whole).logits[:, n - 1 :]
        with rl.steer(plain, steering):
            cache = DynamicCache()
            steps = [plain(whole[:, :n], **on_cache(plain, cache)).logits[:, -1:]]
            steps += [plain(whole[:, i : i + 1], **on_cache(plain, cache)).logits for i in range(n, n + len(more))]
        with rl.steer(plain, steering):
            cache = DynamicCache()
            first = plain(whole[:, :n], **on_cache(plain, cache)).logits[:, -1:]
            rest = plain(whole[:, n:], **on_cache(plain, cache), logits_to_keep=len(more)).logits
            at_once = torch.cat([first, rest], dim=1)
        with rl.steer(plain, steering):
            growing = [plain(whole[:, : n + i]).logits[:, -1:] for i in range(len(more) + 1)]
    for logits in (torch.cat(steps, 1), at_once, torch.cat(growing, 1)):
        torch.testing.assert_close(logits, expected, **CLOSE)


@quick
@given(lengths=st.lists(st.integers(1, 8), min_size=2, max_size=6), max_tokens=st.integers(1, 60), data=st.data())
def test_collected_activations_depend_on_the_text_alone(bridge, lengths, max_tokens, data):
    words = [w for w in bridge.tokenizer.get_vocab() if w.isalpha()][:40]
    text = st.lists(st.sampled_from(words), min_size=1, max_size=8).map(" ".join)
    statements = [rl.Statement(data.draw(text), i % 2, f"g{i}") for i in range(len(lengths))]
    order = data.draw(st.permutations(range(len(statements))))
    whole = rl.collect(bridge, statements, positions="last").z
    other = rl.collect(bridge, [statements[i] for i in order], positions="last", max_tokens=max_tokens).z
    torch.testing.assert_close(other, whole[list(order)], **CLOSE)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_other_precisions_differ_by_their_rounding(dtype):
    exact = random_model("llama")
    steering, rows = strong(exact, "none", strength=1.0), [[7, 8, 9, 10], [11, 12], [13]]
    expected, unsteered = steered(exact, steering, rows), last_logits(exact, rows)
    rounded = random_model("llama").to(dtype)
    allowed = ROUNDING[dtype] * expected.abs().max()
    together = steered(rounded, steering, rows).float()
    alone = torch.cat([steered(rounded, steering, [row]) for row in rows]).float()
    assert next(rounded.parameters()).dtype == dtype
    # Both differences stay within the rounding; the edit itself is larger than it.
    assert (together - expected).abs().max() < allowed
    assert (together - alone).abs().max() < allowed
    assert (expected - unsteered).abs().max() > 2 * allowed


# Other hooks and other steerings


def double(z: torch.Tensor, hook: Any) -> torch.Tensor:
    return 2 * z


def test_two_steerings_nested_act_one_after_the_other(bridge):
    rows, layer = [[7, 8, 9]], 1
    sites = [(layer, head) for head in range(bridge.cfg.n_heads)]
    outer, inner = (strong(bridge, sites=sites, seed=seed) for seed in (1, 2))
    with rl.steer(bridge, outer, trace=True) as first, rl.steer(bridge, inner, trace=True) as second:
        nested = last_logits(bridge, rows)
    hook = rl.compose(outer.hook(layer), inner.hook(layer))
    with bridge.hooks(fwd_hooks=[(hook_name(layer), hook)]):
        composed = last_logits(bridge, rows)
    with rl.steer(bridge, inner), rl.steer(bridge, outer):
        turned = last_logits(bridge, rows)
    torch.testing.assert_close(nested, composed, **CLOSE)
    assert not torch.allclose(nested, turned)
    assert len(first.records) == len(second.records) == 1


def test_two_steerings_of_a_plain_model_nested(plain):
    rows = [[7, 8, 9], [5]]
    one, other = strong(plain, sites=[(0, 1)]), strong(plain, sites=[(1, 2)], seed=1)
    with rl.steer(plain, one), rl.steer(plain, other):
        nested = last_logits(plain, rows)
    with rl.steer(plain, other), rl.steer(plain, one):
        turned = last_logits(plain, rows)
    # Different layers do not see the order.
    torch.testing.assert_close(nested, turned, **CLOSE)
    assert not torch.allclose(nested, steered(plain, one, rows))
    assert n_hooks(plain) == 0


def test_steering_and_other_hooks_act_in_the_order_of_their_blocks(bridge):
    rows, steering, layer = [[7, 8, 9]], strong(bridge), 1
    own = [(hook_name(layer), double)]
    before = n_hooks(bridge)
    with bridge.hooks(fwd_hooks=own):
        with rl.steer(bridge, steering):
            inside = last_logits(bridge, rows)
        after = last_logits(bridge, rows)
    with rl.steer(bridge, steering), bridge.hooks(fwd_hooks=own):
        outside = last_logits(bridge, rows)
    hooks = [(name, rl.compose(double, hook) if name == own[0][0] else hook) for name, hook in steering.hooks()]
    with bridge.hooks(fwd_hooks=hooks):
        composed = last_logits(bridge, rows)
    with bridge.hooks(fwd_hooks=own):
        doubled = last_logits(bridge, rows)
    torch.testing.assert_close(inside, composed, **CLOSE)
    torch.testing.assert_close(after, doubled, **CLOSE)
    assert not torch.allclose(inside, outside)
    assert n_hooks(bridge) == before


@pytest.mark.parametrize("options", [{"no_processing": True}, {}], ids=["as it is", "processed"])
def test_compatibility_mode_steers_once(foreign_folder, options):
    """Its hook points have two names each."""
    tokens = torch.tensor([[7, 8, 9]])
    model = rl.load_model(foreign_folder)
    steering = strong(model)
    fired: list[str] = []
    with torch.no_grad():
        with rl.steer(model, steering):
            expected = model(tokens)
        model.enable_compatibility_mode(disable_warnings=True, **options)
        with model.hooks(fwd_hooks=[(hook_name(0), lambda z, hook: fired.append(hook.name))]):
            model(tokens)
        with rl.steer(model, steering, trace=True) as trace:
            logits = model(tokens)
    # By either of its names a hook point runs its hooks once.
    assert len(fired) == 1
    assert len(trace.records) == len(steering.layers)
    if options:
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_model_whose_weights_were_processed_is_another(foreign_folder):
    """Folding the value biases moves every activation: a steering fitted before does not fit any more."""
    model = rl.load_model(foreign_folder)
    statements = (rl.Statement("the soup is here .", 0, "a"), rl.Statement("the soup is awful .", 1, "b"))
    steering = strong(model)
    with_meta = rl.Steering(
        **{name: getattr(steering, name) for name in ("sites", "head_maps", "scores", "gate", "certificates")},
        meta=rl.collect(model, statements).meta,
    )
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ModelMismatchError, match="weights"), rl.steer(model, with_meta):
        pass
