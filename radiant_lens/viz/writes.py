"""Figure of the tokens that the edits promote and demote."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from radiant_lens import _checks
from radiant_lens.analysis.writes import EditWrites
from radiant_lens.sites import HeadSite
from radiant_lens.viz import _style as style


def edit_writes(
    writes: EditWrites,
    *,
    n: int = 6,
    max_heads: int = 7,
    width: int | None = None,
    height: int | None = None,
) -> go.Figure:
    """Plot the tokens that the edits promote and demote by themselves, for all heads together and for each.

    Heads that are edited at no position are left out; where nothing was edited, the figure says so in words.

    Args:
        writes: from `radiant_lens.edit_writes`, whose docstring says what is approximated.
        n: tokens of each kind.
        max_heads: heads shown, those that write most first.
        width, height: in pixels; default the page's width, and as much as the heads need.

    Raises:
        InvalidArgumentError: another object in the place of the writes, or a number out of its range.
        DataError: changes that are not finite.

    Example:
        >>> edit_writes(rl.edit_writes(model, validation, steering)).show()  # doctest: +SKIP
    """
    _checks.instance("writes", writes, EditWrites, hint="`radiant_lens.edit_writes` returns them")
    _checks.whole("n", n, 1)
    _checks.whole("max_heads", max_heads, 1)
    _checks.finite("writes.total", writes.total)
    _checks.finite("writes.by_head", writes.by_head)
    edits = dict(zip(writes.sites, writes.n_edits.tolist()))
    # By the length of the change over the whole vocabulary, not by the largest token alone.
    order = writes.by_head.norm(dim=1).argsort(descending=True, stable=True).tolist()
    active = [writes.sites[i] for i in order if edits[writes.sites[i]]]
    title, size = "What the edits write: promoted (blue), demoted (orange)", style.Size(width, height)
    if not active:
        words = f"Nothing was edited: none of the {len(writes.sites)} heads is edited at any position."
        return style.empty(title, words, size)
    panels: list[HeadSite | None] = [None, *active[:max_heads]]
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=["all heads" if site is None else f"{site}, {edits[site]} edits" for site in panels],
        vertical_spacing=0.24 / n_rows,
        horizontal_spacing=0.22,
    )
    for i, site in enumerate(panels):
        _add_panel(figure, writes, site, n, row=i // n_columns + 1, column=i % n_columns + 1)
    # The last panel of a column has the title; the second column may end one row above the first.
    for i in range(max(0, len(panels) - n_columns), len(panels)):
        figure.update_xaxes(title_text="change of the logit", row=i // n_columns + 1, col=i % n_columns + 1)
    return style.styled(
        figure,
        title,
        size,
        note=_note(writes, len(panels) - 1, len(active)),
        height=150 + n_rows * (60 + 34 * n),
    )


def _add_panel(figure: go.Figure, writes: EditWrites, site: HeadSite | None, n: int, *, row: int, column: int) -> None:
    top = writes.top(n, site)
    # Bars stand at numbers and names are tick labels: two tokens may read the same, and would share one bar.
    places = list(range(len(top)))
    labels = [style.token_label(token) for token in top["token"]]
    figure.add_bar(
        x=top["change"].round(4).tolist(),
        y=places,
        orientation="h",
        marker_color=[style.BLUE if change > 0 else style.ORANGE for change in top["change"]],
        text=labels,
        textposition="none",
        hovertemplate="%{text}: logit %{x:+.3f}<extra></extra>",
        showlegend=False,
        row=row,
        col=column,
    )
    figure.update_yaxes(tickmode="array", tickvals=places, ticktext=labels, autorange="reversed", row=row, col=column)


def _note(writes: EditWrites, n_shown: int, n_active: int) -> str:
    idle = len(writes.sites) - n_active
    left_out = f" {idle} {'head is' if idle == 1 else 'heads are'} edited at no position." if idle else ""
    return (
        f"{n_shown} of {len(writes.sites)} heads, mean over {writes.n_positions} edited positions, direct path alone: "
        "through output projection, exact final norm and unembedding; what later layers make of it is left out."
        f"{left_out}"
    )
