"""Cards and tables of notebooks: escaped, short, and readable."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from radiant_lens.notebook import Fragment, card, head_map, html_table, marked_tokens

HOSTILE = "<script>alert('x')</script> & \"quoted\""


class Reader(HTMLParser):
    """The elements of a page, its texts, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> Reader:
    reader = Reader(page)
    assert not reader.open
    return reader


def test_a_card_has_a_heading_and_its_parts():
    page = read(card("Name", "one", "", Fragment("<em>two</em>")))
    assert page.texts == ["Name", "one", "two"]
    assert page.elements == ["div", "strong", "div", "em"]


@pytest.mark.parametrize(
    "page",
    [
        card(HOSTILE, HOSTILE),
        card("", html_table([{HOSTILE: HOSTILE}] * 2, most=1, note=HOSTILE)),
        card("", head_map([[1.0]], HOSTILE)),
        card("", marked_tokens([HOSTILE], [1.0], HOSTILE)),
    ],
    ids=["card", "table", "head map", "tokens"],
)
def test_texts_of_others_are_escaped(page):
    assert "script" not in read(page).elements
    assert "alert" in "".join(read(page).texts)


def test_a_table_shows_the_first_rows_and_counts_the_others():
    rows = [{"head": f"L0H{i}", "risk": i / 10} for i in range(20)]
    page = read(html_table(rows, most=3, note=", in `.to_dataframe()`"))
    assert page.elements.count("tr") == 4
    assert page.texts[:4] == ["head", "risk", "L0H0", "0"]
    assert page.texts[-1] == "... and 17 more, in `.to_dataframe()`."
    assert "more" not in html_table(rows[:3], most=3)
    assert html_table([]) == ""


def test_cells_are_short_and_numbers_are_rounded():
    page = read(html_table([{"a": 0.123456, "b": float("nan"), "c": "x" * 500, "d": True}]))
    assert page.texts[4:6] == ["0.123", "-"]
    assert len(page.texts[6]) == 120 and page.texts[6].endswith("...")
    assert page.texts[7] == "True"


def test_a_head_map_has_a_cell_for_each_finite_value():
    page = head_map([[0.0, 0.5], [1.0, float("inf")]], "Risk")
    assert page.count("<rect") == 3
    # Darker is more: the largest value is opaque, zero is clear.
    assert 'fill="rgba(0, 114, 178, 1.00)"><title>L1H0 1</title>' in page
    assert 'fill="rgba(0, 114, 178, 0.00)"><title>L0H0 0</title>' in page
    assert "up to 1." in page
    assert head_map([[float("nan")]], "Risk").count("<rect") == 0
    assert "darker is more, up to 1" in page
    assert "darker" not in head_map([[0.0, 1.0]], "Edited heads", graded=False)


def test_a_wide_model_fits_into_the_same_picture():
    page = head_map([[1.0] * 128 for _ in range(64)], "Risk")
    assert 'width="384" height="448"' in page


def test_marked_tokens():
    page = marked_tokens(["a", " b"], [0.0, 2.0], "Edits")
    assert "rgba(0, 114, 178, 0.00)" in page and "rgba(0, 114, 178, 0.60)" in page
    assert read(page).texts == ["a", " b", "Edits."]
    long = read(marked_tokens(["a"] * 500, [0.0] * 500, "Edits"))
    assert long.texts[0] == "... " and long.texts.count("a") == 200
