"""`Trace`: what a steering did, token by token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
from jaxtyping import Bool, Int
from torch import Tensor

from radiant_lens.errors import RadiantError
from radiant_lens.steering.editor import LayerEdit


class TraceRecord(NamedTuple):
    """One layer's edit in one pass. `columns` are those of the whole sequence, padding included."""

    call: int
    edit: LayerEdit
    columns: Int[Tensor, " pos"]
    shown: Bool[Tensor, "batch pos"]
    padding: Int[Tensor, " batch"]


@dataclass
class Trace:
    """What a steering did: every vote, gate and displacement at every position where edits may happen.

    Attributes:
        records: one for each layer and pass, in order.
    """

    recording: bool
    records: list[TraceRecord] = field(default_factory=list)

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each sequence, position and edited head.

        Columns: `call` (which prompt batch, from 0), `row`, `position` (in the row's own tokens, padding not
        counted), `layer`, `head`, `vote` (the head flags), `gated` (it is edited), `displacement` (its length),
        `untrusted` (the gate was open, but a trust region left the activation alone).

        Raises:
            RadiantError: nothing was asked to be recorded.
        """
        if not self.recording:
            raise RadiantError("Nothing was recorded: use `steer(model, steering, trace=True)`.")
        columns = ["call", "row", "position", "layer", "head", "vote", "gated", "displacement", "untrusted"]
        frames = [pd.DataFrame(dict(zip(columns, _flat(record)))) for record in self.records]
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
        return table.sort_values(columns[:5], ignore_index=True)


def _flat(record: TraceRecord) -> tuple[Any, ...]:
    row, pos = record.shown.nonzero(as_tuple=True)
    edit, n_heads = record.edit, len(record.edit.heads)
    position = record.columns[pos] - record.padding[row]
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
