"""Tables of the command line: no word is broken where there is such a choice."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from radiant_lens.cli import output
from radiant_lens.cli.output import fit_widths, table

ROWS = [
    {
        "steering": "random direction, total covariance",
        "correct, bare": "69% [62%, 75%]",
        "correct, after undesirable": "6% [2%, 15%]",
        "correct, after desirable": "93% [84%, 98%]",
        "other": "33% [29%, 38%] (15% to 53%)",
        "kl": "0.183 [0.155, 0.213] (0.081 to 0.292)",
        "edited share": "95% [87%, 99%]",
    }
]


@pytest.fixture
def printed(monkeypatch):
    def draw(width: int) -> str:
        monkeypatch.setattr(output, "console", Console(width=width))
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(table("Comparison", ROWS))
        return console.export_text()

    return draw


def test_no_word_is_broken_at_80_columns(printed):
    text = printed(80)
    words = {word for key, value in ROWS[0].items() for word in f"{key} {value}".split()}
    assert [word for word in words if word not in text] == []
    assert max(map(len, text.splitlines())) <= 80


def test_words_are_broken_where_they_alone_do_not_fit_and_rows_stay_whole_where_they_do(printed):
    assert "undesirable" not in printed(60)
    assert "random direction, total covariance" in printed(300)


texts = st.lists(
    st.lists(st.text(alphabet="ab ", min_size=1, max_size=30), min_size=1, max_size=4), min_size=1, max_size=5
)


@given(texts, st.integers(1, 120))
def test_widths_hold_every_word_and_fill_the_space(columns, space):
    widths = fit_widths(columns, space)
    wanted = [max(map(len, column)) for column in columns]
    words = [max([len(word) for text in column for word in text.split()] or [1]) for column in columns]
    if None in widths:
        assert set(widths) == {None} and (sum(wanted) <= space or sum(words) > space)
    else:
        assert sum(widths) == space
        assert all(word <= width <= want for word, width, want in zip(words, widths, wanted))
