"""What an edit writes into the output: each head's displacement, through its output projection, in tokens."""

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
from radiant_lens.models.tokens import AnswerBatch, answer_batches, answer_rows, pad_token, pass_tokens
from radiant_lens.sites import FINAL_RESIDUAL, HeadSite, hook_name
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class EditWrites:
    """Change of each token's logit by what the edits write, the mean of all tokens taken off.

    Only the direct path is followed: the displacement goes through the head's output projection, is added to the
    unsteered run's last residual, and through the final norm, computed exactly, and the unembedding. What later
    layers make of it is left out (`head_effects` has it), and so is a cap on the logits.

    Attributes:
        sites: the edited heads.
        tokens: the vocabulary, special tokens left out.
        by_head: mean over the positions where the head is edited, as if it were alone; 0 where it never is.
        total: of all heads at once, mean over the positions where any is edited.
        n_edits: positions where each head is edited, of `n_positions` where any is.
    """

    sites: tuple[HeadSite, ...]
    tokens: tuple[str, ...]
    by_head: Float[Tensor, "site vocab"]
    total: Float[Tensor, " vocab"]
    n_edits: Int[Tensor, " site"]
    n_positions: int

    def top(self, n: int = 10, site: tuple[int, int] | None = None) -> pd.DataFrame:
        """The `n` most promoted tokens and the `n` most demoted, with the change of their logits, largest first.

        Args:
            n: at least 1; fewer where the vocabulary is smaller.
            site: one head; None for all at once.
        """
        _checks.whole("n", n, 1)
        if site is not None and site not in self.sites:
            raise InvalidArgumentError(f"`site` must be an edited head, such as {self.sites[0]}; got {tuple(site)}.")
        change = self.total if site is None else self.by_head[self.sites.index(HeadSite(*site))]
        order = change.argsort(descending=True)
        n = min(n, len(order) // 2)
        kept = torch.cat([order[:n], order[len(order) - n :]])
        return pd.DataFrame({"token": [self.tokens[i] for i in kept.tolist()], "change": change[kept].numpy()})


class _Edited(NamedTuple):
    """Positions where a head is edited: the last residual, and what each head writes into it."""

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
) -> EditWrites:
    """See which tokens the edits promote and demote by themselves, on statements read by the unsteered model.

    Args:
        model: from `load_model`.
        data: a data set with statements, or statements; edits begin where they do in `evaluate`.
        steering: from a policy's `fit`.
        max_positions: edited positions to average over, drawn at random where there are more.
        max_tokens: tokens in one forward pass, padding included; None: 1024 on the CPU, else 4096.
        seed: of the draw.

    Raises:
        InvalidArgumentError: a model that normalises what attention writes (Gemma 2), or has no final norm.
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
    edited = _edited_positions(model, statements, steering, pass_tokens(model, max_tokens))
    n = len(edited.residual)
    if n == 0:
        raise NothingToEditError("No position of these statements is edited: nothing is written.")
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:max_positions]
    return _projected(model, _Edited(*(part[drawn.to(part.device)] for part in edited)), steering)


def _require_direct_path(model: TransformerBridge, steering: Steering) -> None:
    blocks: Any = model.blocks
    normed = [layer for layer in steering.layers if hasattr(blocks[layer], "ln1_post")]
    if normed or FINAL_RESIDUAL not in model.hook_dict:
        reason = "normalises what attention writes" if normed else "has no final norm"
        raise InvalidArgumentError(f"Model {model.cfg.model_name!r} {reason}: there is no direct path to the output.")


def _edited_positions(
    model: TransformerBridge, statements: Sequence[Statement], steering: Steering, max_tokens: int
) -> _Edited:
    empty = torch.zeros(0, len(steering.sites), model.cfg.d_model)
    parts = [_Edited(empty[:, 0], empty, empty[..., 0].bool())]
    rows = list(answer_rows(model, statements))
    for batch in answer_batches(rows, pad_token(model), max_tokens=max_tokens):
        parts.append(_batch_positions(model, batch, steering))
    return _Edited(*(torch.cat(pieces) for pieces in zip(*parts)))


def _batch_positions(model: TransformerBridge, batch: AnswerBatch, steering: Steering) -> _Edited:
    device = model.cfg.device
    seen: dict[str, Tensor] = {}
    names = {layer: hook_name(layer) for layer in steering.layers}
    hooks = [(name, _keeping(seen, name)) for name in (*names.values(), FINAL_RESIDUAL)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(batch.tokens.to(device), attention_mask=batch.mask.long().to(device))
    answer = batch.edited.to(device)
    written, gated = [], []
    blocks: Any = model.blocks
    for layer, name in names.items():
        edit = steering.displace(seen[name], layer)
        # Heads that share a layer share their output projection's module, not its weights.
        projection = blocks[layer].attn.W_O[edit.heads].to(edit.displacement)
        scale = getattr(blocks[layer].attn, "_result_contribution_scale", 1.0)
        written.append(torch.einsum("bpsd,sdm->bpsm", edit.displacement, projection) * scale)
        gated.append(edit.gated)
    opened = torch.cat(gated, dim=2) & answer[..., None]
    where = opened.any(2)
    parts = (seen[FINAL_RESIDUAL][where].float(), torch.cat(written, dim=2)[where].float(), opened[where])
    return _Edited(*(part.cpu() for part in parts))


def _keeping(seen: dict[str, Tensor], name: str) -> HookFunction:
    def keep(value: Tensor, hook: object) -> Tensor:
        seen[name] = value.detach()
        return value

    return keep


def _projected(model: TransformerBridge, edited: _Edited, steering: Steering) -> EditWrites:
    plain = _logits(model, edited.residual)
    written = edited.written * edited.gated[..., None]
    rows = []
    for i in range(len(steering.sites)):
        on = edited.gated[:, i]
        moved = _logits(model, edited.residual[on] + written[on, i]) - plain[on] if bool(on.any()) else plain[:1] * 0
        rows.append(moved.mean(0))
    total = (_logits(model, edited.residual + written.sum(1)) - plain).mean(0)
    tokenizer: Any = model.tokenizer
    special = set(tokenizer.all_special_ids)
    kept = [i for i in range(total.shape[-1]) if i not in special]
    return EditWrites(
        sites=steering.sites,
        # Ids beyond the tokenizer's own pad the embedding: they decode to nothing.
        tokens=tuple(tokenizer.batch_decode([[i] for i in kept])),
        by_head=_centred(torch.stack(rows))[:, kept],
        total=_centred(total)[kept],
        n_edits=edited.gated.sum(0),
        n_positions=len(edited.residual),
    )


def _logits(model: TransformerBridge, residual: Float[Tensor, "edited d_model"]) -> Float[Tensor, "edited vocab"]:
    parts: Any = model
    residual = residual.to(model.cfg.device, parts.unembed.W_U.dtype)
    with torch.no_grad():
        return parts.unembed(parts.ln_final(residual[None]))[0].double().cpu()


def _centred(change: Float[Tensor, "*head vocab"]) -> Float[Tensor, "*head vocab"]:
    return change - change.mean(-1, keepdim=True)
