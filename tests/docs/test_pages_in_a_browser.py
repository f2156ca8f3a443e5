"""Pages in a real browser: they show what they should at two widths, light and dark, and ask no other host."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

# A page, and what a reader must see on it.
PAGES = {
    "": "img[src$='method.svg']",
    "reference/functions/load_model/": ".doc-signature",
    "results/embedded-world/": "table",
    "tutorials/06_the_mathematics/": "math[display=block]",
}


class Quiet(SimpleHTTPRequestHandler):
    """A server that prints nothing."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (700, "dark")])
def test_pages_show_and_ask_no_other_host(browser, address, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((address, "data:")) else complaints.append(r.url))
    page.on("response", lambda r: complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    for path, selector in PAGES.items():
        page.goto(address + path, wait_until="networkidle")
        shown = page.locator(selector).first
        assert shown.is_visible()
        # A wide table scrolls by itself; the page does not.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
    context.close()
    assert complaints == []


def test_the_search_finds_a_name(browser, address):
    page = browser.new_page()
    # The index of all pages is built by the page; a machine may have much else to do.
    page.set_default_timeout(300_000)
    page.goto(address)
    page.locator("input.md-search__input").click()
    # Key by key, as a person types: the page listens for keys that are let go, and a text that is filled in has none.
    page.locator("input.md-search__input").press_sequentially("LeastKLPolicy")
    page.locator(".md-search-result__link").first.wait_for()
    assert "LeastKLPolicy" in page.locator(".md-search-result__list").inner_text()
    page.close()
