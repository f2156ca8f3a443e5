"""Views of CircuitsVis, without its requests to the network, and with escaped tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from typing import Any

_numbers = count()

# Without these limits an enlarged pattern grows with its tokens beyond the screen, and shrinks to nothing when the
# window is resized.
_STYLE = (
    '<style>.radiant-lens-view div[style*="max-width: min(100%"]'
    "{width: 560px !important; max-width: 100% !important}</style>"
)


@dataclass(frozen=True)
class HtmlView:
    """A view for notebooks, where it displays itself, and for pages.

    Attributes:
        element: name of the CircuitsVis element.
        props: its properties, as JSON.
        caption: text above the view.
    """

    element: str
    props: dict[str, Any]
    caption: str = ""
    # Views of one page need different ids, whichever of them are shown.
    number: int = field(default_factory=lambda: next(_numbers))

    def fragment(self) -> str:
        """HTML that needs `bundle()` earlier on the page."""
        name = f"radiant-lens-view-{self.number}"
        # A "</script>" inside a token would end the script; JSON may write "<" as an escape.
        props = json.dumps(self.props, allow_nan=False).replace("<", "\\u003c")
        caption = f"<p>{_escape(self.caption)}</p>" if self.caption else ""
        return (
            f'<div class="radiant-lens-view">{caption}<div id="{name}"></div>'
            f'<script>CircuitsVis.render("{name}", CircuitsVis.{self.element}, {props})</script></div>'
        )

    def _repr_html_(self) -> str:
        """The view with all scripts that it needs; no network."""
        return bundle() + self.fragment()


@dataclass(frozen=True)
class EmptyView:
    """Words in the place of a view that has nothing to show."""

    words: str

    def fragment(self) -> str:
        """The words as HTML."""
        return f'<p class="radiant-lens-view">{_escape(self.words)}</p>'

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
