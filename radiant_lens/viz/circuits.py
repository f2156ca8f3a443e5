"""Views of CircuitsVis: no requests to the network, escaped tokens, dark pages, one script for a notebook."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from typing import Any

from radiant_lens.viz._shared_bundle import SharedBundle
from radiant_lens.viz._style import Size

_numbers = count()
_shared = SharedBundle()

# CircuitsVis draws for white paper. On dark pages the view is inverted: white becomes nearly black, the hues stay.
# Notebooks have themes of their own, which may differ from the scheme of the system; their marks decide where they are.
_DARK = "{filter: invert(0.91) hue-rotate(180deg)}"
_DARK_PAGES = ('[data-jp-theme-light="false"]', ".vscode-dark", '[theme="dark"]', '[data-md-color-scheme="slate"]')
_LIGHT_PAGES = ('[data-jp-theme-light="true"]', ".vscode-light", '[theme="light"]', '[data-md-color-scheme="default"]')


def _on(pages: Iterable[str]) -> str:
    return ", ".join(f"{page} .radiant-lens-view" for page in pages)


# The limit of 560 pixels: without it an enlarged pattern grows with its tokens beyond the screen, and shrinks to
# nothing when the window is resized.
_STYLE = f"""<style>
.radiant-lens-view {{background: #ffffff; color: #1b1f24; padding: 0.6em; border-radius: 4px; overflow: auto}}
.radiant-lens-view div[style*="max-width: min(100%"] {{width: 560px !important; max-width: 100% !important}}
@media (prefers-color-scheme: dark) {{.radiant-lens-view {_DARK}}}
{_on(_LIGHT_PAGES)} {{filter: none}}
{_on(_DARK_PAGES)} {_DARK}
</style>"""
_MISSING = "The script of this view is in another cell that is not shown: run this cell again."


@dataclass(frozen=True)
class HtmlView:
    """A view for notebooks, where it displays itself, and for pages.

    Attributes:
        element: name of the CircuitsVis element.
        props: its properties, as JSON.
        caption: text above the view.
        size: largest width and height; larger contents scroll.
    """

    element: str
    props: dict[str, Any]
    caption: str = ""
    size: Size = field(default_factory=Size)
    # Views of one page need different ids, whichever of them are shown.
    number: int = field(default_factory=lambda: next(_numbers))

    def fragment(self) -> str:
        """HTML that needs `bundle()` earlier on the page."""
        name = f"radiant-lens-view-{self.number}"
        # A "</script>" inside a token would end the script; JSON may write "<" as an escape.
        props = json.dumps(self.props, allow_nan=False).replace("<", "\\u003c")
        caption = f"<p>{_escape(self.caption)}</p>" if self.caption else ""
        render = f'CircuitsVis.render("{name}", CircuitsVis.{self.element}, {props})'
        missing = f'document.getElementById("{name}").textContent = {json.dumps(_MISSING)}'
        return (
            f'<div class="radiant-lens-view"{_limits(self.size)}>{caption}<div id="{name}"></div>'
            f"<script>if (window.CircuitsVis) {{{render}}} else {{{missing}}}</script></div>"
        )

    def _repr_html_(self) -> str:
        """The view, with the scripts that it needs unless an earlier cell has brought them; no network."""
        return (bundle() if _shared.is_due() else "") + self.fragment()


def _limits(size: Size) -> str:
    limits = [f"max-{name}: {pixels}px" for name, pixels in size._asdict().items() if pixels is not None]
    return f' style="{"; ".join(limits)}"' if limits else ""


@dataclass(frozen=True)
class EmptyView:
    """Words in the place of a view that has nothing to show."""

    words: str

    def fragment(self) -> str:
        """The words as HTML."""
        return f'<p class="radiant-lens-words">{_escape(self.words)}</p>'

    def _repr_html_(self) -> str:
        return self.fragment()


def bundle() -> str:
    """The script that all views of a page need, once."""
    source = (files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    # Three changes make the bundle safe inside a page:
    # 1. Its strings contain closing tags, which would end the script.
    source = source.replace("</script", "<\\/script")
    # 2. A browser would request the source map.
    source = source.replace("//# sourceMappingURL=iife.js.map", "")
    # 3. Inside the function below, `var` would be local; scripts of other notebook outputs need the name.
    # A bundle of another version may start differently: the tests count this assignment.
    source = source.replace("var CircuitsVis=", "window.CircuitsVis=", 1)
    return f"{_STYLE}<script>window.CircuitsVis||(function(){{{source}}})()</script>"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_text(token: str) -> str:
    """Escape a token for elements that read tokens as HTML, such as `ColoredTokens`."""
    return _escape(token)
