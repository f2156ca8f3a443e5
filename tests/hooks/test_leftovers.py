"""Nothing is left of a `steer` block: hooks after exceptions, states of other threads, models in memory."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from plain_models import last_logits, n_hooks, random_model, random_steering, steered, strong

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError, ModelMismatchError, RadiantError

CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def plain(request):
    return random_model(request.param)


# Exceptions


class FaultError(Exception):
    """An error that nothing else raises."""


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
    results: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        for _ in range(3):
            results[i] = generated(prompts[i])

    with rl.steer(model, steering, trace=True) as trace:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, logits in enumerate(expected):
        torch.testing.assert_close(results[i], logits, **CLOSE)
    by_call = {record.call: record.edit.gated.shape[0] for record in trace.records}
    assert len(by_call) == 9
    assert sorted(by_call.values()) == [1] * 6 + [2] * 3


def test_a_second_thread_that_steers_the_same_model_is_refused(plain):
    errors: list[BaseException] = []

    def other() -> None:
        try:
            with rl.steer(plain, strong(plain, seed=1)):
                pass
        except RadiantError as error:
            errors.append(error)

    def run() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with rl.steer(plain, strong(plain)):
        run()
    assert len(errors) == 1
    assert "Another thread is steering this model" in str(errors[0])
    run()
    assert len(errors) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps], ids=["copied", "pickled"])
def test_a_model_is_not_copied_with_its_edits(plain, copied):
    with rl.steer(plain, strong(plain)):
        with pytest.raises(InvalidArgumentError, match="cannot be copied or pickled inside a `steer` block"):
            copied(plain)
    assert copied(plain)


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
