"""A layer that holds several steerings edits each row as the steering of this row does alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from serving.steerings import KINDS, make_steering

from radiant_lens.serving.batched_editor import HeadShard, make_batched_editor
from radiant_lens.steering.gates import GATES
from radiant_lens.steering.steering import Steering

SHAPE = (2, 6, 8)


def activations(n: int = 64, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, SHAPE[1] * SHAPE[2], generator=generator, dtype=torch.float64).to(dtype)


def expected(
    steerings: list[Steering], z: torch.Tensor, steering: torch.Tensor, strength: torch.Tensor
) -> torch.Tensor:
    """Row by row, with `Steering.edit`."""
    rows = []
    for row, number, factor in zip(z, steering.tolist(), strength.tolist()):
        split = row.reshape(1, *SHAPE[1:])
        rows.append(steerings[number].scaled(factor).edit(split, 1).flatten() if number >= 0 else row)
    return torch.stack(rows)


def mixed() -> list[Steering]:
    made = [
        make_steering(SHAPE, kind=kind, gate=gate, seed=i)
        for i, (kind, gate) in enumerate(zip(KINDS, (*GATES, "none"), strict=True))
    ]
    return [
        *made,
        # Needs votes and a joint score.
        make_steering(SHAPE, kind="evidence", gate="layer", seed=6),
        make_steering(SHAPE, kind=KINDS[0], gate="vote", seed=7),
        make_steering(SHAPE, kind="rank_one", gate="joint", seed=8),
        make_steering(SHAPE, kind="rank_one", trust=True, seed=9),
        make_steering(SHAPE, sites="L0H0", seed=10),
    ]


def test_each_row_is_edited_by_its_own_steering():
    steerings, z = mixed(), activations()
    editor = make_batched_editor(steerings, 1, like=z)
    steering = torch.arange(len(z)) % (len(steerings) + 1) - 1
    strength = torch.where(steering == KINDS.index("resample"), 1.0, 0.25 + torch.arange(len(z)) / len(z))
    edited, is_open, _ = editor.apply(z, steering, strength.double())
    torch.testing.assert_close(edited, expected(steerings, z, steering, strength.double()))
    changed = (edited != z).any(1)
    assert not changed[steering == -1].any()
    assert torch.equal(changed, is_open.any(1))
    assert changed.float().mean() > 0.4
    with pytest.raises(AssertionError):
        others = torch.where(steering == 0, 1, steering)
        torch.testing.assert_close(edited, expected(steerings, z, others, strength.double()))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_gate_and_map_alone(kind, gate):
    steering, z = make_steering(SHAPE, kind=kind, gate=gate), activations(seed=1)
    editor = make_batched_editor([steering], 1, like=z)
    edited, _, _ = editor.apply(z, torch.zeros(len(z), dtype=torch.long), torch.ones(len(z)))
    torch.testing.assert_close(edited, steering.edit(z.unflatten(1, SHAPE[1:]), 1).flatten(1))
    assert not torch.equal(edited, z)


def test_joint_scores_are_handed_from_layer_to_layer():
    steerings = [
        make_steering(SHAPE, kind="evidence", gate="none", seed=1, hands_over=True),
        make_steering(SHAPE, gate="head", seed=2),
        make_steering(SHAPE, gate="joint", seed=3, sites="L1H0 L1H3", hands_over=True),
        # As before scores were handed over.
        make_steering(SHAPE, gate="joint", seed=4),
    ]
    layers = [activations(seed=seed) for seed in (5, 6)]
    steering, strength = torch.arange(64) % 4, torch.ones(64, dtype=torch.float64)
    # What another pass left there.
    running = torch.full((64, 4), torch.nan, dtype=torch.float64)
    for layer, z in enumerate(layers):
        editor = make_batched_editor(steerings, layer, like=z)
        edited, _, _ = editor.apply(z, steering, strength, running)
        split = z.unflatten(1, SHAPE[1:])
        every = torch.stack([of_layer.unflatten(1, SHAPE[1:]) for of_layer in layers], dim=1)
        for number, one in enumerate(steerings):
            rows, scores = steering == number, one.joint_scores(every)
            joint = None if scores is None else scores[rows][:, [layer]]
            torch.testing.assert_close(edited[rows], one.edit(split[rows], layer, joint).flatten(1))
    alone = replace(steerings[0], scores=steerings[3].scores)
    assert not torch.allclose(edited[steering == 0], alone.edit(split[steering == 0], 1).flatten(1))


def test_shards_with_summed_votes_give_what_one_process_gives():
    steerings, z = mixed(), activations(seed=2)
    steering, strength = torch.arange(len(z)) % len(steerings), torch.ones(len(z))
    whole, _, _ = make_batched_editor(steerings, 1, like=z).apply(z, steering, strength)

    def in_shards(reduce_votes: bool) -> torch.Tensor:
        # First every rank's ballots are recorded, then each rank runs with their sum.
        shards, votes = [HeadShard(0, 3), HeadShard(3, 3)], []
        halves = z.split(3 * SHAPE[2], dim=1)

        def record(own: torch.Tensor) -> torch.Tensor:
            votes.append(own)
            return own

        for shard, half in zip(shards, halves):
            make_batched_editor(steerings, 1, like=z, shard=shard, reduce=record).apply(half, steering, strength)
        reduce = (lambda own: sum(votes)) if reduce_votes else (lambda own: own)
        made = [make_batched_editor(steerings, 1, like=z, shard=shard, reduce=reduce) for shard in shards]
        return torch.cat([e.apply(half, steering, strength)[0] for e, half in zip(made, halves)], dim=1)

    torch.testing.assert_close(in_shards(reduce_votes=True), whole)
    assert not torch.allclose(in_shards(reduce_votes=False), whole)


def test_rows_of_other_steerings_keep_every_bit_and_nan_stays_in_its_row():
    steering = make_steering(SHAPE, gate="none")
    z = activations(8, torch.bfloat16)
    z[0] = torch.nan
    numbers = torch.tensor([-1] * 4 + [0] * 4)
    edited, _, _ = make_batched_editor([steering], 1, like=z).apply(z, numbers, torch.ones(8))
    assert torch.equal(edited[1:4], z[1:4]) and edited.dtype == torch.bfloat16
    assert edited[1:].isfinite().all() and not torch.equal(edited[4:], z[4:])


def test_a_layer_that_nobody_edits_has_no_editor():
    assert make_batched_editor([make_steering(SHAPE, sites="L0H0")], 1, like=activations()) is None
