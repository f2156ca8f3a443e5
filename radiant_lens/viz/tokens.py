"""Figures of a generation: which heads vote and are edited at which token, and where they look."""

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

NOTHING = "The trace is empty: no token was read while the steering was on."
SYMBOLS = {"votes, gate shut": "circle-open", "edited": "circle", "beyond the trust region, left alone": "x"}


def vote_timeline(
    trace: Trace, tokens: Sequence[str], *, call: int = 0, row: int = 0, max_heads: int = 40
) -> go.Figure:
    """Token by head: who votes, who is edited, and by how much.

    Args:
        trace: from `radiant_lens.steer(model, steering, trace=True)`.
        tokens: of the row, from its first on, such as `model.to_str_tokens(text)`, or those of `trace_answer`.
        call: which prompt batch of the trace.
        row: which row of the batch.
        max_heads: heads shown, those of largest total displacement first.

    Raises:
        RadiantError: nothing was asked to be recorded.
        InvalidArgumentError: fewer tokens than the trace has positions, or no such call or row.

    Example:
        >>> vote_timeline(answer.trace, answer.tokens).show()  # doctest: +SKIP
    """
    _checks.whole("max_heads", max_heads, 1)
    table = _row(trace, tokens, call, row)
    title = "Votes and edits, token by token"
    if table.empty:
        return style.empty(title, NOTHING)
    total: Any = table.groupby("name")["displacement"].sum()
    largest = total.sort_values(ascending=False, kind="stable").index[:max_heads]
    table = table[table["name"].isin(largest)]
    figure = go.Figure(_lengths(table, tokens))
    n_heads, positions = len(largest), sorted({int(p) for p in table["position"]})
    for name, symbol in SYMBOLS.items():
        at = table[table["state"] == name]
        if len(at):
            marker = {"symbol": symbol, "color": style.ORANGE, "size": 9 if n_heads <= 20 else 5, "line": {"width": 2}}
            x, y = at["position"].tolist(), at["name"].tolist()
            figure.add_scatter(x=x, y=y, mode="markers", name=name, marker=marker, hoverinfo="skip", showlegend=True)
    style.legend_below(figure)
    return style.styled(
        figure,
        title,
        note=f"{n_heads} of {len(total)} edited heads. A token's column is what is done while it is read: "
        "it shapes the next one.",
        xaxis={
            "tickmode": "array",
            "tickvals": positions,
            "ticktext": [style.token_label(tokens[p]) for p in positions],
            "tickangle": -60,
            "showgrid": False,
        },
        yaxis={"autorange": "reversed", "showgrid": False, "type": "category"},
        height=max(340, 260 + 22 * n_heads),
    )


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
        colorscale="Blues",
        zmin=0,
        colorbar_title="length",
        hovertemplate="%{y} at %{x} (%{customdata})<br>%{text}<br>displacement %{z:.2f}<extra></extra>",
    )


def _row(trace: Trace, tokens: Sequence[str], call: int, row: int) -> Any:
    table: Any = trace.to_dataframe()
    if table.empty:
        return table
    for name, value in (("call", call), ("row", row)):
        table = table[table[name] == value]
        if table.empty:
            raise InvalidArgumentError(f"The trace has no {name} {value!r}.")
    reached = int(table["position"].max())
    if reached >= len(tokens):
        raise InvalidArgumentError(
            f"`tokens` must be all of the row's, its beginning-of-text token included; got {len(tokens)}, "
            f"and the trace reaches position {reached}."
        )
    states = [_state(*flags) for flags in zip(table["vote"], table["gated"], table["untrusted"])]
    names = [str(HeadSite(*pair)) for pair in zip(table["layer"], table["head"])]
    return table.assign(state=states, name=names)


def _state(vote: bool, gated: bool, untrusted: bool) -> str:
    if untrusted:
        return "beyond the trust region, left alone"
    return "edited" if gated else "votes, gate shut" if vote else "does not vote"


def colored_tokens(
    trace: Trace, tokens: Sequence[str], *, by: str = "votes", call: int = 0, row: int = 0
) -> HtmlView | EmptyView:
    """A row's tokens coloured by the share of the edited heads that vote, or by how far they are moved.

    Args:
        trace: from `radiant_lens.steer(model, steering, trace=True)`.
        tokens: of the row, from its first on.
        by: "votes" (share of the steering's heads that flag the token) or "displacement" (summed over them).
        call: which prompt batch of the trace.
        row: which row of the batch.

    Raises:
        RadiantError: nothing was asked to be recorded.
        InvalidArgumentError: fewer tokens than the trace has positions, no such call or row, another `by`.

    Example:
        >>> colored_tokens(answer.trace, answer.tokens, by="displacement")  # doctest: +SKIP
    """
    _checks.choice("by", by, ("votes", "displacement"))
    table = _row(trace, tokens, call, row)
    if table.empty:
        return EmptyView(NOTHING)
    columns: Any = table.groupby("position")
    values = columns["vote"].mean() if by == "votes" else columns["displacement"].sum()
    every = [round(float(values.get(i, 0.0)), 4) for i in range(len(tokens))]
    # CircuitsVis divides by it.
    largest = 1.0 if by == "votes" else max(*every, 1e-9)
    props = {
        "tokens": [as_text(token if token[:1].isspace() else f" {token}") for token in tokens],
        "values": every,
        "minValue": 0,
        "maxValue": largest,
        "positiveColor": style.BLUE,
        "negativeColor": style.ORANGE,
    }
    what = "share of the edited heads that vote" if by == "votes" else f"displacement of all heads (to {largest:.1f})"
    return HtmlView("ColoredTokens", props, f"Tokens by {what}; those before edits begin are blank.")


def attention(patterns: AttentionPatterns, *, max_heads: int = 12) -> HtmlView | EmptyView:
    """Where the steered heads look, one pattern for each head; click one to enlarge it.

    Args:
        patterns: those of `radiant_lens.trace_answer`.
        max_heads: heads shown, in order; the caption says of how many.

    Raises:
        DataError: weights that are not finite.

    Example:
        >>> attention(answer.patterns)  # doctest: +SKIP
    """
    _checks.whole("max_heads", max_heads, 1)
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
    return HtmlView("AttentionHeads", props, f"Attention of {len(shown)} of {len(patterns.sites)} edited heads.")
