"""What must not matter: who else is in the batch, padding, caches, order, other hooks, other threads, exceptions.

Random models and batches in single precision; which ones is fixed, since a gate may flip where a score is within its
rounding of zero. (In double precision the padding of transformers' eager attention is not a number.)
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_models import on_cache, random_model, random_steering, shape
from transformers import DynamicCache

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, ModelMismatchError, RadiantError
from radiant_lens.sites import hook_name

quick = settings(deadline=None, max_examples=12, derandomize=True)
GATES = ("head", "vote", "layer", "none")
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
# Largest difference of a logit, as a share of the largest logit: about the precision of one rounding at each layer.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.006}
# Ids of the random models' words; others are special.
TOKENS = st.lists(st.integers(5, 50), min_size=1, max_size=9)
BATCHES = st.lists(TOKENS, min_size=2, max_size=4)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def plain(request):
    return random_model(request.param)


@pytest.fixture(scope="module")
def bridge():
    made = rl.load_model("tiny", device="cpu")
    # It puts hooks of its own on in its first pass; tests count hooks.
    last_logits(made, [[7, 8]])
    return made


def strong(model: Any, gate: str = "head", **options: Any) -> rl.Steering:
    config = getattr(model, "cfg", None)
    axes = shape(model) if config is None else (config.n_layers, config.n_heads, config.d_head)
    return random_steering(*axes, gate=gate, **{"strength": 5.0, **options})


def padded(rows: list[list[int]], side: str, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    tokens, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        part = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, part], mask[i, part] = torch.tensor(row), 1
    return tokens, mask


def last_logits(model: Any, rows: list[list[int]], side: str = "left") -> torch.Tensor:
    """Logits after each row's last token."""
    tokens, mask = padded(rows, side, 0)
    options = {} if hasattr(model, "cfg") else {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    with torch.no_grad():
        found = model(tokens, attention_mask=mask, **options)
    logits = getattr(found, "logits", found)
    last = torch.where(mask.bool(), torch.arange(mask.shape[1]), -1).amax(1)
    return logits[torch.arange(len(rows)), last]


def steered(model: Any, steering: rl.Steering, rows: list[list[int]], side: str = "left") -> torch.Tensor:
    with rl.steer(model, steering):
        return last_logits(model, rows, side)


def n_hooks(model: Any) -> int:
    """Hooks of PyTorch and of TransformerLens that are on."""
    inner = getattr(model, "original_model", model)
    points = {id(h): h for h in model.hook_dict.values()}.values() if hasattr(model, "hook_dict") else ()
    registered = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in inner.modules())
    return registered + sum(len(h.fwd_hooks) for h in points)


# Batches


@pytest.mark.parametrize("side", ["left", "right"])
@quick
@given(rows=BATCHES, gate=st.sampled_from(GATES), data=st.data())
def test_a_row_is_as_alone_whatever_its_mates_padding_and_place(plain, side, rows, gate, data):
    steering = strong(plain, gate)
    alone = torch.cat([steered(plain, steering, [row]) for row in rows])
    order = data.draw(st.permutations(range(len(rows))))
    together = steered(plain, steering, [rows[i] for i in order], side)
    torch.testing.assert_close(together, alone[list(order)], **CLOSE)


@quick
@given(rows=BATCHES, gate=st.sampled_from(GATES), side=st.sampled_from(["left", "right"]))
def test_the_same_holds_of_a_bridge(bridge, rows, gate, side):
    steering = strong(bridge, gate)
    alone = torch.cat([steered(bridge, steering, [row]) for row in rows])
    torch.testing.assert_close(steered(bridge, steering, rows, side), alone, **CLOSE)


def test_these_edits_are_seen(plain, bridge):
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
    """A prompt and given tokens, one at a time on a cache, all on a cache, or all in one pass from the prompt's end."""
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
            at_once = torch.cat([first, plain(whole[:, n:], **on_cache(plain, cache)).logits], dim=1)
        with rl.steer(plain, steering):
            growing = [plain(whole[:, : n + i]).logits[:, -1:] for i in range(len(more) + 1)]
    for found in (torch.cat(steps, 1), at_once, torch.cat(growing, 1)):
        torch.testing.assert_close(found, expected, **CLOSE)


@quick
@given(lengths=st.lists(st.integers(1, 8), min_size=2, max_size=6), max_tokens=st.integers(1, 60), data=st.data())
def test_what_is_collected_depends_on_the_text_alone(bridge, lengths, max_tokens, data):
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


def test_steering_inside_hooks_of_ones_own(bridge):
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
            found = model(tokens)
    assert len(fired) == 1
    assert len(trace.records) == len(steering.layers)
    if options:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_model_whose_weights_were_processed_is_another(foreign_folder):
    """Folding the value biases moves every activation: a steering fitted before does not fit any more."""
    model = rl.load_model(foreign_folder)
    statements = (rl.Statement("the soup is here .", 0, "a"), rl.Statement("the soup is awful .", 1, "b"))
    steering = strong(model)
    made = rl.Steering(
        **{name: getattr(steering, name) for name in ("sites", "head_maps", "scores", "gate", "certificates")},
        meta=rl.collect(model, statements).meta,
    )
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ModelMismatchError, match="with weights"), rl.steer(model, made):
        pass


# Exceptions


class FaultError(Exception):
    """Nothing that anybody else raises."""


def failing(*args: object, **kwargs: object) -> None:
    raise FaultError


@contextmanager
def failing_module(module: torch.nn.Module, after: bool):
    register = module.register_forward_hook if after else module.register_forward_pre_hook
    handle = register(failing)
    try:
        yield
    finally:
        handle.remove()


def in_the_block(model: Any) -> None:
    with rl.steer(model, strong(model)):
        raise FaultError


def in_the_model(model: Any, after: bool) -> None:
    modules = getattr(model, "original_model", model).named_modules()
    block = next(module for name, module in modules if ".1." in name and name.endswith(".mlp"))
    with failing_module(block, after), rl.steer(model, strong(model)):
        last_logits(model, [[7, 8]])


def in_a_recorder(model: Any) -> None:
    with rl.steer(model, strong(model), trace=True) as trace:
        trace.records = FullList()
        last_logits(model, [[7, 8]])


class FullList(list):
    append = failing


def at_the_start(model: Any) -> None:
    with rl.steer(model, strong(model), start=[1, 2, 3]):
        last_logits(model, [[7, 8]])


def before_the_block(model: Any) -> None:
    with rl.steer(model, random_steering(1, 1, 1)):
        pass


def in_an_inner_block(model: Any) -> None:
    with rl.steer(model, strong(model)):
        with rl.steer(model, strong(model, seed=1)):
            raise FaultError


PHASES: dict[str, tuple[Callable[[Any], None], type[Exception]]] = {
    "before the block": (before_the_block, ModelMismatchError),
    "as a pass begins": (at_the_start, InvalidArgumentError),
    "in a pass, before a module": (lambda model: in_the_model(model, False), FaultError),
    "in a pass, after a module": (lambda model: in_the_model(model, True), FaultError),
    "as an edit is recorded": (in_a_recorder, FaultError),
    "in the block": (in_the_block, FaultError),
    "in an inner block": (in_an_inner_block, FaultError),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["plain", "bridge"])
def test_no_hook_is_left_after_any_exception(request, kind, phase):
    model = random_model("llama") if kind == "plain" else request.getfixturevalue("bridge")
    fail, error = PHASES[phase]
    rows = [[7, 8, 9]]
    before, expected = n_hooks(model), last_logits(model, rows)
    again = steered(model, strong(model), rows)
    with pytest.raises(error):
        fail(model)
    assert n_hooks(model) == before
    assert torch.equal(last_logits(model, rows), expected)
    assert torch.equal(steered(model, strong(model), rows), again)


# Threads


@pytest.mark.parametrize("kind", ["plain", "bridge"])
def test_threads_that_generate_in_one_block_do_not_mix(request, kind):
    """Each thread steps through prompts of its own on caches of its own; passes of all are interleaved."""
    model = random_model("llama") if kind == "plain" else request.getfixturevalue("bridge")
    steering = strong(model)
    prompts = [[[7, 8, 9, 10, 11, 12]], [[13, 14], [15, 16, 17, 18]], [[19]]]

    def generated(rows: list[list[int]]) -> torch.Tensor:
        growing = [list(row) for row in rows]
        for _ in range(6):
            best = last_logits(model, growing).argmax(-1).tolist()
            growing = [[*row, token] for row, token in zip(growing, best)]
        return last_logits(model, growing)

    with rl.steer(model, steering):
        expected = [generated(rows) for rows in prompts]
    found: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        for _ in range(3):
            found[i] = generated(prompts[i])

    with rl.steer(model, steering, trace=True) as trace:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, logits in enumerate(expected):
        torch.testing.assert_close(found[i], logits, **CLOSE)
    by_call = {record.call: record.edit.gated.shape[0] for record in trace.records}
    assert len(by_call) == 9
    assert sorted(by_call.values()) == [1] * 6 + [2] * 3


def test_a_second_thread_that_steers_the_same_model_is_refused(plain):
    said: list[BaseException] = []

    def other() -> None:
        try:
            with rl.steer(plain, strong(plain, seed=1)):
                pass
        except RadiantError as error:
            said.append(error)

    def run() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with rl.steer(plain, strong(plain)):
        run()
    assert len(said) == 1
    assert "Another thread is steering this model" in str(said[0])
    run()
    assert len(said) == 1


# Memory


def test_a_finished_trace_holds_no_model():
    model = random_model("llama")
    with rl.steer(model, strong(model), trace=True) as trace:
        last_logits(model, [[7, 8, 9]])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(trace.to_dataframe()) > 0
