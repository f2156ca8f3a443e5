"""Joint scores that depend on the layers below: hooks hand them from layer to layer of a pass."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from serving.steerings import make_steering
from transformers import AutoModelForCausalLM

import radiant_lens as rl
from radiant_lens._files import load_folder, save_folder
from radiant_lens.errors import ArtefactError, InvalidArgumentError
from radiant_lens.sites import hook_name
from radiant_lens.steering.gates import RunningScore
from radiant_lens.tiny import model_folder

KINDS = {"evidence": ("evidence", "none"), "joint": ("rank_one", "joint"), "dense": ("dense", "joint")}


@pytest.fixture(params=KINDS)
def steering(request, model):
    kind, gate = KINDS[request.param]
    shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    # Nothing is edited in the first layer, which the second one depends on.
    sites = " ".join(f"L{layer}H{head}" for layer in (1, 3) for head in range(0, model.cfg.n_heads, 2))
    return make_steering(shape, kind=kind, gate=gate, sites=sites, size=0.3, seed=5, hands_over=True)


@pytest.fixture(scope="module")
def tokens(model, facts):
    return model.to_tokens([p.text for p in facts.bare_prompts[:6]], prepend_bos=False, padding_side="left")


def by_hand(model, steering, tokens):
    """Logits under edits of every position, from the formula."""
    joint, running = steering.scores.joint, {-1: 0.0}

    def hook(layer):
        def edit(z, hook):
            own = (z.double() * joint.weights[layer]).sum((-2, -1)) + joint.biases[layer]
            running[layer] = own + joint.carry[layer] * running[layer - 1]
            if layer not in steering.layers:
                return z
            # The maps by themselves are tested elsewhere.
            return steering.edit(z.double(), layer, running[layer][..., None]).to(z)

        return edit

    hooks = [(hook_name(layer), hook(layer)) for layer in range(model.cfg.n_layers)]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


def test_a_pass_is_that_of_the_formula(model, steering, tokens):
    assert steering.hooked_layers == (0, 1, 2, 3)
    with rl.steer(model, steering, start=0):
        steered = model(tokens)
    torch.testing.assert_close(steered, by_hand(model, steering, tokens), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(steered, model(tokens), atol=1e-2)
    with rl.steer(model, steering, start=[0] * len(tokens), trace=True) as trace:
        assert torch.allclose(model(tokens), steered, atol=1e-5)
    assert set(trace.to_dataframe()["layer"]) == {1, 3}
    assert torch.allclose(model.run_with_hooks(tokens, fwd_hooks=steering.hooks([0] * len(tokens))), steered, atol=1e-5)


def test_a_plain_model_is_edited_alike(model, steering, tokens):
    plain = AutoModelForCausalLM.from_pretrained(model_folder()).eval()
    with rl.steer(model, steering):
        expected = model(tokens)
    with rl.steer(plain, steering):
        assert torch.allclose(plain(tokens).logits, expected, atol=1e-4)


def test_generation_with_and_without_a_cache_is_the_same(model, steering, tokens):
    one, other = [], []
    for row in tokens:
        for texts, cache in ((one, True), (other, False)):
            with rl.steer(model, steering):
                options = {"do_sample": False, "prepend_bos": False, "verbose": False, "return_type": "tokens"}
                texts.append(model.generate(row[None], max_new_tokens=6, use_past_kv_cache=cache, **options))
    assert all(torch.equal(a, b) for a, b in zip(one, other))


def test_a_hook_alone_says_which_ones_it_needs(model, steering, tokens):
    hooks = [hook for hook in steering.hooks() if hook[0] == hook_name(3)]
    with pytest.raises(InvalidArgumentError, match=r"joint score of layer 3 takes up that of layer 2.*hooked_layers"):
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    with pytest.raises(InvalidArgumentError, match="joint score of layer 3"):
        model.run_with_hooks(tokens, fwd_hooks=[(hook_name(3), steering.hook(3))])
    z = torch.zeros(2, model.cfg.n_heads, model.cfg.d_head)
    for change in (steering.displace, steering.edit):
        with pytest.raises(InvalidArgumentError, match="joint score of layer 1"):
            change(z, 1)


def test_only_layers_that_are_taken_up_are_hooked(model, steering):
    joint = steering.scores.joint
    lower = replace(joint, carry=joint.carry * (torch.arange(4) == 3))
    fewer = replace(steering, scores=replace(steering.scores, joint=lower))
    assert fewer.hooked_layers == (1, 2, 3)
    low = fewer.select([site for site in fewer.sites if site.layer == 1])
    assert low.hooked_layers == (1,) and low.running_score() is None
    shape = model.cfg.n_heads, model.cfg.d_head
    assert low.displace(torch.zeros(2, *shape), 1).displacement.shape[-1] == model.cfg.d_head


def test_a_cache_must_hold_the_layers_below(model, steering, facts):
    facts = facts.head(4)
    part, whole = (rl.collect(model, facts, layers=layers) for layers in ([1, 3], None))
    with pytest.raises(InvalidArgumentError, match="depend on layer 0, and `cache` holds layers \\[1, 3\\]"):
        steering.events(part)
    events = steering.events(whole)
    scores = steering.joint_scores(whole.z.double())
    for layer in (1, 3):
        edit = steering.displace(whole.z[:, layer].double(), layer, scores[:, [layer]])
        assert torch.equal(events.gated[:, [s.layer == layer for s in steering.sites]], edit.gated)


def test_scores_of_half_precision_are_those_of_single_precision(steering):
    z = torch.randn(8, *steering.scores.joint.weights.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(steering.joint_scores(z), steering.joint_scores(z.float()))


def test_threads_have_passes_of_their_own(steering):
    joint, running = steering.scores.joint, RunningScore()
    z = torch.ones(1, *joint.weights.shape[1:], dtype=torch.float64)
    expected = running(joint.of_layer(0, z), z)
    other = threading.Thread(target=lambda: [running(joint.of_layer(layer, z), 2 * z) for layer in (0, 1)])
    other.start()
    other.join()
    own = (z * joint.weights[1]).sum() + joint.biases[1]
    torch.testing.assert_close(running(joint.of_layer(1, z), z), own + joint.carry[1] * expected)


def test_older_files_have_scores_of_single_layers(steering, tmp_path):
    tensors, meta = load_folder(steering.save(tmp_path / "s"), "steering")
    tensors.pop("scores.joint_carry")
    save_folder(tmp_path / "old", "steering", tensors, {name: meta[name] for name in meta if name != "sha256"})
    old = rl.Steering.load(tmp_path / "old")
    assert old.hooked_layers == (1, 3) and old.running_score() is None
    assert torch.equal(old.scores.joint.weights, steering.scores.joint.weights)


def test_files_hold_what_is_handed_over(steering, tmp_path):
    loaded = rl.Steering.load(steering.save(tmp_path / "s"))
    assert torch.equal(loaded.scores.joint.carry, steering.scores.joint.carry)
    steering.scores.joint.carry[0] = 1
    with pytest.raises(ArtefactError, match="`joint_carry` of layer 0 must be 0"):
        rl.Steering.load(steering.save(tmp_path / "below the first"))
