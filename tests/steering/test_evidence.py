"""Edits by the evidence of a layer: the ramp, the thin products, files, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from serving.steerings import make_steering

import radiant_lens as rl
from radiant_lens._files import load_folder, save_folder
from radiant_lens.capture.run import steering_digest
from radiant_lens.errors import ArtefactError, InvalidArgumentError
from radiant_lens.steering.editor import EvidenceEditor, LayerEditor
from radiant_lens.steering.gates import GATES
from radiant_lens.steering.steering import joined

SHAPE = (2, 5, 4)


def activations(n: int = 60, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, *SHAPE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def steering() -> rl.Steering:
    return make_steering(SHAPE, kind="evidence", gate="none", seed=3)


def by_hand(steering: rl.Steering, z: torch.Tensor, layer: int) -> torch.Tensor:
    scores, maps = steering.scores.joint, steering.head_maps
    joint = (z * scores.weights[layer]).sum((1, 2)) + scores.biases[layer]
    after = z.clone()
    for i, site in enumerate(steering.sites):
        if site.layer == layer:
            evidence = ((joint - maps.start[i]) * maps.steepness[i]).clamp(0, 1)
            after[:, site.head] += maps.shift[i] + evidence[:, None] * maps.slope[i]
    return after


@pytest.mark.parametrize("layer", [0, 1])
def test_the_edit_is_a_vector_and_another_one_times_the_evidence(steering, layer):
    z = activations()
    assert isinstance(steering._editor(layer, z), EvidenceEditor)
    torch.testing.assert_close(steering.edit(z, layer), by_hand(steering, z, layer))
    unsplit = steering._editor(layer, z).apply(z.flatten(1))
    torch.testing.assert_close(unsplit, by_hand(steering, z, layer).flatten(1))
    # Some below the ramp, some on it, some above.
    joint = steering.scores.joint.of_layer(layer, z)(z)
    ramp = (joint - steering.head_maps.start[0]) * steering.head_maps.steepness[0]
    assert (ramp < 0).any() and ((ramp > 0) & (ramp < 1)).any() and (ramp > 1).any()


def test_displacements_agree_with_the_products_and_everything_is_edited(steering):
    z = activations()
    edit = steering.displace(z, 1)
    assert edit.gated.all() and not edit.untrusted.any()
    torch.testing.assert_close(z[:, edit.heads] + edit.displacement, steering.edit(z, 1)[:, edit.heads])


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_decides_as_for_other_maps(steering, gate):
    gated, z = replace(steering, gate=gate), activations()
    edit = gated.displace(z, 1)
    assert torch.equal(edit.gated, make_steering(SHAPE, kind="constant", gate=gate, seed=3).displace(z, 1).gated)
    expected = torch.where(edit.gated[..., None], by_hand(steering, z, 1)[:, edit.heads], z[:, edit.heads])
    torch.testing.assert_close(gated.edit(z, 1)[:, edit.heads], expected)


def test_text_far_away_moves_no_further_than_the_surest(steering):
    far, most = 1e4 * activations(), (steering.head_maps.shift.abs() + steering.head_maps.slope.abs()).amax()
    assert steering.displace(far, 1).displacement.abs().amax() <= most


def test_the_sum_is_rounded_once_in_half_precision(steering):
    z = activations().bfloat16()
    exact = steering.edit(z.float(), 1)
    assert torch.equal(steering.edit(z, 1), exact.bfloat16())


def test_gradients_are_those_of_the_formula(steering):
    z = activations().requires_grad_()
    one, other = (
        torch.autograd.grad(after.square().sum(), z)[0] for after in (steering.edit(z, 1), by_hand(steering, z, 1))
    )
    torch.testing.assert_close(one, other)


def test_it_comes_back_from_disk(steering, tmp_path):
    loaded, z = rl.Steering.load(steering.save(tmp_path / "s")), activations()
    assert torch.equal(loaded.edit(z, 1), steering.edit(z, 1))
    assert loaded.head_maps.kind == "evidence"


def test_strength_choice_and_turns_act_on_both_vectors(steering):
    z = activations()
    moved = steering.displace(z, 1).displacement
    torch.testing.assert_close(steering.scaled(0.3).displace(z, 1).displacement, 0.3 * moved)
    chosen = steering.select([steering.sites[-1]])
    torch.testing.assert_close(chosen.displace(z, 1).displacement, moved[:, -1:])
    parts = [steering.select([site]) for site in reversed(steering.sites)]
    torch.testing.assert_close(joined(parts).edit(z, 1), steering.edit(z, 1))
    turn = torch.randn(len(steering.sites), 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = replace(steering, head_maps=steering.head_maps.transformed(turn))
    of_layer = [i for i, site in enumerate(steering.sites) if site.layer == 1]
    expected = torch.einsum("sij,nsj->nsi", turn[of_layer], moved)
    torch.testing.assert_close(turned.displace(z, 1).displacement, expected)


def test_it_is_no_affine_map(steering, tmp_path):
    with pytest.raises(InvalidArgumentError, match="no affine maps"):
        steering.maps()
    for fold in (steering.fold_into, lambda model: steering.to_lora(tmp_path / "lora", model)):
        with pytest.raises(InvalidArgumentError, match="evidence depends on .* use `steer`"):
            fold(torch.nn.Linear(1, 1))


def test_damaged_files_are_refused(steering, tmp_path):
    maps = replace(steering.head_maps, steepness=-steering.head_maps.steepness)
    with pytest.raises(ArtefactError, match="`map.steepness` must be positive"):
        rl.Steering.load(replace(steering, head_maps=maps).save(tmp_path / "falling"))
    tensors, meta = load_folder(steering.save(tmp_path / "s"), "steering")
    tensors = {name: value for name, value in tensors.items() if "joint" not in name}
    save_folder(tmp_path / "without", "steering", tensors, {name: meta[name] for name in meta if name != "sha256"})
    with pytest.raises(ArtefactError, match="needs joint scores"):
        rl.Steering.load(tmp_path / "without")


def test_it_needs_joint_scores(steering):
    with pytest.raises(InvalidArgumentError, match=r"evidence of its layer needs joint scores .*\(joint=True\)"):
        replace(steering, scores=replace(steering.scores, joint=None))


def test_its_digest_depends_on_joint_scores(steering):
    joint = steering.scores.joint
    other = replace(steering, scores=replace(steering.scores, joint=replace(joint, weights=joint.weights + 1)))
    assert steering_digest(steering) != steering_digest(other)


def test_a_trust_region_holds_under_evidence():
    trusting, z = make_steering(SHAPE, kind="evidence", gate="none", trust=True, seed=3), activations()
    assert type(trusting._editor(1, z)) is LayerEditor
    edit = trusting.displace(z, 1)
    assert edit.untrusted.any() and edit.gated.any()
    assert not edit.displacement[edit.untrusted].any()
