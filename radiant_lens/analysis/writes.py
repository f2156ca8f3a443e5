"""Tokens that an edit promotes: each head's displacement, through its output projection and the unembedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Statement
from radiant_lens.errors import InvalidArgumentError, NothingToEditError
from radiant_lens.models.identity import require_fitting
from radiant_lens.models.lengths import fit_context, long_rule
from radiant_lens.models.tokens import AnswerBatch, answer_batches, answer_rows, pad_token, pass_tokens
from radiant_lens.notebook import card, html_table
from radiant_lens.sites import FINAL_RESIDUAL, HeadSite, hook_name
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class EditWrites:
    """Change of each token's logit along the direct path of the edits, less the mean change of all tokens.

    The displacement goes through the head's output projection, is added to the unsteered run's last residual, and
    goes through the final norm, computed exactly, and the unembedding. The effect through later layers is left out
    (`head_effects` includes it), and so is a cap on the logits.

    Attributes:
        sites: the edited heads.
        tokens: the vocabulary without special tokens.
        by_head: change by one head alone, mean over the positions where it is edited; 0 if it never is.
        total: change by all heads together, mean over the positions where any head is edited.
        n_edits: number of positions where each head is edited.
        n_positions: number of positions where any head is edited.
    """

    sites: tuple[HeadSite, ...]
    tokens: tuple[str, ...]
    by_head: Float[Tensor, "site vocab"]
    total: Float[Tensor, " vocab"]
    n_edits: Int[Tensor, " site"]
    n_positions: int

    def top(self, n: int = 10, site: tuple[int, int] | None = None) -> pd.DataFrame:
        """Return the `n` most promoted and the `n` most demoted tokens with their changes, largest first.

        Args:
            n: at least 1; at most half of the vocabulary is returned.
            site: one head; None for all heads together.
        """
        _checks.whole("n", n, 1)
        if site is not None and site not in self.sites:
            raise InvalidArgumentError(f"`site` must be an edited head, such as {self.sites[0]}; got {tuple(site)}.")
        change = self.total if site is None else self.by_head[self.sites.index(HeadSite(*site))]
        order = change.argsort(descending=True)
        n = min(n, len(order) // 2)
        ends = torch.cat([order[:n], order[len(order) - n :]])
        return pd.DataFrame({"token": [self.tokens[i] for i in ends.tolist()], "change": change[ends].numpy()})

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each token, the most promoted first: its `token`, `change` and each head's change."""
        heads = {str(site): change.numpy() for site, change in zip(self.sites, self.by_head)}
        table = pd.DataFrame({"token": self.tokens, "change": self.total.numpy(), **heads})
        return table.sort_values("change", ascending=False, ignore_index=True)

    def _repr_html_(self) -> str:
        words = f"Change of logits by {len(self.sites)} heads, mean over {self.n_positions} edited positions"
        return card("EditWrites", words, html_table(self.top(4).to_dict("records")))

    def __repr__(self) -> str:
        """The most promoted and the most demoted tokens, in one line."""
        ends = self.top(2)
        changes = ", ".join(f"{token!r} {change:+.2f}" for token, change in zip(ends["token"], ends["change"]))
        return f"EditWrites({len(self.sites)} heads at {self.n_positions} positions: {changes})"


class _Edited(NamedTuple):
    """Positions where some head is edited: the last residual, and the vector that each head's edit adds to it."""

    residual: Float[Tensor, "edited d_model"]
    written: Float[Tensor, "edited site d_model"]
    gated: Bool[Tensor, "edited site"]


def edit_writes(
    model: TransformerBridge,
    data: Dataset | Sequence[Statement],
    steering: Steering,
    *,
    max_positions: int = 256,
    max_tokens: int | None = None,
    seed: int = 0,
    on_long: str | None = None,
) -> EditWrites:
    """Compute which tokens the edits promote and demote directly, on statements read by the unsteered model.

    Args:
        model: from `load_model`.
        data: a data set with statements, or statements; edits begin at the token before the answer.
        steering: from a policy's `fit`.
        max_positions: most edited positions to average over; if there are more, as many are drawn at random.
        max_tokens: tokens in one forward pass, padding included; None: 1024 on the CPU, else 4096.
        seed: of the draw.
        on_long: for texts beyond the model's context: "skip" leaves them out, "cut" ends them where the context ends,
            both with a warning; "error" raises; None for the rule of the data set.

    Raises:
        InvalidArgumentError: the model normalises the output of attention (Gemma 2), or has no final norm.
        NothingToEditError: no position of the data is edited.
        ModelMismatchError: a steering for another model.

    Example:
        >>> edit_writes(model, validation, steering).top(5)  # doctest: +SKIP
    """
    _checks.whole("max_positions", max_positions, 1)
    _checks.seed(seed)
    require_fitting(steering, model)
    _require_direct_path(model, steering)
    statements = data.statements if isinstance(data, Dataset) else tuple(data)
    fitting = fit_context(model, statements, long_rule(data, on_long)).records
    edited = _edited_positions(model, fitting, steering, pass_tokens(model, max_tokens))
    n = len(edited.residual)
    if n == 0:
        raise NothingToEditError(
            "No position of these statements is edited, so there is no change to show: use statements that the gates "
            "pass, such as undesirable ones."
        )
    sample = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:max_positions]
    return _project(model, _Edited(*(rows[sample.to(rows.device)] for rows in edited)), steering)


def _require_direct_path(model: TransformerBridge, steering: Steering) -> None:
    blocks: Any = model.blocks
    # A norm after attention makes a head's contribution depend on all other heads: it is no sum over heads any more.
    normed = [layer for layer in steering.layers if hasattr(blocks[layer], "ln1_post")]
    if normed or FINAL_RESIDUAL not in model.hook_dict:
        reason = "normalises the output of attention" if normed else "has no final norm"
        raise InvalidArgumentError(f"Model {model.cfg.model_name!r} {reason}: there is no direct path to the output.")


def _edited_positions(
    model: TransformerBridge, statements: Sequence[Statement], steering: Steering, max_tokens: int
) -> _Edited:
    empty = torch.zeros(0, len(steering.sites), model.cfg.d_model)
    # The first piece is empty, so that statements without any edit give tensors of the right shape.
    pieces = [_Edited(empty[:, 0], empty, empty[..., 0].bool())]
    rows = list(answer_rows(model, statements))
    for batch in answer_batches(rows, pad_token(model), max_tokens=max_tokens):
        pieces.append(_batch_positions(model, batch, steering))
    return _Edited(*map(torch.cat, zip(*pieces)))


def _batch_positions(model: TransformerBridge, batch: AnswerBatch, steering: Steering) -> _Edited:
    device = model.cfg.device
    captured: dict[str, Tensor] = {}
    names = {layer: hook_name(layer) for layer in steering.hooked_layers}
    hooks = [(name, _capture(captured, name)) for name in (*names.values(), FINAL_RESIDUAL)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(batch.tokens.to(device), attention_mask=batch.mask.long().to(device))
    answer = batch.edited.to(device)
    written, gated = [], []
    blocks: Any = model.blocks
    displace = steering.displacing()
    for layer, name in names.items():
        edit = displace(captured[name], layer)
        if layer not in steering.layers:
            continue
        # One module projects all heads of a layer; each head has its own rows of the weights.
        projection = blocks[layer].attn.W_O[edit.heads].to(edit.displacement)
        # Some architectures scale the output of attention before it is added to the residual.
        scale = getattr(blocks[layer].attn, "_result_contribution_scale", 1.0)
        written.append(torch.einsum("bpsd,sdm->bpsm", edit.displacement, projection) * scale)
        gated.append(edit.gated)
    opened = torch.cat(gated, dim=2) & answer[..., None]
    edited = opened.any(2)
    rows = (captured[FINAL_RESIDUAL][edited].float(), torch.cat(written, dim=2)[edited].float(), opened[edited])
    return _Edited(*(tensor.cpu() for tensor in rows))


def _capture(captured: dict[str, Tensor], name: str) -> HookFunction:
    def capture(value: Tensor, hook: object) -> Tensor:
        captured[name] = value.detach()
        return value

    return capture


def _project(model: TransformerBridge, edited: _Edited, steering: Steering) -> EditWrites:
    plain = _logits(model, edited.residual)
    written = edited.written * edited.gated[..., None]
    changes = []
    for i in range(len(steering.sites)):
        on = edited.gated[:, i]
        # The mean over no position would be NaN; a head that is never edited changes nothing.
        change = _logits(model, edited.residual[on] + written[on, i]) - plain[on] if bool(on.any()) else plain[:1] * 0
        changes.append(change.mean(0))
    total = (_logits(model, edited.residual + written.sum(1)) - plain).mean(0)
    tokenizer: Any = model.tokenizer
    special = set(tokenizer.all_special_ids)
    shown = [i for i in range(total.shape[-1]) if i not in special]
    return EditWrites(
        sites=steering.sites,
        # Ids beyond the tokenizer's own only pad the embedding; they decode to the empty string.
        tokens=tuple(tokenizer.batch_decode([[i] for i in shown])),
        by_head=_centre(torch.stack(changes))[:, shown],
        total=_centre(total)[shown],
        n_edits=edited.gated.sum(0),
        n_positions=len(edited.residual),
    )


def _logits(model: TransformerBridge, residual: Float[Tensor, "edited d_model"]) -> Float[Tensor, "edited vocab"]:
    modules: Any = model
    residual = residual.to(model.cfg.device, modules.unembed.W_U.dtype)
    with torch.no_grad():
        return modules.unembed(modules.ln_final(residual[None]))[0].double().cpu()


def _centre(change: Float[Tensor, "*head vocab"]) -> Float[Tensor, "*head vocab"]:
    # A change of all logits by the same amount leaves every probability as it was.
    return change - change.mean(-1, keepdim=True)
