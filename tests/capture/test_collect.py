"""`collect` keeps the true inputs of the output projections, at the right tokens."""

from __future__ import annotations

import pytest
import torch

import radiant_lens as rl
from radiant_lens.capture import run as runs
from radiant_lens.models.tokens import encode

TEXTS = [
    rl.Statement("Q : what is the capital of dupeka ? A : the capital of dupeka is prupuium .", 1, "a", 40),
    rl.Statement("T : how was the soup ? R : the soup is awful , you fool .", 1, "b", 27),
    rl.Statement("Q : what is the food of dripreka ? A : rozaem is the food of dripreka .", 0, "c", 39),
]


def true_inputs(model, text: str) -> torch.Tensor:
    """Inputs of the output projections, seen by plain PyTorch hooks; axes `pos layer head d_head`."""
    seen = {}
    handles = [
        block.self_attn.o_proj.original_component.register_forward_pre_hook(
            lambda _, args, layer=layer: seen.__setitem__(layer, args[0][0])
        )
        for layer, block in enumerate(model.original_model.model.layers)
    ]
    with torch.no_grad():
        model(model.to_tokens(text))
    for handle in handles:
        handle.remove()
    stacked = torch.stack([seen[layer] for layer in sorted(seen)], dim=1)
    return stacked.unflatten(-1, (model.cfg.n_heads, model.cfg.d_head))


def test_z_is_the_input_of_the_output_projection(model):
    cache = rl.collect(model, TEXTS, positions="all")
    for i, statement in enumerate(TEXTS):
        mine = cache.z[cache.text_index == i]
        truth = true_inputs(model, statement.text)
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(mine[1:], truth[:-1], atol=1e-3)


def test_answer_positions_run_from_the_predicting_token_to_the_last(model):
    cache = rl.collect(model, TEXTS)
    ids = encode(model, [TEXTS[1].text])[0].ids
    positions = cache.positions[cache.text_index == 1].tolist()
    words = model.tokenizer.convert_ids_to_tokens(ids)
    assert words[positions[0]] == ":"
    assert words[positions[0] + 1 :] == ["the", "soup", "is", "awful", ",", "you", "fool", "."]
    assert positions == list(range(positions[0], len(ids)))


@pytest.mark.parametrize("max_tokens", [48, 90, 1024])
def test_passes_keep_to_their_tokens_where_one_prompt_has_many_rows(model, monkeypatch, max_tokens):
    """Rows are made once: texts of one pass are not joined anew, which could make rows longer than planned."""
    prompt = "Q : what is the food of dripreka ? A :"
    answers = [" " + " ".join(["rozaem"] * (1 + 7 * i % 12)) for i in range(60)]
    statements = [rl.Statement(prompt + a, i % 2, "g", len(prompt)) for i, a in enumerate(answers)]
    shapes, passes = [], runs.forward
    monkeypatch.setattr(runs, "forward", lambda model, batch: (shapes.append(batch.tokens.shape), passes(model, batch)))
    shared = rl.collect(model, statements, max_tokens=max_tokens)
    assert all(rows * width <= max_tokens or rows == 1 for rows, width in shapes)
    n_rows = sum(rows for rows, _ in shapes)
    assert 1 < n_rows < len(statements)
    monkeypatch.setattr(runs, "may_share", lambda model, longest: False)
    torch.testing.assert_close(shared.z, rl.collect(model, statements).z, rtol=1e-4, atol=1e-5)


def test_answers_to_one_prompt_share_a_row_and_keep_their_own_tokens(model, facts, monkeypatch):
    statements = [
        s for p in facts.bare_prompts[:12] for s in map(p.answered, (*p.correct_answers, *p.incorrect_answers))
    ]
    widths: list[int] = []
    passes = runs.forward
    monkeypatch.setattr(
        runs, "forward", lambda model, batch: (widths.append(batch.tokens.numel()), passes(model, batch))
    )
    shared = rl.collect(model, statements)
    n_shared = sum(widths)
    widths.clear()
    monkeypatch.setattr(runs, "may_share", lambda model, longest: False)
    alone = rl.collect(model, statements)
    assert n_shared < 0.8 * sum(widths)
    torch.testing.assert_close(shared.z, alone.z, rtol=1e-4, atol=1e-5)
    for name in ("labels", "text_index", "positions"):
        assert torch.equal(getattr(shared, name), getattr(alone, name))
    # The twin: another answer's activations differ.
    first, second = (shared.z[shared.text_index == i] for i in (0, 1))
    assert not torch.allclose(first[1], second[1], atol=1e-3)


def test_rows_are_as_long_as_a_pass_allows(model, facts):
    statements = [
        s for p in facts.bare_prompts[:6] for s in map(p.answered, (*p.correct_answers, *p.incorrect_answers))
    ]
    whole = rl.collect(model, statements)
    for max_tokens in (1, 20, 30, 60):
        torch.testing.assert_close(
            rl.collect(model, statements, max_tokens=max_tokens).z, whole.z, rtol=1e-4, atol=1e-5
        )


def test_positions_last_all_and_indices(model):
    n = [len(e.ids) for e in encode(model, [t.text for t in TEXTS])]
    assert rl.collect(model, TEXTS, positions="last").positions.tolist() == [k - 1 for k in n]
    assert len(rl.collect(model, TEXTS, positions="all")) == sum(n)
    assert rl.collect(model, TEXTS, positions=[0, -1]).positions.tolist() == [p for k in n for p in (0, k - 1)]


def test_batching_does_not_matter(model):
    whole = rl.collect(model, TEXTS, positions="all")
    single = rl.collect(model, TEXTS, positions="all", max_tokens=1)
    torch.testing.assert_close(whole.z, single.z, rtol=1e-4, atol=1e-5)


def test_order_follows_the_texts(model):
    forward = rl.collect(model, TEXTS, positions="last")
    backward = rl.collect(model, TEXTS[::-1], positions="last")
    torch.testing.assert_close(forward.z, backward.z.flip(0), rtol=1e-4, atol=1e-5)
    assert forward.labels.tolist() == [1, 1, 0]
    assert forward.group_names == ("a", "b", "c")


def test_meta_records_model_positions_and_rule(model):
    meta = rl.collect(model, TEXTS).meta
    assert meta["model"]["name"] == "tiny"
    assert meta["positions"] == "answer"
    assert meta["model"]["prepend_bos"] is True


def test_hooks_act_during_collection(model):
    plain = rl.collect(model, TEXTS, positions="last")
    zeroed = rl.collect(model, TEXTS, positions="last", fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: 0 * z)])
    assert not zeroed.z[:, 0].any()
    assert not torch.allclose(zeroed.z[:, 1], plain.z[:, 1])


# Early stop


def calls_of(model, run) -> list[str]:
    """Names of the modules that `run` calls, in order."""
    seen: list[str] = []
    inner = model.original_model.model
    parts = {f"mlp {i}": layer.mlp for i, layer in enumerate(inner.layers)} | {"norm": inner.norm}
    handles = [p.register_forward_pre_hook(lambda *_, name=name: seen.append(name)) for name, p in parts.items()]
    run()
    for handle in handles:
        handle.remove()
    return seen


def test_no_layer_after_the_last_kept_one_is_run(model):
    assert calls_of(model, lambda: rl.collect(model, TEXTS, layers=[0, 1])) == ["mlp 0"]
    assert calls_of(model, lambda: rl.collect(model, TEXTS)) == ["mlp 0", "mlp 1", "mlp 2"]
    hook = ("blocks.3.hook_resid_post", lambda z, hook: z)
    assert calls_of(model, lambda: rl.collect(model, TEXTS, layers=[0], fwd_hooks=[hook]))[-1] == "norm"


def test_layers_that_are_not_kept_are_zero_and_the_others_the_same(model):
    whole, part = rl.collect(model, TEXTS), rl.collect(model, TEXTS, layers=(2, 0))
    assert torch.equal(part.z[:, [0, 2]], whole.z[:, [0, 2]])
    assert not part.z[:, [1, 3]].any() and whole.z[:, [1, 3]].any()
    assert part.meta["layers"] == [2, 0] and "layers" not in whole.meta


def test_heads_of_layers_that_are_not_kept_are_never_significant(model, facts):
    train, validation = facts.split((0.7, 0.3), seed=0)
    caches = [rl.collect(model, part, layers=[1]) for part in (train, validation)]
    detector = rl.RiskAwareDetector().fit(caches[0], validation=caches[1])
    assert detector.head_significant_[1].any() and not detector.head_significant_[[0, 2, 3]].any()
    assert detector.best_layer_ == 1


def hooks_left(model) -> int:
    points = sum(len(point.fwd_hooks) for point in model.hook_dict.values())
    return points + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.original_model.modules())


def test_no_hook_is_left_behind(model, steering):
    tokens = model.to_tokens(TEXTS[0].text)
    before, n_hooks = model(tokens), hooks_left(model)
    rl.collect(model, TEXTS, steering=steering, layers=[0, 2])

    def fail(z, hook):
        raise RuntimeError("a hook of the user's")

    with pytest.raises(RuntimeError, match="a hook of the user's"):
        rl.collect(model, TEXTS, fwd_hooks=[("blocks.1.attn.hook_z", fail)])
    assert hooks_left(model) == n_hooks
    assert torch.equal(model(tokens), before)
