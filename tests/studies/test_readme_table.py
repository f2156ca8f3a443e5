"""The documentation's table of all policies against a reduced run of the command that made it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from radiant_lens import studies

PAGE = Path(__file__).parents[2] / ".docs" / "pages" / "results" / "embedded-world.md"
ARMS = ("RADIANT", "ITI", "mean shift")
# One seed and one sample in place of three of each: three standard errors of a share of 65 answers.
SHARES, KL = 0.18, 0.35


def rows(title: str) -> dict[str, dict[str, float]]:
    """Values of a table of the page, by row and column."""
    lines = PAGE.read_text().split(title, 1)[1].strip().split("\n\n")[0].splitlines()
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name: {column: number(cell) for column, cell in zip(head[1:], cells)} for name, *cells in body}


def number(cell: str) -> float:
    match = re.match(r"([\d.]+)(%?)", cell)
    assert match is not None
    return float(match[1]) / (100 if match[2] else 1)


@pytest.fixture(scope="module")
def result():
    (whole,) = studies.ready_studies("policies", data="tiny-facts")
    arms = [arm for arm in whole.arms if arm.name in ARMS]
    return studies.Study("reduced", arms, n_samples=1).run()


def agrees(measured: dict[str, float], printed: dict[str, float]) -> bool:
    shares = [c for c in printed if c.startswith("correct")]
    near = all(abs(measured[c] - printed[c]) <= SHARES for c in shares)
    return near and abs(measured["kl"] - printed["kl"]) <= KL * max(printed["kl"], 0.01)


@pytest.mark.slow
def test_a_reduced_run_agrees_with_the_table(result):
    table = rows("tiny-facts, shares of true answers:")
    measured = {
        row.name: {name.replace("_", " ").replace("/", ", "): m.value for name, m in row.pooled.metrics.items()}
        for row in result.rows
    }
    for name in ("no steering", *ARMS):
        assert agrees(measured[name], table[name]), name
    # The twin: rows differ by more than the tolerance.
    for one in ARMS:
        assert not any(agrees(measured[one], table[other]) for other in table if other != one and other in measured)


def test_the_table_has_every_row_of_its_command():
    for title, data in (("tiny-facts, shares of true answers:", "tiny-facts"), ("three replies is rude:", "tiny-tone")):
        (study,) = studies.ready_studies("policies", data=data)
        assert set(rows(title)) == {cell.row for cell in study.cells()}
