"""State from one call to the next: turns of a chat on one cache, several caches, unknown caches, forgotten blocks."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref

import pytest
import torch
from plain_models import last_logits, n_hooks, on_cache, random_model, strong
from transformers import DynamicCache, StaticCache

import radiant_lens as rl
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.hooks.edit_window import Calls, Passes

CLOSE = {"rtol": 1e-3, "atol": 1e-3}
FIRST, SECOND = [7, 8, 9, 10, 11], [12, 13, 14, 15]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def plain(request):
    return random_model(request.param)


def run(model, tokens, cache=None, **options):
    with torch.no_grad():
        on = {} if cache is None else on_cache(model, cache)
        return model(torch.as_tensor(tokens), **on, **options).logits


def answer(model, tokens, cache, n=3, **options):
    """Greedy tokens of `generate`, which gets the whole text and a cache of its beginning."""
    batch = torch.as_tensor(tokens)
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": n, "past_key_values": cache, **options}
    return model.generate(batch, attention_mask=torch.ones_like(batch), **options)


def all_positions(trace):
    """Positions in the trace, sorted."""
    return sorted(trace.to_dataframe()["position"].unique().tolist())


def positions(trace):
    """Positions in the trace, for each call."""
    return trace.to_dataframe().groupby("call")["position"].unique().map(list).tolist()


def new_cache(kind, model):
    return (
        DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=40)
    )


# Second turns


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("trace", [False, True])
def test_a_second_turn_is_edited_from_its_last_token_on(plain, kind, trace):
    """Its logits equal those on an unsteered pass over the turn up to its last token, which alone is edited."""
    steering, caches = strong(plain, "none"), [new_cache(kind, plain) for _ in range(2)]
    with rl.steer(plain, steering, trace=trace) as record:
        run(plain, [FIRST], caches[0])
        turn = run(plain, [SECOND], caches[0])
        after = run(plain, [[16]], caches[0])
    with rl.steer(plain, steering):
        run(plain, [FIRST], caches[1])
    # The reference runs the turn in three blocks, so that it does not rest on what a pass is taken for.
    before = run(plain, [SECOND[:-1]], caches[1])
    with rl.steer(plain, steering):
        last, expected = run(plain, [SECOND[-1:]], caches[1]), run(plain, [[16]], caches[1])
    torch.testing.assert_close(turn, torch.cat([before, last], 1), **CLOSE)
    torch.testing.assert_close(after, expected, **CLOSE)
    if trace:
        assert positions(record) == [[4], [8, 9]]


def test_a_second_turn_differs_from_one_that_is_edited_throughout(plain):
    """The twin: with `start`, or with all its logits asked for, the whole turn is edited."""
    steering, turns = strong(plain, "none"), []
    for start, options in ((None, {}), (4, {}), (None, {"logits_to_keep": len(SECOND)})):
        cache = DynamicCache(config=plain.config)
        with rl.steer(plain, steering, start=start):
            run(plain, [FIRST], cache)
            turns.append(run(plain, [SECOND], cache, **options))
    assert not torch.allclose(turns[0], turns[1], atol=0.1)
    torch.testing.assert_close(turns[1], turns[2], **CLOSE)


def test_the_first_turn_in_the_cache_is_left_as_it_is(plain):
    cache = DynamicCache(config=plain.config)
    with rl.steer(plain, strong(plain, "none")):
        run(plain, [FIRST], cache)
        before = [layer.keys.clone() for layer in cache.layers]
        run(plain, [SECOND], cache)
    for layer, keys in zip(cache.layers, before):
        assert torch.equal(layer.keys[:, :, : len(FIRST)], keys)


def test_a_chat_of_three_turns_with_generate(plain):
    with rl.steer(plain, strong(plain), trace=True) as trace:
        cache, text = DynamicCache(config=plain.config), [FIRST]
        for turn in (SECOND, [20, 21, 22], None):
            text = answer(plain, text, cache).tolist()
            # The last token of an answer is not in the cache: the next turn begins with it.
            text = text if turn is None else [text[0] + turn]
    assert positions(trace) == [[4, 5, 6], [11, 12, 13], [17, 18, 19]]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_rows_of_a_padded_chat_equal_rows_alone(plain, kind):
    """Left padding in both turns: a mask over both tells it from the tokens."""
    rows = [([7, 8, 9, 10], [12, 13, 14]), ([11], [15])]
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 1]])
    places = (mask.cumsum(1) - 1).clamp_min(0)
    steering = strong(plain, "none")
    with rl.steer(plain, steering, trace=True) as trace:
        cache = new_cache(kind, plain)
        one = torch.tensor([[7, 8, 9, 10], [0, 0, 0, 11]])
        two = torch.tensor([[12, 13, 14], [0, 0, 15]])
        run(plain, one, cache, attention_mask=mask[:, :4], position_ids=places[:, :4])
        both = run(plain, two, cache, attention_mask=mask, position_ids=places[:, 4:])[:, -1]
    for i, (first, second) in enumerate(rows):
        with rl.steer(plain, steering):
            cache = new_cache(kind, plain)
            run(plain, [first], cache)
            alone = run(plain, [second], cache)[0, -1]
        torch.testing.assert_close(both[i], alone, **CLOSE)
    assert trace.to_dataframe()["call"].unique().tolist() == [0, 1]


def test_right_padding_in_a_turn_is_not_its_end(plain):
    """Each row is edited from its own last token on, not from the padding behind it."""
    steering, cache = strong(plain, "none"), DynamicCache(config=plain.config)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with rl.steer(plain, steering, trace=True) as trace:
        run(plain, [[7, 8], [9, 10]], cache)
        run(plain, [[11, 12, 13], [14, 0, 0]], cache, attention_mask=mask)
    # The second row has three tokens in all: its last one is at position 2.
    frame = trace.to_dataframe()
    first = frame[frame["call"] == 1].groupby("row")["position"].min()
    assert first.tolist() == [4, 2]


def test_a_bridge_has_turns_too(bridge):
    """Its passes get no mask; the model makes the cache of the first pass itself."""
    steering, inner = strong(bridge, "none"), bridge.original_model
    with torch.no_grad(), rl.steer(bridge, steering, trace=True) as trace:
        cache = inner(torch.tensor([FIRST]), use_cache=True).past_key_values
        inner(torch.tensor([SECOND]), past_key_values=cache)
        inner(torch.tensor([[16]]), past_key_values=cache)
    assert positions(trace) == [[4], [8, 9]]


def test_the_last_token_of_every_chunk_of_a_prefill_is_edited(plain):
    """Chunks look like turns. `start` edits from the last prompt token alone."""
    # Chunks of four, four and one token; the answer follows from position 9 on.
    prompt, options = [FIRST + SECOND], {"prefill_chunk_size": 4}
    with rl.steer(plain, strong(plain), trace=True) as trace:
        answer(plain, prompt, None, **options)
    assert all_positions(trace) == [3, 7, 8, 9, 10]
    with rl.steer(plain, strong(plain), trace=True, start=8) as trace:
        answer(plain, prompt, None, **options)
    assert all_positions(trace) == [8, 9, 10]


# Several prompts and caches


def test_two_generations_whose_steps_alternate_do_not_mix(plain):
    """The prompt of the other cache is longer: its end must not be waited for."""
    steering, steps = strong(plain, "none"), [[16], [17], [18]]
    prompts = [[FIRST[:2]], [FIRST + SECOND]]

    def alone(prompt):
        cache = DynamicCache(config=plain.config)
        with rl.steer(plain, steering):
            run(plain, prompt, cache)
            return [run(plain, [step], cache) for step in steps]

    expected = [alone(prompt) for prompt in prompts]
    for trace in (False, True):
        caches = [DynamicCache(config=plain.config) for _ in prompts]
        with rl.steer(plain, steering, trace=trace) as record:
            for prompt, cache in zip(prompts, caches):
                run(plain, prompt, cache)
            mixed = [[run(plain, [step], cache) for cache in caches] for step in steps]
        for i, row in enumerate(expected):
            torch.testing.assert_close(torch.cat([m[i] for m in mixed]), torch.cat(row), **CLOSE)
        if trace:
            assert positions(record) == [[1, 2, 3, 4], [8, 9, 10, 11]]


@pytest.mark.parametrize("trace", [False, True])
def test_a_cache_that_is_reset_begins_a_new_prompt(plain, trace):
    """As `generate` does with its static cache. The new prompt has one token, like a step of the old one."""
    steering, cache = strong(plain, "none"), new_cache("static", plain)
    with rl.steer(plain, steering):
        expected = run(plain, [[12]])
    with rl.steer(plain, steering, trace=trace) as record:
        run(plain, [FIRST], cache)
        cache.reset()
        torch.testing.assert_close(run(plain, [[12]], cache), expected, **CLOSE)
    if trace:
        assert positions(record) == [[4], [0]]


def test_a_new_cache_begins_a_new_prompt_even_with_the_same_text(plain):
    """Without a cache the second pass would continue the first."""
    starts = []
    for cached in (True, False):
        with rl.steer(plain, strong(plain), trace=True) as trace:
            for n in (4, 5):
                run(plain, [FIRST[:n]], DynamicCache(config=plain.config) if cached else None)
        starts.append(positions(trace))
    assert starts == [[[3], [4]], [[3, 4]]]


def test_rows_of_beams_without_a_cache_keep_their_starts(plain):
    """The rows change places between passes; one is dropped and another doubled."""
    steering = strong(plain, "none")
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with rl.steer(plain, steering, trace=True) as trace:
        run(plain, [[7, 8, 9], [10, 11, 0]], attention_mask=mask)
        run(plain, [[10, 11, 0, 12], [10, 11, 0, 13]])
    frame = trace.to_dataframe()
    assert frame["call"].unique().tolist() == [0]
    passes = Passes(None, None, Calls())
    passes.begin(plain, (torch.tensor([[7, 8, 9], [10, 11, 0]]),), {"attention_mask": mask})
    passes.begin(plain, (torch.tensor([[10, 11, 0, 12], [7, 8, 9, 13]]),), {})
    window = passes.window(torch.zeros(2, 4, 1))
    assert window is not None
    assert window.tolist() == [[False, True, True, True], [False, False, True, True]]


def test_a_cropped_cache_is_edited_again_with_and_without_a_trace(plain):
    """An answer that is taken back to before the prompt's end."""
    steering, results = strong(plain, "none"), []
    for trace in (False, True):
        cache = DynamicCache(config=plain.config)
        with rl.steer(plain, steering, trace=trace):
            run(plain, [FIRST], cache)
            # Two tokens are left, so the next column lies before the one at which edits began.
            cache.crop(-3)
            results.append(run(plain, [[12]], cache))
    torch.testing.assert_close(*results, **CLOSE)


def test_passes_hold_no_cache_in_memory(plain):
    passes, cache = Passes(None, None, Calls()), DynamicCache(config=plain.config)
    passes.begin(plain, (torch.tensor([FIRST]),), on_cache(plain, cache))
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None


# Unknown caches


class OwnCache:
    """Counts its tokens, but is no `transformers.Cache`."""

    def get_seq_length(self):
        return 3


@pytest.mark.parametrize("kind", ["plain", "bridge"])
@pytest.mark.parametrize("cache", [OwnCache(), ((torch.zeros(1),),), {}], ids=["own", "tuple", "dict"])
def test_caches_of_unknown_classes_are_refused_in_one_sentence(request, kind, cache):
    model = random_model("llama") if kind == "plain" else request.getfixturevalue("bridge").original_model
    steerable = model if kind == "plain" else request.getfixturevalue("bridge")
    with rl.steer(steerable, strong(steerable)):
        for name in ("past_key_values", "cache"):
            with pytest.raises(InvalidArgumentError, match=f"a cache of type {type(cache).__name__}.*use `generate`"):
                model(torch.tensor([FIRST]), **{name: cache})
        last_logits(steerable, [FIRST])


def test_continuous_batching_is_refused_where_it_is_called():
    model = random_model("llama")
    calls = (
        lambda: model.generate_batch([FIRST, SECOND], max_new_tokens=3),
        lambda: model.init_continuous_batching(),
        lambda: model.generate(torch.tensor([FIRST]), cache_implementation="paged", max_new_tokens=2),
    )
    before = n_hooks(model)
    with rl.steer(model, strong(model)), rl.steer(model, strong(model, seed=1)):
        # Each reaches a manager by another way; none may start its thread.
        for call in calls:
            with pytest.raises(InvalidArgumentError, match="PagedAttentionCache.*continuous batching"):
                call()
    assert n_hooks(model) == before and "init_continuous_batching" not in vars(model)


def test_an_inner_block_leaves_the_refusal_of_the_outer_one():
    model = random_model("llama")
    with rl.steer(model, strong(model)):
        with rl.steer(model, strong(model, seed=1)):
            pass
        with pytest.raises(InvalidArgumentError, match="PagedAttentionCache"):
            model.init_continuous_batching()
    assert model.init_continuous_batching.__func__ is type(model).init_continuous_batching


@pytest.mark.parametrize("careless", [False, True])
def test_what_another_thread_was_refused_is_raised_at_the_end(careless):
    """As by a manager that runs since before the block: its thread writes the error to a log, answers stay empty."""
    model, logged = random_model("llama"), []

    def manager():
        try:
            model(torch.tensor([FIRST]), cache=OwnCache())
        except Exception as error:
            logged.append(error)

    with pytest.raises(InvalidArgumentError, match="a cache of type OwnCache") as caught:
        with rl.steer(model, strong(model)):
            thread = threading.Thread(target=manager)
            thread.start()
            thread.join()
            if careless:
                [][0]
    assert logged == [caught.value]
    assert isinstance(caught.value.__cause__, IndexError) == careless
    assert n_hooks(model) == 0


# Forgotten blocks


def test_a_block_that_is_never_entered_warns():
    model = random_model("llama")
    with pytest.warns(UserWarning, match="without `with`, so nothing was steered: write `with rl.steer") as caught:
        rl.steer(model, strong(model))
    # The line of the caller, not of this package: that is where the `with` is missing.
    assert [warning.filename for warning in caught] == [__file__]
    block = rl.steer(model, strong(model))
    assert "not entered" in repr(block) and "write `with rl.steer" in repr(block)
    with pytest.warns(UserWarning, match="without `with`"):
        del block


def test_a_block_that_was_entered_does_not_warn():
    model = random_model("llama")
    unsteered = last_logits(model, [FIRST])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with rl.steer(model, strong(model)):
            pass
        with pytest.raises(ZeroDivisionError), rl.steer(model, strong(model)):
            1 / 0  # noqa: B018
        block = rl.steer(model, strong(model, "none"))
        for _ in range(2):
            with block:
                assert repr(block) == "SteerBlock(steering)"
                assert not torch.equal(last_logits(model, [FIRST]), unsteered)
            assert torch.equal(last_logits(model, [FIRST]), unsteered)
        assert repr(block) == "SteerBlock(left)"
        del block


def test_a_block_may_decorate_a_function():
    model = random_model("llama")
    unsteered = last_logits(model, [FIRST])

    @rl.steer(model, strong(model, "none"))
    def logits():
        return last_logits(model, [FIRST])

    assert not torch.equal(logits(), unsteered)
    assert torch.equal(last_logits(model, [FIRST]), unsteered)
