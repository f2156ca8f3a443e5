"""`HeadCache`: selecting, splitting, shuffling labels, saving."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from radiant_lens import HeadCache
from radiant_lens.errors import ArtefactError, InvalidArgumentError

quick = settings(deadline=None, max_examples=30)


def token_cache(n_texts=12, n_groups=5, seed=0) -> HeadCache:
    """Texts of 1 to 4 tokens; every token has its text's label, which is a function of the text's number."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 5, (n_texts,), generator=generator)
    text_index = torch.arange(n_texts).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(int(n)) for n in lengths])
    z = torch.randn(len(text_index), 2, 3, 4, generator=generator)
    texts = tuple(f"text {i}" for i in range(n_texts))
    names = tuple(f"group {i % n_groups}" for i in range(n_texts))
    return HeadCache(z, (text_index % 3 == 0).long(), text_index, positions, texts, names, {"model": "none"})


def rows(cache):
    """Everything that belongs to each example, comparable across caches."""
    where = cache.text_index.tolist()
    return [
        (cache.texts[t], cache.group_names[t], p, y, tuple(z))
        for t, p, y, z in zip(where, cache.positions.tolist(), cache.labels.tolist(), cache.z.flatten(1).tolist())
    ]


def text_labels(cache):
    return {t: set(cache.labels[cache.text_index == t].tolist()) for t in range(len(cache.texts))}


def test_repr_counts_everything(gaussian_cache):
    cache = gaussian_cache(10)
    assert repr(cache) == "HeadCache(20 examples of 20 texts in 10 groups, 2 layers x 3 heads x 4, 50% undesirable)"
    assert (len(cache), cache.n_layers, cache.n_heads) == (20, 2, 3)


def test_groups_have_equal_codes_where_names_are_equal():
    cache = token_cache()
    names = [cache.group_names[t] for t in cache.text_index.tolist()]
    codes = cache.groups.tolist()
    assert len(codes) == len(cache)
    assert {(a, b) for a, b in zip(names, codes)} == {(f"group {i}", i) for i in range(5)}


# Layers


def test_all_layers_are_collected_unless_meta_names_some(gaussian_cache):
    cache = gaussian_cache(10, n_layers=4)
    assert cache.collected_layers == (0, 1, 2, 3)
    part = replace(cache, meta={**cache.meta, "layers": [3, 1]})
    assert part.collected_layers == (1, 3)
    assert part.select([0, 1]).collected_layers == part.split((0.5, 0.5))[0].collected_layers == (1, 3)


@pytest.mark.parametrize("layers", [[4], [-1], ["1"], 1, [1.0]])
def test_collected_layers_must_be_layers_of_the_cache(layers, gaussian_cache, tmp_path):
    cache = gaussian_cache(10, n_layers=4)
    with pytest.raises(InvalidArgumentError, match=re.escape("`meta['layers']` must")):
        replace(cache, meta={"layers": layers})
    path = cache.save(tmp_path / "cache")
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "meta": {"layers": layers}}))
    with pytest.raises(ArtefactError, match=re.escape("`meta['layers']` must")):
        HeadCache.load(path)


# select


@quick
@given(st.lists(st.integers(0, 20), max_size=15))
def test_select_takes_examples_in_the_given_order(index):
    cache = token_cache()
    chosen = cache.select(index)
    assert rows(chosen) == [rows(cache)[i] for i in index]
    assert set(chosen.texts) == {cache.texts[t] for t in cache.text_index[torch.tensor(index, dtype=torch.long)]}
    assert chosen.meta == cache.meta


def test_select_takes_masks_slices_and_tensors():
    cache = token_cache()
    mask = cache.labels == 1
    expected = [row for row in rows(cache) if row[3] == 1]
    assert rows(cache.select(mask)) == rows(cache.select(mask.nonzero().squeeze(1))) == expected
    assert rows(cache.select(slice(2, 9, 3))) == rows(cache)[2:9:3]
    assert rows(cache.select(slice(2, 9, 3))) != rows(cache)[2:9]


def test_select_of_nothing_is_an_empty_cache():
    empty = token_cache().select(torch.zeros(len(token_cache()), dtype=torch.bool))
    assert len(empty) == 0
    assert empty.texts == ()


def test_select_beyond_the_examples_is_an_error():
    with pytest.raises(IndexError):
        token_cache().select([10_000])


# split


@quick
@given(st.integers(0, 1000))
def test_split_is_a_partition_that_parts_no_group(seed):
    cache = token_cache(n_texts=30, n_groups=9)
    parts = cache.split((0.5, 0.3, 0.2), seed=seed)
    assert sorted(row for part in parts for row in rows(part)) == sorted(rows(cache))
    groups = [set(part.group_names) for part in parts]
    assert [len(g) for g in groups] == [4, 3, 2] or sum(map(len, groups)) == 9
    assert len(set().union(*groups)) == sum(map(len, groups)) == 9


def test_split_follows_its_seed():
    cache = token_cache(n_texts=30, n_groups=9)
    one, same, other = (cache.split((0.5, 0.5), seed=seed)[0].texts for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_a_group_none_of_whose_tokens_was_kept_can_be_split():
    cache = token_cache(n_texts=6, n_groups=3)
    bare = HeadCache(
        cache.z,
        cache.labels,
        cache.text_index,
        cache.positions,
        (*cache.texts, "unread"),
        (*cache.group_names, "unread"),
    )
    parts = bare.split((0.25,) * 4)
    assert sum(map(len, parts)) == len(cache)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.5, 0.2), "`fractions` must be positive and add up to 1"),
        ((0.1,) * 10, "10 parts need as many groups; the data has 5"),
    ],
)
def test_split_refuses(fractions, message):
    with pytest.raises(InvalidArgumentError, match=message):
        token_cache().split(fractions)


# labels


@quick
@given(st.integers(0, 1000))
def test_shuffled_labels_stay_one_for_each_text_and_as_many_of_each_class(seed):
    cache = token_cache()
    before, after = text_labels(cache), text_labels(cache.with_shuffled_labels(seed=seed))
    assert all(len(labels) == 1 for labels in after.values())
    assert sorted(map(sum, after.values())) == sorted(map(sum, before.values()))


def test_shuffled_labels_follow_their_seed_and_say_nothing_of_the_old_ones():
    cache = token_cache(n_texts=600, n_groups=300)
    one, same, other = (cache.with_shuffled_labels(seed=seed).labels for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    first = torch.tensor([int((cache.text_index == t).nonzero()[0]) for t in range(600)])
    assert abs(float(torch.corrcoef(torch.stack([one[first], cache.labels[first]]).double())[0, 1])) < 0.15


def test_with_labels_changes_nothing_else():
    cache = token_cache()
    flipped = cache.with_labels(1 - cache.labels)
    assert torch.equal(flipped.labels, 1 - cache.labels)
    assert flipped.z is cache.z
    assert cache.labels[0] == 1


def test_with_labels_refuses_another_length():
    with pytest.raises(InvalidArgumentError, match="`labels` must have axes `example`"):
        token_cache().with_labels(torch.zeros(3, dtype=torch.long))


# save and load


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_saved_cache_is_loaded_as_it_was(tmp_path, dtype):
    cache = token_cache()
    cache = HeadCache(
        cache.z.to(dtype), cache.labels, cache.text_index, cache.positions, cache.texts, cache.group_names
    )
    loaded = HeadCache.load(cache.save(tmp_path / "cache"))
    assert loaded.z.dtype == dtype
    assert rows(loaded) == rows(cache)
    assert repr(loaded) == repr(cache)


def test_provenance_is_kept(tmp_path):
    assert HeadCache.load(token_cache().save(tmp_path / "cache")).meta == {"model": "none"}


def test_a_loaded_cache_can_be_saved_over_itself(tmp_path):
    path = token_cache().save(tmp_path / "cache")
    HeadCache.load(path).select([0, 1]).save(path)
    HeadCache.load(path).save(path)
    assert rows(HeadCache.load(path)) == rows(token_cache())[:2]


def test_axes_that_are_one_tensor_are_saved_too(tmp_path):
    index = torch.arange(4)
    cache = HeadCache(torch.zeros(4, 1, 1, 2), torch.tensor([0, 1, 0, 1]), index, index, tuple("abcd"), tuple("abcd"))
    assert rows(HeadCache.load(cache.save(tmp_path / "cache"))) == rows(cache)


def test_a_missing_cache_is_an_error(tmp_path):
    with pytest.raises(ArtefactError, match="There is no folder '.*nowhere' with a saved head cache: check the path"):
        HeadCache.load(tmp_path / "nowhere")


def test_an_incomplete_cache_is_an_error(tmp_path):
    path = token_cache().save(tmp_path / "cache")
    meta = json.loads((path / "meta.json").read_text())
    del meta["texts"]
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ArtefactError, match="The saved head cache at .* is incomplete: 'texts'"):
        HeadCache.load(path)


def test_a_cache_whose_parts_do_not_fit_is_an_error(tmp_path):
    path = token_cache().save(tmp_path / "cache")
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "group_names": ["one"]}))
    with pytest.raises(
        ArtefactError, match="is incomplete: `group_names` needs one name for each of the 12 texts; got 1"
    ):
        HeadCache.load(path)


@pytest.mark.parametrize("name", ["z", "labels"])
def test_a_cache_of_other_kinds_of_numbers_is_an_error(tmp_path, name):
    path = token_cache().save(tmp_path / "cache")
    tensors, kind = load_file(path / "tensors.safetensors"), torch.int64 if name == "z" else torch.float32
    save_file({**tensors, name: tensors[name].to(kind)}, path / "tensors.safetensors")
    with pytest.raises(ArtefactError, match=f"is incomplete: `{name}` must not be {kind}"):
        HeadCache.load(path, verify=False)


# construction


@pytest.mark.parametrize("name", ["labels", "text_index", "positions"])
def test_lengths_must_agree(name):
    cache = token_cache()
    parts = {n: getattr(cache, n) for n in ("z", "labels", "text_index", "positions", "texts", "group_names")}
    with pytest.raises(InvalidArgumentError, match=f"`{name}` must have axes `example` of lengths"):
        HeadCache(**{**parts, name: parts[name][:-1]})


@pytest.mark.parametrize("wrong", [-1, 12])
def test_text_indices_must_lie_among_the_texts(wrong):
    cache = token_cache()
    index = cache.text_index.clone()
    index[3] = wrong
    with pytest.raises(InvalidArgumentError, match=r"`text_index` must lie in \[0, 12\)"):
        HeadCache(cache.z, cache.labels, index, cache.positions, cache.texts, cache.group_names)


def test_every_text_needs_a_group():
    cache = token_cache()
    with pytest.raises(InvalidArgumentError, match="`group_names` needs one name for each of the 12 texts; got 11"):
        HeadCache(cache.z, cache.labels, cache.text_index, cache.positions, cache.texts, cache.group_names[1:])
