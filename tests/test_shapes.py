"""The shape checker: right shapes pass, wrong shapes raise, and the package is covered by it."""

from __future__ import annotations

import doctest
import importlib
import inspect
import sys

import pytest
import torch
from shape_checker import Finder, ShapeError

from radiant_lens import linalg
from radiant_lens.steering.maps import RankOneMaps

MODULE = '''
from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from jaxtyping import Float, Int
from torch import Tensor


def first(x: Float[Tensor, "row column"], n: int = 1) -> Float[Tensor, " column"]:
    """
    >>> 1 + 1
    2
    """
    if n < 0:
        raise ValueError("n")
    return x[0] if n == 1 else x[0, :n]


def pair(x: Float[Tensor, " a"]) -> tuple[Float[Tensor, " a"], Float[Tensor, " a"] | None]:
    return x, x[1:] if len(x) > 3 else None


def together(xs: Sequence[Float[Tensor, " a"]], named: dict[str, Float[Tensor, " a"]]) -> None:
    pass


def loose(x: Tensor, n: int) -> float:
    return n


@dataclass(frozen=True)
class Line:
    weights: Float[Tensor, "head d"]
    biases: Float[Tensor, " head"]

    @property
    def wrong(self) -> Float[Tensor, " head"]:
        return self.weights

    @classmethod
    def of(cls, weights: Float[Tensor, "head d"]) -> Line:
        return cls(weights, weights[:, 0])
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that is imported under the shape checker."""
    (tmp_path / "made_up.py").write_text(MODULE)
    monkeypatch.setattr(sys, "meta_path", [Finder("made_up"), *sys.meta_path])
    monkeypatch.syspath_prepend(tmp_path)
    # Imported once for each test: the checker reads annotations as the module is loaded.
    yield importlib.import_module("made_up")
    del sys.modules["made_up"]


def test_right_shapes_pass(module):
    assert module.first(torch.ones(2, 3)).shape == (3,)
    assert module.pair(torch.ones(3))[1] is None
    assert module.together([torch.ones(2), torch.zeros(2)], {"x": torch.ones(2)}) is None
    assert module.Line.of(torch.ones(2, 3)).biases.shape == (2,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.first(torch.ones(2, 3), n=2), "first: return is torch.float32[2], not"),
        (lambda m: m.first(torch.ones(2, 3, 4)), "first: x is torch.float32[2, 3, 4], not"),
        (lambda m: m.first(torch.ones(2, 3, dtype=torch.long)), "first: x is torch.int64[2, 3], not"),
        (lambda m: m.pair(torch.ones(4)), "pair: return is"),
        (lambda m: m.together([torch.ones(2), torch.ones(3)], {}), "together: xs is"),
        (lambda m: m.together([torch.ones(2)], {"x": torch.ones(3)}), "together: named is"),
        (lambda m: m.Line(torch.ones(2, 3), torch.ones(3)), "biases is torch.float32[3], not"),
        (lambda m: m.Line.of(torch.ones(2, 3)).wrong, "wrong: return is torch.float32[2, 3], not"),
    ],
)
def test_a_wrong_shape_raises(module, call, message):
    with pytest.raises(ShapeError) as error:
        call(module)
    assert message in str(error.value)


def test_other_annotations_are_not_checked_and_a_functions_own_errors_pass(module):
    # A wrong argument without a shape is left to the function.
    assert module.loose("no tensor", 0.5) == 0.5
    with pytest.raises(ValueError, match="^n$"):
        module.first(torch.ones(2), n=-1)


def test_a_checked_function_keeps_its_examples_and_signature(module):
    names = {test.name for test in doctest.DocTestFinder(exclude_empty=True).find(module)}
    assert "made_up.first" in names
    assert list(inspect.signature(module.first).parameters) == ["x", "n"]
    assert not hasattr(module.loose, "__wrapped__")


def test_the_package_is_checked():
    assert hasattr(linalg.masked_mean, "__wrapped__")
    assert hasattr(RankOneMaps.__init__, "__wrapped__")
    with pytest.raises(ShapeError, match="masked_mean"):
        linalg.masked_mean(torch.ones(2, 3), torch.ones(2))
