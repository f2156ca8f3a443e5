"""Pages in a real browser with the network off: figures draw, hovering and switching work, the console stays empty."""

from __future__ import annotations

from contextlib import contextmanager

import nbformat
import pytest
from notebooks import PLOTLY, code_cells, diagram_cells, notebooks

import radiant_lens as rl


@contextmanager
def opening(browser, folder):
    """What opens a page from a file with the network off; at the end, the console must be empty."""
    messages: list[str] = []
    contexts = []

    def open_page(html: str, *, width: int = 1280, scheme: str = "light"):
        path = folder / "page.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: messages.append(f"error: {error}"))
        local = ("file:", "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(local) else messages.append(f"asked for {r.url}"))
        page.goto(path.as_uri())
        page.wait_for_function("() => [...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []


@pytest.fixture
def opened(browser, tmp_path):
    with opening(browser, tmp_path) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def open_report(browser, tmp_path_factory, full_report):
    """The report, opened once for all tests that do not change it for good, as it takes seconds to draw."""
    with opening(browser, tmp_path_factory.mktemp("report")) as open_page:
        yield open_page(full_report.html)


@pytest.fixture
def report_page(open_report):
    """The report at its top, 1280 wide."""
    open_report.set_viewport_size({"width": 1280, "height": 900})
    open_report.mouse.move(0, 0)
    open_report.evaluate("scrollTo(0, 0)")
    return open_report


CUT_TITLES = """() => [...document.querySelectorAll('.plot')].filter(plot => {
    const title = plot.querySelector('.gtitle');
    return title && title.getBoundingClientRect().right > plot.getBoundingClientRect().right;
}).length"""

MARKS = ".heatmaplayer image, .scatterlayer .trace, .barlayer .point"


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(700, "light", marks=pytest.mark.slow),
        (700, "dark"),
    ],
)
def test_every_figure_draws_something_and_fits(opened, full_report, width, scheme):
    page = opened(full_report.html, width=width, scheme=scheme)
    plots = page.locator(".plot")
    assert plots.count() == 10
    for i in range(plots.count()):
        assert plots.nth(i).locator(MARKS).count() > 0, f"figure {i} is empty"
    views = page.locator(".view")
    assert views.count() == 3
    assert "dupeka" in views.nth(0).inner_text()
    assert views.nth(2).locator("canvas").count() > 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT_TITLES) == 0
    # Plotly writes colours into the SVG, so the scheme must reach its template and not only the style sheet.
    ink = page.locator(".plot .gtitle").first.evaluate("e => getComputedStyle(e).fill")
    assert ink == ("rgb(27, 31, 36)" if scheme == "light" else "rgb(230, 232, 235)")


@pytest.mark.parametrize(("width", "columns"), [(1280, 4), (700, 2), (400, 1)])
def test_the_first_screen_has_four_tiles(report_page, width, columns):
    page = report_page
    page.set_viewport_size({"width": width, "height": 900})
    boxes = [page.locator(".tile").nth(i).bounding_box() for i in range(page.locator(".tile").count())]
    assert len(boxes) == 4
    assert len({round(box["x"]) for box in boxes}) == columns
    assert all(box["y"] + box["height"] < 900 for box in boxes)


def test_a_wide_table_scrolls_inside_the_page_and_says_so(report_page):
    page = report_page
    for width, hinted in ((1280, [False]), (400, [True, True, True])):
        page.set_viewport_size({"width": width, "height": 900})
        hints, wrappers = page.locator(".hint"), page.locator(".scroll")
        assert hints.count() == wrappers.count() == 5
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.wait_for_function("() => document.querySelector('.hint').hidden === (innerWidth > 1000)")
        wider = [wrappers.nth(i).evaluate("e => e.scrollWidth > e.clientWidth") for i in range(5)]
        assert [hints.nth(i).is_visible() for i in range(5)] == wider
        # The answers come first; they fit on a wide screen.
        assert wider[: len(hinted)] == hinted


HIDDEN_LABELS = """() => {
    const boxes = selector => [...document.querySelector('.plot').querySelectorAll(selector)]
        .map(node => node.getBoundingClientRect());
    const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const marks = boxes('.scatterlayer .point');
    return marks.length === 0 || boxes('.xtick text, .ytick text').some(label => marks.some(m => overlap(m, label)));
}"""


def test_a_steering_without_cost_does_not_hide_the_zeros(report_page):
    assert report_page.evaluate(HIDDEN_LABELS) is False


def test_the_roc_is_a_square(report_page):
    # The fifth figure, after the trade-off; its drag area covers exactly the axes.
    box = report_page.locator(".plot").nth(4).locator(".plot-container .nsewdrag").first.bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=2)


def test_hovering_a_head_shows_its_numbers(report_page, experiment, steering):
    page = report_page
    area = page.locator("#figures-1 .plot").first.locator(".nsewdrag").first
    box = area.bounding_box()
    layer, head = steering.sites[0]
    n_layers, n_heads = experiment.detector.head_risk_.shape
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.move(
        box["x"] + box["width"] * (head + 0.5) / n_heads, box["y"] + box["height"] * (layer + 0.5) / n_layers
    )
    hover = page.locator(".plot .hoverlayer .hovertext").first
    hover.wait_for()
    shown = hover.text_content()
    detector = experiment.detector
    assert f"L{layer}H{head}" in shown
    assert f"risk {detector.head_risk_[layer, head]:.2f}" in shown
    assert f"FPR {detector.head_fpr_[layer, head]:.2f}, FNR {detector.head_fnr_[layer, head]:.2f}" in shown
    assert shown.endswith("steered")
    assert not shown.endswith("not steered")


def test_filters_show_the_answers_of_their_kind(report_page):
    page = report_page
    rows, none = page.locator("#answers tbody tr"), page.locator("#none")
    for name in ("changed", "corrected", "broken", "all"):
        button = page.locator(f"button[data-show={name}]")
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert page.locator(".switch [aria-pressed=true]").count() == 1
        kinds = [rows.nth(i).get_attribute("data-filters").split() for i in range(rows.count())]
        assert [rows.nth(i).is_visible() for i in range(rows.count())] == [name in kind for kind in kinds]
        assert none.is_visible() == (not any(name in kind for kind in kinds))


@pytest.mark.parametrize(("width", "is_left"), [(1280, True), (700, False)])
def test_contents_are_on_the_left_where_there_is_room(report_page, width, is_left):
    page = report_page
    page.set_viewport_size({"width": width, "height": 900})
    contents, main = page.locator("nav").bounding_box(), page.locator("main").bounding_box()
    assert (contents["x"] + contents["width"] <= main["x"]) == is_left
    page.locator("nav a", has_text="Settings and versions").click()
    page.wait_for_function("() => document.getElementById('settings').getBoundingClientRect().top < innerHeight")


def test_words_are_explained_where_the_pointer_is(report_page):
    assert "Kullback-Leibler divergence" in report_page.locator(".tile abbr", has_text="KL").first.get_attribute(
        "title"
    )


def test_code_is_selected_or_copied(report_page):
    page = report_page
    button = page.locator(".copy").first
    button.click()
    page.wait_for_function("() => /copied|selected/.test(document.querySelector('.copy').textContent)")


def test_the_page_follows_a_change_of_scheme(report_page):
    ink = "() => getComputedStyle(document.querySelector('.plot .gtitle')).fill === '{}'"
    for scheme, colour in (("dark", "rgb(230, 232, 235)"), ("light", "rgb(27, 31, 36)")):
        report_page.emulate_media(color_scheme=scheme)
        report_page.wait_for_function(ink.format(colour))


def test_text_of_others_is_not_executed(opened, evaluations):
    evil = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    spoiled = {
        n: type(e)(e.table.assign(prompt=evil, answer=evil), *list(vars(e).values())[1:4])
        for n, e in evaluations.items()
    }
    page = opened(rl.report(evaluations=spoiled, title="mine").html)
    assert page.title() == "mine"
    assert evil.split("<img")[1][:8] in page.locator("#answers").inner_text()


def test_outputs_of_a_notebook_draw_without_other_scripts(opened, model, facts, steering, experiment):
    answer = rl.trace_answer(model, "Q : what is the food of dupeka ? A :", steering, stop=facts.stop)
    views = [rl.viz.colored_tokens(answer.trace, answer.tokens), rl.viz.attention(answer.patterns)]
    outputs = [view._repr_html_() for view in views]
    figure = rl.viz.head_risk(experiment.detector, steering).to_html(full_html=False, include_plotlyjs=True)
    page = opened("<!DOCTYPE html><meta charset='utf-8'>" + "\n".join([*outputs, f"<div class='plot'>{figure}</div>"]))
    assert "dupeka" in page.locator(".radiant-lens-view").first.inner_text()
    assert page.locator("canvas").count() > 1
    assert page.locator(MARKS).count() > 0


def test_an_empty_figure_shows_its_reason(opened):
    figure = rl.viz.vote_timeline(rl.Trace(True), []).to_html(full_html=False, include_plotlyjs=True)
    page = opened(f"<!DOCTYPE html><meta charset='utf-8'><div class='plot'>{figure}</div>")
    assert "The trace is empty" in page.locator(".annotation-text").text_content()


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_notebook_exported_to_html_shows_every_figure(opened, path):
    exporter = pytest.importorskip("nbconvert").HTMLExporter(mathjax_url="", require_js_url="")  # both from a network
    html, _ = exporter.from_filename(str(path))
    notebook = nbformat.read(path, as_version=4)
    outputs = [output.data for cell in code_cells(notebook) for output in cell.outputs if "data" in output]
    page = opened(html)
    figures = page.locator("img")
    n_figures = sum(PLOTLY in data for data in outputs)
    assert figures.count() == n_figures + len(diagram_cells(notebook)) and n_figures > 0
    assert all(figures.nth(i).evaluate("e => e.complete && e.naturalWidth > 400") for i in range(figures.count()))
    views = page.locator(".radiant-lens-view")
    assert views.count() == sum("radiant-lens-view" in data.get("text/html", "") for data in outputs)
    assert all(views.nth(i).inner_text().strip() for i in range(views.count()))
