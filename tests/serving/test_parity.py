"""What vLLM generates with the plugin is what `rl.steer` generates on transformers."""

from __future__ import annotations

from inspect import isfunction

import pytest
import torch
from plain_models import shape
from serving.engines import Engine, before_release, expected_answers, make_model, prompts
from serving.steerings import make_steering

# vLLM warns of much as it is imported and started.
pytestmark = pytest.mark.filterwarnings("ignore")


def make_steerings(axes):
    """Of every kind: least KL (of all families), RADIANT (head, vote, trust region), ITI, ablations."""
    kinds = {
        "least_kl_constant": {"kind": "constant", "gate": "layer", "size": 0.7},
        "least_kl_affine": {"kind": "dense", "gate": "layer", "size": 0.7},
        "least_kl_joint": {"kind": "dense", "gate": "joint", "size": 0.7, "hands_over": True},
        "least_kl_evidence": {"kind": "evidence", "gate": "none", "size": 0.7, "hands_over": True},
        "radiant_head": {"kind": "rank_one", "gate": "head"},
        "radiant_vote": {"kind": "rank_one", "gate": "vote", "size": 2.0},
        "radiant_trust": {"kind": "rank_one", "gate": "head", "trust": True, "size": 2.0},
        "iti": {"kind": "constant", "gate": "none", "sites": "L0H1 L1H0 L1H3"},
        "zero": {"kind": "zero", "gate": "none"},
        "resample": {"kind": "resample", "gate": "head"},
    }
    return {name: make_steering(axes, seed=i, **options) for i, (name, options) in enumerate(kinds.items())}


N = 200


@pytest.mark.parametrize("model_type", ["llama", *before_release("qwen3", "gemma3_text")])
def test_every_policy_in_one_mixed_batch(vllm, model_type, tmp_path):
    """200 prompts, half of them steered and half with a prefix that they share; from a cache, and in chunks."""
    model = make_model(model_type, tmp_path / "model")
    steerings = make_steerings(shape(model))
    names, n, prefix = list(steerings), len(steerings), prompts(2, longest=40, seed=1)[1]
    rows = [[*prefix, *row] if i % 6 > 2 else row for i, row in enumerate(prompts(N))]
    # Strengths differ where the maps allow it.
    choices = [
        None if i % 2 else (names[i // 2 % n], 1.0 if names[i // 2 % n] == "resample" else 0.5 + i / N)
        for i in range(N)
    ]
    edited: dict[str, torch.Tensor] = {}
    expected = expected_answers(model, steerings, rows, choices, edited=edited)
    with Engine(vllm, tmp_path / "model", steerings) as engine:
        outputs = engine.outputs(rows, choices)
        assert [list(output.outputs[0].token_ids) for output in outputs] == expected
        assert sum(output.num_cached_tokens for output in outputs) >= 32 * (N // 2 - 16)
        plain = engine.answers(rows, [None] * N)
        _compare_edits(engine, steerings, edited)
    assert [p == e for p, e, c in zip(plain, expected, choices) if c is None] == [True] * (N // 2)
    differ = {c[0] for p, e, c in zip(plain, expected, choices) if c is not None and p != e}
    assert len(differ) >= 6, differ
    chunks = {"max_num_batched_tokens": 16, "enable_chunked_prefill": True, "enable_prefix_caching": False}
    with Engine(vllm, tmp_path / "model", steerings, **chunks) as engine:
        assert engine.answers(rows, choices) == expected


def _compare_edits(engine, steerings, expected):
    """Each head was edited at as many tokens as in the trace of `rl.steer`."""
    from radiant_lens.serving.layer_edits import LayerEdits

    (edits,) = {id(o): o for o in _referred(engine.runner.execute_model, LayerEdits)}.values()
    for number, (name, steering) in enumerate(steerings.items()):
        for layer, editor in edits.editors.items():
            counted = edits.n_edited[layer][editor.owner == number]
            heads = [site.head for site in steering.sites if site.layer == layer]
            torch.testing.assert_close(counted.float(), expected[name][layer, heads], rtol=0, atol=0)
            if steering.gate != "none" and name != "radiant_trust":
                assert counted.sum() > 0


def _referred(function, kind):
    """Objects of a kind that a function refers to, itself or through functions that it calls."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    inner = [o for cell in cells if isfunction(cell) for o in _referred(cell, kind)]
    return [cell for cell in cells if isinstance(cell, kind)] + inner


def test_chunked_prefill_edits_the_same_tokens(vllm, tmp_path):
    model = make_model("llama", tmp_path / "model")
    steerings = make_steerings(shape(model))
    rows = prompts(12, longest=100)
    choices = [("radiant_vote", 1.0), None, ("iti", 2.0), ("zero", 1.0)] * 3
    expected = expected_answers(model, steerings, rows, choices)
    options = {"max_num_batched_tokens": 16, "enable_chunked_prefill": True}
    with Engine(vllm, tmp_path / "model", steerings, **options) as engine:
        assert engine.answers(rows, choices) == expected
        assert engine.answers(rows, [None] * 12) != expected


def test_edited_blocks_are_not_reused(vllm, tmp_path, monkeypatch):
    """A prompt that contains an answer is a prompt: its tokens before the last are not edited, cached or not."""
    model = make_model("llama", tmp_path / "model")
    steerings = make_steerings(shape(model))
    start = prompts(2, longest=80)[1]
    chosen = ("zero", 1.0)
    with Engine(vllm, tmp_path / "model", steerings, enable_prefix_caching=True) as engine:
        (answer,) = engine.answers([start], [chosen], 30)
        # 80 prompt tokens, of which the last is edited: the third block of 32 holds it, the first two hold none.
        rows = [start, [*start, *answer], [*start, *answer[:9]], [*start, 7, 8, 9], start]
        choices = [chosen, chosen, ("zero", 0.5), ("radiant_vote", 1.0), None]
        outputs = [engine.outputs([row], [choice])[0] for row, choice in zip(rows, choices)]
        expected = expected_answers(model, steerings, rows, choices)
        assert [list(o.outputs[0].token_ids) for o in outputs] == expected
        # Prefixes without an edited token are shared, whatever the steering.
        assert [o.num_cached_tokens for o in outputs] == [64] * 5

        # The same without the key: the blocks with edited tokens are found, and the answer is another.
        from radiant_lens.serving import requests

        monkeypatch.setattr(requests, "cache_key", lambda *args: None)
        engine.llm.reset_prefix_cache()
        (answer,) = engine.answers([start], [chosen], 30)
        (reused,) = engine.outputs([[*start, *answer]], [chosen])
        assert reused.num_cached_tokens > 64
        assert list(reused.outputs[0].token_ids) != expected[1]


def test_preempted_requests_are_edited_at_the_same_tokens(vllm, tmp_path, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    preempt, n_preempted = Scheduler._preempt_request, []

    def count(self, request, *args, **options):
        n_preempted.append(request.request_id)
        return preempt(self, request, *args, **options)

    monkeypatch.setattr(Scheduler, "_preempt_request", count)
    model = make_model("llama", tmp_path / "model")
    steerings = make_steerings(shape(model))
    rows, choices = prompts(8, longest=40), [("radiant_vote", 1.0), ("zero", 1.0), None, ("iti", 1.0)] * 2
    expected = expected_answers(model, steerings, rows, choices, 40)
    with Engine(vllm, tmp_path / "model", steerings, num_gpu_blocks_override=12) as engine:
        assert engine.answers(rows, choices, 40) == expected
    assert n_preempted


def test_several_samples_of_one_request_are_steered(vllm, tmp_path):
    model = make_model("llama", tmp_path / "model")
    steerings = make_steerings(shape(model))
    rows, choices = prompts(4), [("radiant_vote", 1.0)] * 4
    expected = expected_answers(model, steerings, rows, choices)
    with Engine(vllm, tmp_path / "model", steerings) as engine:
        # The greedy answer twice; at temperature 0, vLLM takes no more than one sample.
        outputs = engine.outputs(rows, choices, n=2, temperature=1, top_k=1)
        assert [[list(o.token_ids) for o in output.outputs] for output in outputs] == [[e, e] for e in expected]


def test_a_compiled_model_is_edited_by_the_operator(vllm, tmp_path, monkeypatch):
    from radiant_lens.serving import layer_edits

    monkeypatch.setattr(layer_edits, "_CURRENT", [])
    model = make_model("llama", tmp_path / "model")
    steerings = make_steerings(shape(model))
    rows, choices = prompts(6), [("radiant_vote", 1.0), None, ("least_kl_affine", 1.0)] * 2
    expected = expected_answers(model, steerings, rows, choices)
    # Traced as for any backend, and run without one, since a compiler takes longer than all other tests.
    options = {"enforce_eager": False, "compilation_config": {"mode": 2, "backend": "eager"}}
    with Engine(vllm, tmp_path / "model", steerings, **options) as engine:
        assert engine.answers(rows, choices) == expected
        (edits,) = (reference() for reference in layer_edits._CURRENT)
        assert edits is not None and sum(edits.counts()[0]) > 0


def test_two_tensor_parallel_processes_give_what_one_gives(vllm, tmp_path):
    model = make_model("llama", tmp_path / "model")
    steerings = make_steerings(shape(model))
    rows, choices = prompts(8), [("radiant_vote", 1.0), ("least_kl_affine", 0.7), None, ("radiant_head", 2.0)] * 2
    expected = expected_answers(model, steerings, rows, choices)
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    with Engine(vllm, tmp_path / "model", steerings, **options) as engine:
        assert engine.answers(rows, choices) == expected
        assert engine.answers(rows, [None] * 8) != expected


def test_the_default_steering_and_requests_that_are_refused(vllm, tmp_path):
    model = make_model("llama", tmp_path / "model")
    steerings = make_steerings(shape(model))
    rows = prompts(4)
    with Engine(vllm, tmp_path / "model", steerings, default="zero") as engine:
        steered = expected_answers(model, steerings, rows, [("zero", 1.0)] * 4)
        plain = expected_answers(model, steerings, rows, [None] * 4)
        assert engine.answers(rows, [None] * 4) == steered != plain
        assert engine.answers(rows, [{"steering": "none"}] * 4) == plain
        assert engine.answers(rows, [("zero", 0.0)] * 4) == plain
        for wrong, message in [
            ({"steering": "zoro"}, "'zoro' is not a known steering: did you mean 'zero'"),
            ({"steering": "zero", "strength": float("nan")}, "`strength` must lie between -1e.06 and 1e.06; got nan"),
            ({"steering": "resample", "strength": 2}, "is a resample ablation, which has no strength; got 2"),
        ]:
            with pytest.raises(vllm.exceptions.VLLMValidationError, match=message):
                engine.answers(rows, [wrong] * 4)
        with pytest.raises(vllm.exceptions.VLLMValidationError, match="Beam search starts every step as a new prompt"):
            engine.llm.beam_search(
                [{"prompt_token_ids": rows[1]}], vllm.sampling_params.BeamSearchParams(beam_width=2, max_tokens=3)
            )
        # The engine goes on.
        assert engine.answers(rows, [None] * 4) == steered


def test_a_steering_of_another_model_is_refused_before_the_model_is_loaded(vllm, tmp_path):
    make_model("llama", tmp_path / "model")
    with pytest.raises(Exception, match=r"'a' is for a model with 3 layers of 4 heads of length 32; this one has 2"):
        Engine(vllm, tmp_path / "model", {"a": make_steering((3, 4, 32))})
    other = make_steering((2, 4, 32), model={"name": "other", "config": {"model_type": "qwen3"}})
    with pytest.raises(Exception, match=r"'a' was fitted on 'other', whose `model_type` is 'qwen3'; this model's is"):
        Engine(vllm, tmp_path / "model", {"a": other})
