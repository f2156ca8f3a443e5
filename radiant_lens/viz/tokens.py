"""Figures of a generation: the heads that vote and are edited at each token, and their attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from radiant_lens import _checks
from radiant_lens.analysis.traced import AttentionPatterns
from radiant_lens.errors import InvalidArgumentError
from radiant_lens.hooks.trace import Trace
from radiant_lens.sites import HeadSite
from radiant_lens.viz import _style as style
from radiant_lens.viz.circuits import EmptyView, HtmlView, as_text

EMPTY_TRACE = "The trace is empty: no token was read while the steering was on."
SYMBOLS = {"votes, gate shut": "circle-open", "edited": "circle", "beyond the trust region, left alone": "x"}


def vote_timeline(
    trace: Trace,
    tokens: Sequence[str],
    *,
    call: int = 0,
    row: int = 0,
    max_heads: int = 40,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot votes and edits of each head at each token; darker cells are moved further.

    Where nothing was edited, the figure says so in words.

    Args:
        trace: from `radiant_lens.steer(model, steering, trace=True)`.
        tokens: of the row, from its first on, such as `model.to_str_tokens(text)`, or those of `trace_answer`.
        call: index of the prompt batch in the trace.
        row: index of the row in the batch.
        max_heads: heads shown, those of largest total displacement first.
        width, height: in pixels; default the page's width, and as much as the heads need.

    Raises:
        RadiantError: the trace was not recorded.
        InvalidArgumentError: fewer tokens than the trace has positions, no such call or row, another object in the
            place of the trace, or a number out of its range.

    Example:
        >>> vote_timeline(answer.trace, answer.tokens).show()  # doctest: +SKIP
    """
    _checks.whole("max_heads", max_heads, 1)
    size, title = style.Size(width, height), "Votes and edits, token by token"
    table = _table_of_row(trace, tokens, call, row)
    if table.empty:
        return style.empty(title, EMPTY_TRACE, size)
    if not table["displacement"].any():
        return style.empty(title, _nothing_edited(table), size)
    total: Any = table.groupby("name")["displacement"].sum()
    largest = total.sort_values(ascending=False, kind="stable").index[:max_heads]
    table = table[table["name"].isin(largest)]
    n_heads, positions = len(largest), sorted({int(p) for p in table["position"]})
    figure = go.Figure([_lengths(table, tokens), *_marks(table, n_heads)])
    style.legend_below(figure)
    ticks = {"tickmode": "array", "tickvals": positions, "ticktext": [style.token_label(tokens[p]) for p in positions]}
    return style.styled(
        figure,
        title,
        size,
        note=f"{n_heads} of {len(total)} edited heads. A token's column shows the edits made while the token is read: "
        "they shape the next token.",
        xaxis={"title": {"text": "token that is read", "standoff": 24}, **ticks, "tickangle": -60, "showgrid": False},
        yaxis={
            "title": {"text": "head", "standoff": 12},
            "autorange": "reversed",
            "showgrid": False,
            "type": "category",
        },
        height=max(360, 280 + 22 * n_heads),
    )


def _nothing_edited(table: Any) -> str:
    n_heads, n_tokens = table["name"].nunique(), table["position"].nunique()
    votes, untrusted = int(table["vote"].sum()), int(table["untrusted"].sum())
    beyond = f" {untrusted} activations lie beyond the trust region and were left alone." if untrusted else ""
    return f"Nothing was edited: {n_heads} heads read {n_tokens} tokens and voted {votes} times.{beyond}"


def _lengths(table: Any, tokens: Sequence[str]) -> go.Heatmap:
    heads: Any = list(dict.fromkeys(table.sort_values(["layer", "head"])["name"]))
    cells: Any = table.pivot(index="name", columns="position", values=["displacement", "state"]).loc[heads]
    grid, states = cells["displacement"].astype(float), cells["state"]
    positions: list[int] = grid.columns.tolist()
    return go.Heatmap(
        z=grid.to_numpy().tolist(),
        x=positions,
        y=heads,
        text=states.to_numpy().tolist(),
        customdata=[[style.token_label(tokens[p]) for p in positions]] * len(heads),
        colorscale=style.SEQUENTIAL,
        # Plotly ignores `zmin` unless `zmax` is set as well.
        zmin=0,
        zmax=float(table["displacement"].max()),
        colorbar_title="length of<br>the move",
        hovertemplate="%{y} at %{x} (%{customdata})<br>%{text}<br>displacement %{z:.2f}<extra></extra>",
    )


def _marks(table: Any, n_heads: int) -> list[go.Scatter]:
    """Symbols for each state but "does not vote", which leaves the cell plain."""
    traces: list[go.Scatter] = []
    for name, symbol in SYMBOLS.items():
        rows = table[table["state"] == name]
        if len(rows):
            marker = {"symbol": symbol, "color": style.ORANGE, "size": 9 if n_heads <= 20 else 5, "line": {"width": 2}}
            x, y = rows["position"].tolist(), rows["name"].tolist()
            traces.append(
                go.Scatter(x=x, y=y, mode="markers", name=name, marker=marker, hoverinfo="skip", showlegend=True)
            )
    return traces


def _table_of_row(trace: Trace, tokens: Sequence[str], call: int, row: int) -> Any:
    _checks.instance("trace", trace, Trace, hint="of a traced answer, pass `answer.trace`")
    table: Any = trace.to_dataframe()
    if table.empty:
        return table
    for name, value in (("call", call), ("row", row)):
        table = table[table[name] == value]
        if table.empty:
            raise InvalidArgumentError(f"The trace has no {name} {value!r}.")
    # Labels would silently shift by one where the caller left out the beginning-of-text token.
    last = int(table["position"].max())
    if last >= len(tokens):
        raise InvalidArgumentError(
            f"`tokens` must be all tokens of the row, its beginning-of-text token included; got {len(tokens)}, "
            f"and the trace reaches position {last}."
        )
    states = [_state(*flags) for flags in zip(table["vote"], table["gated"], table["untrusted"])]
    names = [str(HeadSite(*pair)) for pair in zip(table["layer"], table["head"])]
    return table.assign(state=states, name=names)


def _state(vote: bool, gated: bool, untrusted: bool) -> str:
    if untrusted:
        return "beyond the trust region, left alone"
    return "edited" if gated else "votes, gate shut" if vote else "does not vote"


def colored_tokens(
    trace: Trace,
    tokens: Sequence[str],
    *,
    by: str = "votes",
    call: int = 0,
    row: int = 0,
    width: int | None = None,
    height: int | None = None,
) -> HtmlView | EmptyView:
    """Show a row's tokens, darker where more of the edited heads vote or where they are moved further.

    Where no head votes, or nothing was edited, the view says so in words.

    Args:
        trace: from `radiant_lens.steer(model, steering, trace=True)`.
        tokens: of the row, from its first on.
        by: "votes" (share of the steering's heads that flag the token) or "displacement" (summed over them).
        call: index of the prompt batch in the trace.
        row: index of the row in the batch.
        width, height: largest, in pixels, larger contents scroll; default the page's width, and as much as they need.

    Raises:
        RadiantError: the trace was not recorded.
        InvalidArgumentError: fewer tokens than the trace has positions, no such call or row, another `by`, another
            object in the place of the trace, or a size below 100 pixels.

    Example:
        >>> colored_tokens(answer.trace, answer.tokens, by="displacement")  # doctest: +SKIP
    """
    size = style.Size(width, height)
    size.check()
    _checks.choice("by", by, ("votes", "displacement"))
    table = _table_of_row(trace, tokens, call, row)
    if table.empty:
        return EmptyView(EMPTY_TRACE)
    columns: Any = table.groupby("position")
    values = columns["vote"].mean() if by == "votes" else columns["displacement"].sum()
    if not values.any():
        return EmptyView("No edited head votes at any token." if by == "votes" else _nothing_edited(table))
    # Positions before the edits begin are not in the table.
    every = [round(float(values.get(i, 0.0)), 4) for i in range(len(tokens))]
    largest = 1.0 if by == "votes" else max(*every, 1e-9)
    props = {
        "tokens": [as_text(token if token[:1].isspace() else f" {token}") for token in tokens],
        "values": every,
        "minValue": 0,
        # CircuitsVis divides by it; rounding may have made the largest value 0.
        "maxValue": largest,
        "positiveColor": style.BLUE,
        "negativeColor": style.ORANGE,
    }
    quantity = (
        "share of the edited heads that vote" if by == "votes" else f"displacement of all heads (to {largest:.1f})"
    )
    return HtmlView("ColoredTokens", props, f"Tokens by {quantity}; those before edits begin are blank.", size)


def attention(
    patterns: AttentionPatterns, *, max_heads: int = 12, width: int | None = None, height: int | None = None
) -> HtmlView | EmptyView:
    """Show the attention pattern of each steered head; click a pattern to enlarge it.

    Args:
        patterns: those of `radiant_lens.trace_answer`.
        max_heads: heads shown, in order; the caption gives the number of all heads.
        width, height: largest, in pixels, larger contents scroll; default the page's width, and as much as they need.

    Raises:
        InvalidArgumentError: another object in the place of the patterns, `max_heads` below 1, or a size below 100
            pixels.
        DataError: weights that are not finite.

    Example:
        >>> attention(answer.patterns)  # doctest: +SKIP
    """
    _checks.whole("max_heads", max_heads, 1)
    size = style.Size(width, height)
    size.check()
    _checks.instance("patterns", patterns, AttentionPatterns, hint="of a traced answer, pass `answer.patterns`")
    _checks.finite("patterns.weights", patterns.weights)
    if not patterns.sites or not patterns.tokens:
        return EmptyView("No head is edited, or there is no token: there is no attention pattern to show.")
    shown = patterns.sites[:max_heads]
    props = {
        "attention": [[[round(w, 3) for w in r] for r in m] for m in patterns.weights[: len(shown)].tolist()],
        "tokens": list(patterns.tokens),
        "attentionHeadNames": [str(site) for site in shown],
        "minValue": 0,
        "maxValue": 1,
        "positiveColor": style.BLUE,
        "negativeColor": style.ORANGE,
    }
    caption = f"Attention of {len(shown)} of {len(patterns.sites)} edited heads."
    return HtmlView("AttentionHeads", props, caption, size)
