"""Errors that typer finds name the value that was given."""

from __future__ import annotations

import pytest

from radiant_lens.cli.usage import given_value


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("collect --seed x", "'x'"),
        ("fit --out a --seed=1.5", "'1.5'"),
        ("evaluate --temperature warm", "'warm'"),
        ("fit --out a --threshold high", "'high'"),
        ("bench --test-groups 0", "'0'"),
    ],
)
def test_the_value_is_named(line, value, command_line):
    status, _, err = command_line(*line.split())
    assert status == 2
    assert value in err
    assert "--" + line.split("--")[-1].split("=")[0].split()[0] in err


def test_of_several_values_the_last_counts():
    assert given_value(["--seed", "-s"], ["fit", "--seed", "1", "-s", "x"]) == "x"
    assert given_value(["--seed"], ["fit", "--seed"]) is None
    assert given_value(["--seed"], ["fit"]) is None
