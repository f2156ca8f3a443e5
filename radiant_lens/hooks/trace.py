"""`Trace`: a record of the edits of a steering, token by token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
from jaxtyping import Bool, Int
from torch import Tensor

from radiant_lens.errors import RadiantError
from radiant_lens.notebook import card, html_table
from radiant_lens.steering.editor import LayerEdit


class TraceRecord(NamedTuple):
    """The edit of one layer in one pass.

    Attributes:
        call: number of the prompt or turn.
        edit: at every position of the pass.
        columns: of those positions in the whole sequence, padding and cached tokens counted.
        shown: positions that are part of the trace.
        padding: columns of padding before the first token of each row.
    """

    call: int
    edit: LayerEdit
    columns: Int[Tensor, " pos"]
    shown: Bool[Tensor, "batch pos"]
    padding: Int[Tensor, " batch"]


@dataclass
class Trace:
    """Every vote, gate and displacement at every position where edits may happen.

    Attributes:
        recording: whether `steer` was called with `trace=True`.
        records: one for each layer and pass, in order.
    """

    recording: bool
    records: list[TraceRecord] = field(default_factory=list)

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each sequence, position and edited head.

        Columns: `call` (number of the batch of prompts, or of the turn of a chat on one cache, from 0), `row`,
        `position` (in the row's own tokens, padding not counted), `layer`, `head`, `vote` (the head flags), `gated` (it
        is edited), `displacement` (its length), `untrusted` (the gate was open, but the activation lies outside the
        trust region and was left alone).

        Raises:
            RadiantError: `steer` was called without `trace=True`.
        """
        if not self.recording:
            raise RadiantError("Nothing was recorded: use `steer(model, steering, trace=True)`.")
        columns = ["call", "row", "position", "layer", "head", "vote", "gated", "displacement", "untrusted"]
        frames = [pd.DataFrame(dict(zip(columns, _flatten(record)))) for record in self.records]
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
        return table.sort_values(columns[:5], ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """Return one row for each head: positions, votes, edits, and the mean length of an edit."""
        table = self.to_dataframe()
        edited = table.assign(displacement=table["displacement"].where(table["gated"].astype(bool)))
        heads = edited.groupby(["layer", "head"], as_index=False)
        return heads.agg(
            positions=("vote", "size"), votes=("vote", "sum"), edits=("gated", "sum"), length=("displacement", "mean")
        )

    def __repr__(self) -> str:
        """Numbers of passes, heads and edits, in one line."""
        if not self.recording:
            return "Trace(not recorded; use `steer(model, steering, trace=True)`)"
        summary = self.summary()
        return f"Trace({len(self.records)} layer passes, {len(summary)} heads, {int(summary['edits'].sum())} edits)"

    def _repr_html_(self) -> str:
        rows = self.summary().sort_values("edits", ascending=False).to_dict("records") if self.recording else []
        return card("Trace", repr(self), html_table(rows, note=", in `.to_dataframe()`"))


def _flatten(record: TraceRecord) -> tuple[Any, ...]:
    """The columns of the table for one record."""
    row, pos = record.shown.nonzero(as_tuple=True)
    edit, n_heads = record.edit, len(record.edit.heads)
    position = record.columns[pos] - record.padding[row]
    # Row by row, and within a row head by head: as the flattened values of `edit` are ordered.
    return (
        record.call,
        row.repeat_interleave(n_heads).numpy(),
        position.repeat_interleave(n_heads).numpy(),
        edit.layer,
        edit.heads.repeat(len(row)).numpy(),
        edit.flagged[row, pos].flatten().numpy(),
        edit.gated[row, pos].flatten().numpy(),
        edit.displacement[row, pos].norm(dim=-1).flatten().numpy(),
        edit.untrusted[row, pos].flatten().numpy(),
    )
