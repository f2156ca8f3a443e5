"""Names of heads and hooks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiant_lens.errors import InvalidArgumentError, UnknownNameError
from radiant_lens.sites import HeadSite, as_sites, checked_sites, hook_name, layer_of


def test_a_site_is_a_pair_with_a_short_name():
    assert HeadSite(2, 5) == (2, 5)
    assert f"{HeadSite(2, 5)}" == str(HeadSite(2, 5)) == "L2H5"
    assert str(HeadSite(5, 2)) != str(HeadSite(2, 5))


@settings(deadline=None)
@given(st.integers(0, 500))
def test_the_layer_is_read_back_from_either_name(layer):
    assert layer_of(hook_name(layer)) == layer
    assert layer_of(f"blocks.{layer}.attn.o.hook_in") == layer


@pytest.mark.parametrize(
    "name",
    ["", "hook_z", "blocks.1.attn.hook_q", "blocks.x.attn.hook_z", "blocks.-1.attn.hook_z", "blocks.1.attn.hook_z.x",
     "a.blocks.1.attn.hook_z", "blocks.1.attn.o.hook_out", "blocks.1.attnxhook_z"],
)  # fmt: skip
def test_other_hooks_are_unknown(name):
    with pytest.raises(UnknownNameError, match=r"is not the name of a head hook; these read 'blocks\.0\.attn\.hook_z'"):
        layer_of(name)


@pytest.mark.parametrize("heads", ["L0H3 L2H7", "L2H7, L0H3", ["L2H7", "L0H3"], ["L0H3", (2, 7)]], ids=str)
def test_heads_may_be_written_as_names(heads):
    assert as_sites(heads) == {(0, 3), (2, 7)} != as_sites("L3H0 L7H2")
    assert checked_sites(heads, n_layers=3, n_heads=8) == ((0, 3), (2, 7))
    with pytest.raises(InvalidArgumentError, match="`layer` must be a whole number between 0 and 1; got 2"):
        checked_sites(heads, n_layers=2, n_heads=8)


@pytest.mark.parametrize("site", [HeadSite(0, 0), HeadSite(12, 345)], ids=str)
def test_the_name_of_a_head_is_read_back(site):
    assert as_sites(str(site)) == {site}


@pytest.mark.parametrize(
    "heads", ["L1", "H1L2", "l1h2", "L1H", "L1H2x", "L-1H2", ["L1H2 L1H3"], [(1,)], [5], 5], ids=str
)
def test_heads_that_are_neither_pairs_nor_names_are_refused(heads):
    with pytest.raises(InvalidArgumentError, match=r"`heads` must be pairs .* or names such as 'L0H3 L2H7'; got"):
        as_sites(heads)


@pytest.mark.parametrize("heads", ["", " , ", [], ()], ids=repr)
def test_no_heads_are_refused(heads):
    with pytest.raises(InvalidArgumentError, match="must name at least one head"):
        as_sites(heads)


def test_heads_are_sorted_and_repetitions_dropped():
    sites = checked_sites([(1, 0), (0, 2), (1, 0), HeadSite(0, 1)], n_layers=2, n_heads=3)
    assert sites == ((0, 1), (0, 2), (1, 0))
    assert all(isinstance(site, HeadSite) for site in sites)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ((2, 0), "`layer` must be a whole number between 0 and 1; got 2."),
        ((-1, 0), "`layer` must be a whole number between 0 and 1; got -1."),
        ((0, 3), "`head` must be a whole number between 0 and 2; got 3."),
        ((0, 1.0), "`head` must be a whole number between 0 and 2; got 1.0."),
    ],
)
def test_heads_outside_the_model_are_refused(head, message):
    with pytest.raises(InvalidArgumentError, match=message):
        checked_sites([(0, 0), head], n_layers=2, n_heads=3)
