"""A table of mistakes: each raises its error, which names the value and the remedy, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from bad_input.bad_files import read_files

import radiant_lens as rl

STATEMENTS = (rl.Statement("Q : what ? A : the soup .", 0, "a", 15), rl.Statement("the soup is awful .", 1, "b"))
SOUP = rl.Dataset("soup", STATEMENTS, (rl.Prompt("Q : what ? A :", ("soup",), ("stew",), "c"),))


class Wrong(NamedTuple):
    """A mistake (`w` holds good objects to make it with), the class of its error, and words of the message."""

    name: str
    do: Callable[[Any], object]
    error: type[Exception]
    message: str


def assert_refused(wrong: Wrong, w: Any) -> None:
    before = read_files(w.place)
    with pytest.raises(wrong.error) as raised:
        wrong.do(w)
    assert raised.type is wrong.error
    assert wrong.message in str(raised.value)
    assert read_files(w.place) == before


def each(table: list[Wrong]):
    return pytest.mark.parametrize("wrong", table, ids=[row.name for row in table])


def pass_through(w: Any, name: str, function: Any) -> object:
    return w.model.run_with_hooks(w.model.to_tokens("the soup"), fwd_hooks=[(name, function)])
