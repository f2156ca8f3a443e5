"""Groups of options: one parameter of a command, many options of its help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from radiant_lens.cli.groups import OptionGroup, spread


@dataclass(frozen=True)
class Drink(OptionGroup):
    panel: ClassVar[str] = "What is poured"
    kind: Annotated[str, typer.Option(help="Of leaf.")] = "green"
    cups: Annotated[int, typer.Option(min=1)] = 1


@pytest.fixture
def brew():
    app, calls = typer.Typer(), []

    @app.command()
    @spread
    def command(name: Annotated[str, typer.Argument()], hot: bool = True, *, drink: Drink) -> None:
        """Make a drink."""
        calls.append((drink, name, hot))

    def run(*arguments: str):
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, re.sub(r"\x1b\[[0-9;]*m", "", result.output), calls[-1:]

    return run


def test_options_of_a_group_reach_the_command_as_one_object(brew):
    assert brew("Ann") == (0, "", [(Drink(), "Ann", True)])
    assert brew("Ann", "--kind", "black", "--cups", "3", "--no-hot")[2] == [(Drink("black", 3), "Ann", False)]


def test_the_help_lists_the_options_of_a_group(brew):
    status, out, _ = brew("--help")
    assert status == 0
    assert "--kind" in out and "Of leaf." in out and "Make a drink." in out
    # Under a heading of their own, after the command's other options.
    assert out.index("--hot") < out.index("What is poured") < out.index("--kind")
    assert "--drink" not in out


def test_values_are_checked_as_those_of_other_options(brew):
    status, out, calls = brew("Ann", "--cups", "0")
    assert (status, calls) == (2, [])
    assert "--cups" in out
