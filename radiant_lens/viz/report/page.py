"""The page itself: all content in one HTML file."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from radiant_lens.viz import _style as style
from radiant_lens.viz.circuits import bundle
from radiant_lens.viz.report.answers import FILTERS
from radiant_lens.viz.report.glossary import MEANINGS, explain

HERE = files("radiant_lens.viz.report")


def render(**content: Any) -> str:
    """The page of a report, with all scripts and styles that it needs.

    Args:
        content: the values that `page.html.jinja` names; a missing name is an error.
    """
    # Everything but `Markup` is escaped: prompts, answers and names are other people's text and may hold scripts.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": _figure, "explain": explain}
    return environment.from_string(_read("page.html.jinja")).render(
        **content,
        meanings=MEANINGS,
        filters=FILTERS,
        is_figure=lambda drawn: isinstance(drawn, go.Figure),
        fragment=lambda view: Markup(view.fragment()),
        css=Markup(_read("page.css")),
        script=Markup(_read("page.js")),
        plotly=Markup(get_plotlyjs()),
        circuitsvis=Markup(bundle()),
        light=_json(style.LIGHT.to_plotly_json()),
        dark=_json(style.DARK.to_plotly_json()),
    )


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _figure(figure: go.Figure) -> Markup:
    """A figure as JSON, without its template, which the page holds once in light and once in dark."""
    # A copy: the caller may show the figure again.
    bare = go.Figure(figure)
    bare.update_layout(template=None)
    return _safe(str(bare.to_json()))


def _json(value: Any) -> Markup:
    return _safe(str(go.Figure(layout={"template": value}).to_json()))


def _safe(json: str) -> Markup:
    # A "</script>" inside a text would end the script; JSON may write "<" as an escape.
    return Markup(json.replace("<", "\\u003c"))
