"""`Steering`: edits, maps, selection of heads, files, certificates."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain_models import random_steering

import radiant_lens as rl
from radiant_lens.errors import ArtefactError, DataError, InvalidArgumentError, LeakageError, NothingToEditError
from radiant_lens.steering.gates import GATES
from radiant_lens.steering.steering import joined


@pytest.fixture
def fitted(gaussian_cache):
    cache = gaussian_cache(300)
    detector = rl.RiskAwareDetector(joint=True).fit(cache, validation=gaussian_cache(200, seed=1))
    return cache, detector


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("geometry", ["mahalanobis", "wasserstein", "procrustes"])
def test_edit_applies_the_maps_where_the_gate_is_open(fitted, gate, geometry):
    cache, detector = fitted
    steering = rl.RadiantPolicy(gamma=0.1, gate=gate, geometry=geometry, heads="significant").fit(cache, detector)
    scores = steering.joint_scores(cache.z.double())
    assert (scores is not None) == (gate == "joint")
    for layer in steering.layers:
        z = cache.z[:, layer].double()
        handed = None if scores is None else scores[:, [layer]]
        edit, after = steering.displace(z, layer, handed), steering.edit(z, layer, handed)
        flags = torch.einsum("nhd,hd->nh", z, detector.weights_[layer].double()) + detector.biases_[layer] >= 0
        voted = flags.sum(-1) >= detector.vote_thresholds_[layer]
        joint = torch.zeros(len(z))
        for below in range(layer + 1):
            own = (cache.z[:, below].double() * detector.joint_weights_[below]).sum((1, 2))
            joint = own + detector.joint_biases_[below] + detector.joint_carry_[below] * joint
        joint = joint >= 0
        for i, head in enumerate(edit.heads.tolist()):
            expected = {
                "head": flags[:, head],
                "vote": flags[:, head] & voted,
                "layer": voted,
                "joint": joint,
                "none": torch.ones_like(voted),
            }[gate]
            assert torch.equal(edit.gated[:, i], expected)
            mapped = steering.maps()[rl.HeadSite(layer, head)]
            moved = z[:, head] @ mapped.G.T + mapped.g
            torch.testing.assert_close(after[:, head], torch.where(expected[:, None], moved, z[:, head]))
        untouched = [h for h in range(cache.n_heads) if h not in edit.heads.tolist()]
        assert torch.equal(after[:, untouched], z[:, untouched])
        assert not torch.equal(after, z)


def test_saved_and_loaded_steerings_edit_alike(fitted, tmp_path):
    cache, detector = fitted
    for policy in (
        rl.RadiantPolicy(trust=0.9),
        rl.RadiantPolicy(gate="joint"),
        rl.ITIPolicy(),
        rl.AblationPolicy("mean"),
        rl.RadiantPolicy(geometry="procrustes", floor=None),
    ):
        steering = policy.fit(cache, detector)
        loaded = rl.Steering.load(steering.save(tmp_path / "steering"))
        assert loaded.sites == steering.sites
        assert loaded.meta["policy"]["name"] == steering.meta["policy"]["name"]
        assert [c.method for c in loaded.certificates] == [c.method for c in steering.certificates]
        for layer in steering.layers:
            edited = []
            for one in (loaded, steering):
                scores = one.joint_scores(cache.z)
                edited.append(one.edit(cache.z[:, layer], layer, None if scores is None else scores[:, [layer]]))
            assert torch.equal(*edited)


def test_a_trust_region_of_other_heads_is_refused(fitted, tmp_path):
    steering = rl.RadiantPolicy(trust=0.9).fit(*fitted)
    fewer = replace(steering, trust=steering.trust.take(torch.tensor([0])))
    with pytest.raises(ArtefactError, match="mean"):
        rl.Steering.load(fewer.save(tmp_path / "steering"))


def test_a_folder_that_does_not_exist_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtefactError, match=r"no folder 'nope' .*: check the path .*steering.save.*from_pretrained"):
        rl.Steering.load("nope")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"'empty' is not a saved steering"):
        rl.Steering.load("empty")
    with pytest.raises(InvalidArgumentError, match="`path` must be"):
        rl.Steering.load(5)


def test_folders_that_are_not_a_good_steering_are_refused(fitted, tmp_path):
    cache, detector = fitted
    path = rl.RadiantPolicy().fit(cache, detector).save(tmp_path / "steering")
    with pytest.raises(ArtefactError, match="not a saved head cache"):
        rl.HeadCache.load(path)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "sites": [[7, 7]]}))
    with pytest.raises(ArtefactError, match="incomplete"):
        rl.Steering.load(path)
    (path / "tensors.safetensors").write_bytes(b"half")
    with pytest.raises(ArtefactError, match="damaged"):
        rl.Steering.load(path)


def effects(sites, values):
    return SimpleNamespace(sites=tuple(rl.HeadSite(*s) for s in sites), estimated=torch.tensor(values))


def test_select_keeps_the_fewest_heads_with_nine_tenths_of_the_effect(fitted):
    steering = rl.ITIPolicy(n_heads=6).fit(*fitted)
    # Of the positive effects, 10.2 in all, the two largest carry 93% and the largest alone 49%.
    ranked = effects(steering.sites, [0.0, 5.0, -9.0, 4.5, 0.5, 0.2])
    assert steering.select(ranked).sites == tuple(sorted((steering.sites[1], steering.sites[3])))
    assert steering.select(ranked, k=1).sites == (steering.sites[1],)
    assert len(steering.select(ranked, k=3).sites) == 3


def test_groups_that_heads_were_chosen_on_cannot_be_certified_on(fitted, gaussian_cache):
    steering, other = rl.RadiantPolicy().fit(*fitted), gaussian_cache(200, seed=2)
    ranked = effects(steering.sites, list(range(1, len(steering.sites) + 1)))
    assert steering.select(ranked).certify(other).overall.n_groups > 0
    # Groups of the held-out data: as if the effects had been measured on it.
    ranked.group_names = tuple(sorted(set(other.group_names)))[:2]
    chosen = steering.select(ranked, k=2)
    assert set(chosen.meta["seen_groups"]) == {*steering.meta["seen_groups"], *ranked.group_names}
    with pytest.raises(LeakageError, match="must not share groups; 2"):
        chosen.certify(other)
    with pytest.raises(LeakageError):
        chosen.select(chosen.sites[:1]).certify(other)
    # Heads that are named outright were not chosen on these groups, as far as a steering can know.
    assert steering.select(chosen.sites).certify(other).overall.n_groups > 0


def test_effects_of_a_model_name_their_groups(model, experiment):
    steering = rl.RadiantPolicy().fit(experiment.train_cache, experiment.detector)
    data = experiment.test.head(4)
    chosen = steering.select(rl.head_effects(model, data, steering), k=1)
    with pytest.raises(LeakageError, match="the fit and certification must not share groups"):
        chosen.certify(rl.collect(model, data))
    steering.certify(rl.collect(model, data))


def test_heads_may_be_selected_by_name(fitted):
    steering = rl.ITIPolicy(n_heads=4).fit(*fitted)
    first, last = steering.sites[0], steering.sites[-1]
    for heads in (f"{first} {last}", [str(first), last], (first, last)):
        assert steering.select(heads).sites == (first, last)
    assert steering.select(str(last)).sites == (last,)
    with pytest.raises(InvalidArgumentError, match="must be some of the 4 edited heads; got L9H9"):
        steering.select("L9H9")
    with pytest.raises(InvalidArgumentError, match="or names such as 'L0H3 L2H7'; got 'L1'"):
        steering.select("L1")


def test_select_refuses_heads_that_are_not_edited(fitted):
    steering = rl.ITIPolicy(n_heads=2).fit(*fitted)
    with pytest.raises(InvalidArgumentError, match="must be some of the 2 edited heads; got L9H9"):
        steering.select([(9, 9)])
    with pytest.raises(NothingToEditError, match="positive effect"):
        steering.select(effects(steering.sites, [-1.0, 0.0]))
    with pytest.raises(InvalidArgumentError, match="`k` must be"):
        steering.select(effects(steering.sites, [1.0, 1.0]), k=3)


def test_selected_heads_keep_their_maps(fitted):
    cache, detector = fitted
    steering = rl.RadiantPolicy(trust=0.95).fit(cache, detector)
    site = steering.sites[-1]
    selected = steering.select([site])
    assert torch.equal(selected.maps()[site].G, steering.maps()[site].G)
    assert selected.certificates == steering.certificates[-1:]
    z = cache.z[:, site.layer]
    assert torch.equal(selected.edit(z, site.layer)[:, site.head], steering.edit(z, site.layer)[:, site.head])


def test_edit_names_a_wrong_shape(fitted):
    steering = rl.RadiantPolicy().fit(*fitted)
    with pytest.raises(InvalidArgumentError, match=r"ending in \(3, 4\)"):
        steering.edit(torch.zeros(2, 5, 4), 0)
    with pytest.raises(InvalidArgumentError, match="`layer` must be"):
        steering.edit(torch.zeros(2, 3, 4), 2)


def test_certificates_need_held_out_groups(fitted, gaussian_cache):
    cache, detector = fitted
    steering = rl.RadiantPolicy().fit(cache, detector)
    for seen in (cache, gaussian_cache(200, seed=1)):
        with pytest.raises(LeakageError, match="the fit and certification must not share groups"):
            steering.certify(seen)
    assert steering.certify(gaussian_cache(200, seed=2)).overall.n_groups > 0


def test_certificates_are_drawn_by_their_seed(fitted, gaussian_cache):
    steering, cache = rl.RadiantPolicy(gamma=0.3).fit(*fitted), gaussian_cache(200, seed=2)
    plain, same, other = (steering.certify(cache, **options).overall for options in ({}, {"seed": 0}, {"seed": 7}))
    assert plain == same and plain.draw_counts != other.draw_counts
    assert len(plain.draw_counts) == 20 and steering.certify(cache, draws=1).overall.upper == plain.upper
    with pytest.raises(InvalidArgumentError, match="`draws` must be a whole number of at least 1; got 0"):
        steering.certify(cache, draws=0)
    with pytest.raises(InvalidArgumentError, match="`seed` must be"):
        steering.certify(cache, seed=-1)


def test_half_precision_is_edited_in_single_precision(fitted):
    cache, detector = fitted
    steering = rl.RadiantPolicy(gate="none").fit(cache, detector)
    layer = steering.layers[0]
    z = cache.z[:, layer].to(torch.bfloat16)
    assert steering.edit(z, layer).dtype == torch.bfloat16
    torch.testing.assert_close(steering.edit(z, layer).float(), steering.edit(z.float(), layer), rtol=0.02, atol=0.05)


def test_joined_steerings_edit_as_each_does(fitted):
    cache, _ = fitted
    policy = rl.RadiantPolicy(trust=0.95)
    whole = policy.fit(*fitted)
    parts = [whole.select([site]) for site in reversed(whole.sites)]
    assert len(parts) > 1
    again = joined(parts)
    assert again.sites == whole.sites
    assert again.certificates == whole.certificates
    assert again.meta == whole.meta
    for layer in whole.layers:
        assert torch.equal(again.edit(cache.z[:, layer], layer), whole.edit(cache.z[:, layer], layer))
    with pytest.raises(InvalidArgumentError, match="Only steerings of different heads"):
        joined([whole, parts[0]])
    with pytest.raises(InvalidArgumentError, match="same gate, kind of maps"):
        joined([parts[0], rl.ITIPolicy(heads=[(0, 0)]).fit(*fitted)])


@pytest.mark.parametrize("trust", [None, 0.9])
def test_joined_steerings_have_the_meta_data_of_the_first_and_the_groups_of_all(fitted, trust):
    whole = rl.RadiantPolicy(trust=trust).fit(*fitted)
    first, last = (whole.select([site]) for site in (whole.sites[0], whole.sites[-1]))
    first, last = (replace(s, meta={"data": name, "seen_groups": [name]}) for s, name in ((first, "b"), (last, "a")))
    again = joined([last, first, replace(first, sites=(rl.HeadSite(0, 0),), meta={})])
    assert again.meta == {"data": "a", "seen_groups": ["a", "b"]}
    assert (again.trust is None) == (trust is None)
    mixed = replace(first, trust=rl.RadiantPolicy(trust=0.8).fit(*fitted).trust if trust is None else None)
    with pytest.raises(InvalidArgumentError, match="use of a trust region"):
        joined([last, mixed])


def test_a_steering_names_six_of_its_heads_and_its_policy():
    steering = random_steering(1, 7, 2)
    assert repr(steering) == "Steering(random, 7 heads: L0H0, L0H1, L0H2, L0H3, L0H4, L0H5, ...; gate 'head')"
    six = replace(steering.select(steering.sites[:6]), meta={})
    assert repr(six) == "Steering(?, 6 heads: L0H0, L0H1, L0H2, L0H3, L0H4, L0H5; gate 'head')"


def test_hooks_of_other_layers_starts_and_shapes_are_refused():
    steering = random_steering(2, 3, 2)
    for layer in (-1, 2, 3):
        with pytest.raises(InvalidArgumentError, match=rf"`layer` must .* got {layer}"):
            steering.hook(layer)
    with pytest.raises(InvalidArgumentError, match="`start` must be one of 'newest'; got 'oldest'"):
        steering.hooks("oldest")
    with pytest.raises(InvalidArgumentError, match=r"ending in \(3, 2\); got shape \(1, 1, 2, 3\)"):
        steering.hook(1)(torch.zeros(1, 1, 2, 3), None)


def test_heads_may_be_rows_of_a_tensor_or_an_array():
    steering = random_steering(2, 3, 2)
    for heads in (torch.tensor([[1, 2], [0, 1]]), np.array([[1, 2], [0, 1]])):
        assert str(steering.select(heads).sites) == "(HeadSite(layer=0, head=1), HeadSite(layer=1, head=2))"


def test_untrusted_activations_are_counted(fitted, gaussian_cache):
    cache, _ = fitted
    for gate in ("head", "vote"):
        free, bound = (rl.RadiantPolicy(gate=gate, trust=t).fit(*fitted) for t in (None, 0.9))
        layer = bound.layers[0]
        edits = [s.displace(cache.z[:, layer], layer) for s in (free, bound)]
        assert not edits[0].untrusted.any()
        assert edits[1].untrusted.any()
        assert torch.equal(edits[1].untrusted | edits[1].gated, edits[0].gated)
        held_out = gaussian_cache(200, seed=5)
        events = [s.events(held_out) for s in (free, bound)]
        assert torch.equal(events[0].gated, events[1].gated)
        assert int(events[1].still_flagged.sum()) > int(events[0].still_flagged.sum())


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5])
def test_certificates_need_a_confidence_between_0_and_1(fitted, gaussian_cache, confidence):
    steering = rl.RadiantPolicy(gamma=0.1).fit(*fitted)
    with pytest.raises(InvalidArgumentError, match="`confidence` must lie strictly between 0 and 1"):
        steering.certify(gaussian_cache(50, seed=7), confidence=confidence)


@pytest.mark.parametrize("gate", ["head", "none"])
def test_a_hook_edits_the_newest_position_and_records_it(fitted, gate):
    cache, detector = fitted
    steering = rl.RadiantPolicy(gamma=0.1, gate=gate).fit(cache, detector)
    layer, records = steering.layers[0], []
    z = cache.z[:12, layer].view(4, 3, *cache.z.shape[2:])
    recorded = steering.hook(layer, recorder=lambda edit, mask: records.append((edit, mask)))(z, None)
    expected = torch.cat([z[:, :-1], steering.edit(z[:, -1:], layer)], dim=1)
    torch.testing.assert_close(steering.hook(layer)(z, None), expected)
    torch.testing.assert_close(recorded, expected)
    ((edit, mask),) = records
    assert mask is None and edit.gated.shape[:2] == (4, 1)


def test_hooks_edit_each_row_from_its_start_on(fitted):
    cache, detector = fitted
    steering = rl.RadiantPolicy(gamma=0.1, gate="none").fit(cache, detector)
    layer = steering.layers[0]
    z = cache.z[:10, layer].view(2, 5, *cache.z.shape[2:])
    hook = dict(steering.hooks(torch.tensor([1, 4])))[f"blocks.{layer}.attn.hook_z"]
    after, everywhere = hook(z, None), steering.edit(z, layer)
    edited = torch.arange(5) >= torch.tensor([[1], [4]])
    assert torch.equal(after[~edited], z[~edited])
    torch.testing.assert_close(after[edited], everywhere[edited])
    with pytest.raises(InvalidArgumentError, match="one position for each of the 2 rows"):
        dict(steering.hooks(torch.tensor([1, 4, 2])))[f"blocks.{layer}.attn.hook_z"](z, None)


def test_certificates_need_finite_activations(fitted, gaussian_cache):
    held_out = gaussian_cache(60, seed=7)
    held_out.z[2, 1, 0, 3] = float("nan")
    with pytest.raises(DataError, match=r"`cache.z` must be finite; 1 values are not, .* at index \(2, 1, 0, 3\)"):
        rl.RadiantPolicy(gamma=0.1).fit(*fitted).certify(held_out)
