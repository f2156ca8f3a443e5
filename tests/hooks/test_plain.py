"""Plain transformers models: each way of running them edits each row from its last prompt token on."""

from __future__ import annotations

import threading

import pytest
import torch
from plain_models import on_cache, random_model, random_steering, shape
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompileConfig,
    DynamicCache,
    StaticCache,
    TextIteratorStreamer,
    pipeline,
)

import radiant_lens as rl
from radiant_lens.hooks.edit_window import Calls, Passes
from radiant_lens.tiny import model_folder

MODES = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 1.0, "top_k": 0},
    "beams": {"do_sample": False, "num_beams": 3},
    "beams, all returned": {"do_sample": False, "num_beams": 3, "num_return_sequences": 3},
    "samples of each": {"do_sample": True, "num_return_sequences": 4},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "no cache": {"do_sample": False, "use_cache": False},
    "beams, no cache": {"do_sample": False, "num_beams": 3, "use_cache": False},
    "looked up": {"do_sample": False, "prompt_lookup_num_tokens": 3},
}
PROMPTS = [
    "Q : what is the capital of dupeka ? A :",
    "Q : what is the food of dupeka ? A : the food of dupeka is soup . Q : what is the capital of dupeka ? A :",
]


@pytest.fixture(scope="module")
def plain():
    return AutoModelForCausalLM.from_pretrained(model_folder()).eval()


@pytest.fixture(scope="module")
def ids():
    tokenizer = AutoTokenizer.from_pretrained(model_folder(), padding_side="left")
    assert tokenizer.pad_token_id is not None
    return tokenizer


def strong(model, gate="head"):
    sites = [(layer, head) for layer in (1, 2) for head in range(shape(model)[1])]
    return random_steering(*shape(model), gate=gate, sites=sites, strength=20, seed=1)


@pytest.fixture(scope="module")
def always(plain):
    """A steering that changes every text."""
    return strong(plain)


def n_hooks(model) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def generate(model, ids, prompts, **options):
    batch = ids(prompts, return_tensors="pt", padding=len(prompts) > 1)
    batch.pop("token_type_ids", None)
    torch.manual_seed(0)
    return model.generate(**batch, max_new_tokens=8, pad_token_id=ids.pad_token_id, **options)


def replayed(model, steering, sequences, n_prompt, mask):
    """Logits of the generated tokens from one pass over the whole sequences, edited from the last prompt token on."""
    mask = torch.cat([mask, torch.ones(len(sequences), sequences.shape[1] - n_prompt, dtype=torch.long)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), rl.steer(model, steering, start=n_prompt - 1):
        return model(sequences, attention_mask=mask, position_ids=positions).logits[:, n_prompt - 1 : -1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gate", ["head", "none"])
def test_every_way_of_generating_gives_the_logits_of_one_pass_without_cache(plain, ids, mode, gate):
    """Greedy tokens are the best of the replayed logits; of the others the logits that `generate` saw are compared."""
    steering = strong(plain, gate)
    # Assisted generation takes one prompt.
    prompts = PROMPTS[1:] if mode == "looked up" else PROMPTS
    batch = ids(prompts, return_tensors="pt", padding=True)
    n_prompt = batch["input_ids"].shape[1]
    unsteered = generate(plain, ids, prompts, **MODES[mode])
    options = {**MODES[mode], "return_dict_in_generate": True, "output_logits": True}
    with rl.steer(plain, steering):
        steered = generate(plain, ids, prompts, **options)
    assert not torch.equal(steered.sequences, unsteered)
    n_each = len(steered.sequences) // len(prompts)
    mask = batch["attention_mask"].repeat_interleave(n_each, 0)
    logits = replayed(plain, steering, steered.sequences, n_prompt, mask)
    if "beams" in mode:
        # A beam changes its row at every step: its tokens' log-probabilities tell whether its own gate went with it.
        with rl.steer(plain, steering):
            scored = generate(plain, ids, prompts, **{**options, "output_scores": True})
        seen = plain.compute_transition_scores(
            scored.sequences, scored.scores, scored.beam_indices, normalize_logits=False
        )
        own = logits.log_softmax(-1).gather(2, steered.sequences[:, n_prompt:, None])[..., 0]
        alive = scored.beam_indices[:, : own.shape[1]] >= 0
        torch.testing.assert_close(seen[alive], own[alive], rtol=1e-3, atol=1e-3)
        assert alive.sum() > len(steered.sequences)
        return
    # After its end a row is padded: logits there mean nothing.
    alive = (steered.sequences[:, n_prompt:] == ids.eos_token_id).cumsum(1) <= 1
    width = min(len(steered.logits), logits.shape[1])
    seen = torch.stack(steered.logits, dim=1)[:, :width]
    torch.testing.assert_close(seen[alive[:, :width]], logits[:, :width][alive[:, :width]], rtol=1e-3, atol=1e-3)


def test_bridge_and_plain_model_say_the_same(plain, ids, model, steering):
    with rl.steer(plain, steering):
        of_plain = generate(plain, ids, PROMPTS, do_sample=False)
    tokens = ids(PROMPTS, return_tensors="pt", padding=True)
    with rl.steer(model, steering):
        of_bridge = model.generate(
            tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            max_new_tokens=8,
            do_sample=False,
            return_type="tokens",
            verbose=False,
        )
    assert torch.equal(of_plain[:, : of_bridge.shape[1]], of_bridge)


def test_traces_of_both_are_the_same(plain, ids, model, steering):
    frames = []
    for other in (plain, model):
        with rl.steer(other, steering, trace=True) as trace, torch.no_grad():
            for prompt in PROMPTS:
                other(ids(prompt, return_tensors="pt")["input_ids"])
        frames.append(trace.to_dataframe())
    exact = [c for c in frames[0] if c != "displacement"]
    assert frames[0][exact].equals(frames[1][exact])
    assert abs(frames[0]["displacement"] - frames[1]["displacement"]).max() < 1e-4
    assert frames[0]["call"].unique().tolist() == [0, 1]


def test_guesses_that_come_with_the_prompt_are_not_part_of_it(plain, ids):
    """Prompt lookup sends its first guesses along with the prompt."""
    seen = []
    handle = plain.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with rl.steer(plain, strong(plain), trace=True) as trace:
        generate(plain, ids, PROMPTS[1:], **MODES["looked up"])
    handle.remove()
    n_prompt = ids(PROMPTS[1:], return_tensors="pt")["input_ids"].shape[1]
    # Without guesses in the first pass this test would test nothing.
    assert seen[0] > n_prompt
    assert trace.to_dataframe()["position"].min() == n_prompt - 1


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_rows_of_a_padded_batch_equal_rows_alone(plain, ids, options):
    steering = strong(plain)
    frames = []
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[1:]):
        with rl.steer(plain, steering, trace=True) as trace:
            generate(plain, ids, prompts, do_sample=False, eos_token_id=None, **options)
        frames.append(trace.to_dataframe())
    both, *alone = frames
    for row, frame in enumerate(alone):
        mine = both[both["row"] == row].reset_index(drop=True)
        for column in ("position", "layer", "head", "vote", "gated"):
            assert mine[column].tolist() == frame[column].tolist()
    assert both["gated"].any() and not both["gated"].all()


def test_a_dict_of_masks_is_read():
    """Gemma 2 with a static cache passes one mask for each kind of layer."""
    gemma = random_model("gemma2", sliding_window=4)
    steering = random_steering(*shape(gemma))
    tokens = torch.randint(5, 50, (2, 6))
    tokens[0, :2] = gemma.config.pad_token_id
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    positions = []
    for cache in ("static", "dynamic"):
        with rl.steer(gemma, steering, trace=True) as trace:
            gemma.generate(
                tokens, attention_mask=mask, max_new_tokens=4, do_sample=False, cache_implementation=cache,
                eos_token_id=None,
            )  # fmt: skip
        positions.append(trace.to_dataframe().groupby("row")["position"].unique().map(list).tolist())
    assert positions[0] == positions[1] == [[3, 4, 5, 6], [5, 6, 7, 8]]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_several_tokens_with_all_their_logits_continue_the_prompt(plain, ids, kind):
    """As in assisted generation: guesses come several at a time, and wrong ones are cropped from the cache."""
    steering = strong(plain)
    tokens = ids(PROMPTS[1], return_tensors="pt")["input_ids"]
    n = tokens.shape[1]
    with torch.no_grad(), rl.steer(plain, steering, start=n - 5):
        expected = plain(tokens).logits
    cache = DynamicCache() if kind == "dynamic" else StaticCache(config=plain.config, max_cache_len=n + 8)
    with torch.no_grad(), rl.steer(plain, steering):
        plain(tokens[:, : n - 4], **on_cache(plain, cache))
        if kind == "dynamic":
            plain(tokens[:, n - 4 :].flip(1), **on_cache(plain, cache), logits_to_keep=4)
            cache.crop(-4)
        several = plain(tokens[:, n - 4 : n - 1], **on_cache(plain, cache), logits_to_keep=3).logits
        last = plain(tokens[:, n - 1 :], **on_cache(plain, cache)).logits
    torch.testing.assert_close(torch.cat([several, last], 1), expected[:, n - 4 :], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_continues_its_prompt_by_either_of_its_names(plain, ids, name):
    tokens = ids(PROMPTS[1], return_tensors="pt")["input_ids"]
    cache, calls = DynamicCache(), Calls()
    plain(tokens, **on_cache(plain, cache))
    passes = Passes(None, None, calls)
    passes.begin(plain, (tokens,), {})
    for arguments, expected in ({name: cache}, 1), ({"no_such_cache": cache}, 2):
        passes.begin(plain, (tokens[:, -1:],), arguments)
        assert calls.n == expected


def test_a_mask_given_without_its_name_counts(plain, ids, always):
    batch = ids(PROMPTS, return_tensors="pt", padding=True, padding_side="right")
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad(), rl.steer(plain, always):
        named, unnamed = plain(tokens, attention_mask=mask).logits, plain(tokens, mask).logits
        unmasked = plain(tokens).logits
    n = int(mask[0].sum())
    assert torch.equal(named, unnamed)
    assert (named - unmasked)[0, n - 1].abs().max() > 0.1


def test_a_cache_from_before_the_block_is_continued(plain, ids):
    steering = strong(plain)
    tokens = ids(PROMPTS[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        with rl.steer(plain, steering):
            expected = plain(tokens).logits[:, -1]
        cache = DynamicCache()
        plain(tokens[:, :-3], **on_cache(plain, cache))
        with rl.steer(plain, steering):
            last = plain(tokens[:, -3:], **on_cache(plain, cache)).logits[:, -1]
    torch.testing.assert_close(last, expected, rtol=1e-3, atol=1e-3)


def test_streaming(plain, ids, always):
    with rl.steer(plain, always):
        whole = generate(plain, ids, PROMPTS[:1], do_sample=False)
        streamer = TextIteratorStreamer(ids, skip_prompt=True)
        thread = threading.Thread(
            target=generate, args=(plain, ids, PROMPTS[:1]), kwargs={"do_sample": False, "streamer": streamer}
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
    n_prompt = ids(PROMPTS[0], return_tensors="pt")["input_ids"].shape[1]
    assert text == ids.decode(whole[0, n_prompt:])
    assert text != ids.decode(generate(plain, ids, PROMPTS[:1], do_sample=False)[0, n_prompt:])


def test_pipelines(plain, ids, always):
    pipe = pipeline("text-generation", model=plain, tokenizer=ids)
    options = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False, "batch_size": 2}
    # Pipelines of older versions take the space before a full stop away.
    options["clean_up_tokenization_spaces"] = False
    unsteered = pipe(PROMPTS, **options)
    with rl.steer(pipe.model, always):
        steered = pipe(PROMPTS, **options)
        tokens = generate(plain, ids, PROMPTS, do_sample=False)
    n_prompt = ids(PROMPTS, return_tensors="pt", padding=True)["input_ids"].shape[1]
    texts = ids.batch_decode(tokens[:, n_prompt:], skip_special_tokens=True)
    assert [answer[0]["generated_text"].strip() for answer in steered] == [text.strip() for text in texts]
    assert steered != unsteered
    assert pipe(PROMPTS, **options) == unsteered


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(ids, always, dtype):
    half = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=dtype).eval()
    tokens = ids(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        unsteered = half(tokens).logits
        with rl.steer(half, always):
            steered = half(tokens).logits
        with rl.steer(half.float(), always):
            exact = half(tokens).logits
    assert steered.dtype == dtype
    assert not torch.equal(steered[:, -1], unsteered[:, -1])
    assert (steered[:, -1].float() - exact[:, -1]).abs().max() < 0.2 * (steered - unsteered)[:, -1].float().abs().max()


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_device_maps(plain, ids, always, tmp_path, place):
    """Layers on disk are fetched as they are needed, by hooks of their own."""
    device_map = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    device_map |= {f"model.layers.{i}": place if i > 1 else "cpu" for i in range(plain.config.num_hidden_layers)}
    mapped = AutoModelForCausalLM.from_pretrained(
        model_folder(), device_map=device_map, offload_folder=tmp_path / "offload"
    ).eval()
    assert any(p.is_meta for p in mapped.parameters()) == (place == "disk")
    before = n_hooks(mapped)
    with rl.steer(plain, always):
        expected = generate(plain, ids, PROMPTS, do_sample=False)
    with rl.steer(mapped, always):
        tokens = generate(mapped, ids, PROMPTS, do_sample=False)
    assert torch.equal(tokens, expected)
    assert n_hooks(mapped) == before


def test_no_hook_is_left_even_after_an_exception(plain, ids, steering):
    before = n_hooks(plain)
    with pytest.raises(KeyboardInterrupt), rl.steer(plain, steering):
        assert n_hooks(plain) == before + len(steering.layers) + 1
        generate(plain, ids, PROMPTS, do_sample=False)
        raise KeyboardInterrupt
    assert n_hooks(plain) == before


@pytest.mark.parametrize("when", ["before the block", "in the block"])
def test_compiled_models_are_steered_and_set_free(ids, when):
    """A graph made without hooks must not be used in the block, nor one made in the block after it."""
    model = random_model("llama")
    steering = random_steering(*shape(model))
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        unsteered = model(tokens).logits
        with rl.steer(model, steering):
            expected = model(tokens).logits
        compiled = torch.compile(model, backend="aot_eager")
        if when == "before the block":
            torch.testing.assert_close(compiled(tokens).logits, unsteered, rtol=1e-5, atol=1e-5)
        with rl.steer(model, steering):
            assert torch.equal(compiled(tokens).logits, expected)
        torch.testing.assert_close(compiled(tokens).logits, unsteered, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected[:, -1], unsteered[:, -1], atol=1e-3)
    torch.compiler.reset()


def test_generation_that_compiles_itself_is_steered(ids):
    """With a static cache `generate` compiles the model on accelerators, and keeps what it compiled."""
    model = random_model("llama")
    steering = random_steering(*shape(model))
    compile_config = CompileConfig(backend="aot_eager")
    # `generate` compiles on accelerators alone unless it is told so.
    compile_config._compile_all_devices = True
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "cache_implementation": "static"}
    tokens = torch.tensor([[5, 6, 7]])
    unsteered = model.generate(tokens, **options)
    assert torch.equal(model.generate(tokens, **options, compile_config=compile_config), unsteered)
    with rl.steer(model, steering):
        expected = model.generate(tokens, **options)
        assert torch.equal(model.generate(tokens, **options, compile_config=compile_config), expected)
    assert not torch.equal(expected, unsteered)
    assert torch.equal(model.generate(tokens, **options, compile_config=compile_config), unsteered)
    torch.compiler.reset()
