"""What the edits write into the output."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from radiant_lens import _checks
from radiant_lens.analysis.writes import EditWrites
from radiant_lens.sites import HeadSite
from radiant_lens.viz import _style as style


def edit_writes(writes: EditWrites, *, n: int = 6, max_heads: int = 7) -> go.Figure:
    """Tokens that the edits promote and demote by themselves, of all heads together and of each.

    Args:
        writes: from `radiant_lens.edit_writes`, whose docstring says what is approximated.
        n: tokens of each kind.
        max_heads: heads shown, those that write most first.

    Raises:
        DataError: changes that are not finite.

    Example:
        >>> edit_writes(rl.edit_writes(model, validation, steering)).show()  # doctest: +SKIP
    """
    _checks.whole("n", n, 1)
    _checks.whole("max_heads", max_heads, 1)
    _checks.finite("writes.total", writes.total)
    _checks.finite("writes.by_head", writes.by_head)
    order = writes.by_head.norm(dim=1).argsort(descending=True, stable=True)[:max_heads].tolist()
    panels: list[HeadSite | None] = [None, *(writes.sites[i] for i in order)]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    edits = dict(zip(writes.sites, writes.n_edits.tolist()))
    titles = ["all heads" if s is None else f"{s}, {edits[s]} edits" for s in panels]
    figure = make_subplots(rows, columns, subplot_titles=titles, vertical_spacing=0.24 / rows, horizontal_spacing=0.22)
    for i, site in enumerate(panels):
        top = writes.top(n, site)
        # Numbers, not names, stand on the axis: two tokens may read the same.
        places, row, col = list(range(len(top))), i // columns + 1, i % columns + 1
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
            col=col,
        )
        figure.update_yaxes(tickmode="array", tickvals=places, ticktext=labels, autorange="reversed", row=row, col=col)
    figure.update_xaxes(title_text="change of the logit", row=rows)
    return style.styled(
        figure,
        "What the edits write: promoted (blue), demoted (orange)",
        note=f"{len(panels) - 1} of {len(writes.sites)} heads, mean over {writes.n_positions} edited positions, direct "
        "path alone: through output projection, exact final norm and unembedding; what later layers make of it is "
        "left out.",
        height=150 + rows * (60 + 34 * n),
    )
