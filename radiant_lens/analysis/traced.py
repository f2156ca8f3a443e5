"""One steered answer: its tokens, the trace of its edits, and the attention patterns of the edited heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens import _checks
from radiant_lens._typing import HookFunction
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.evaluation.generation import check_sampling, draws, generate_tokens
from radiant_lens.evaluation.stops import check_stop, cut_answer
from radiant_lens.hooks._steer import steer
from radiant_lens.hooks.trace import Trace
from radiant_lens.models.tokens import Text, encode
from radiant_lens.notebook import card, marked_tokens
from radiant_lens.sites import HeadSite, pattern_hook_name
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class AttentionPatterns:
    """Attention of heads: for each token (`dest`) the weight of every token up to it (`src`)."""

    tokens: tuple[str, ...]
    sites: tuple[HeadSite, ...]
    weights: Float[Tensor, "site dest src"]


@dataclass(frozen=True)
class TracedAnswer:
    """A prompt and its steered answer.

    Attributes:
        tokens: of prompt and answer, in the order in which the trace counts them.
        n_prompt: number of tokens of the prompt.
        answer: text of the answer, as `generate_answers` gives it.
        trace: votes, gates and displacements; none for the answer's last token, which the model never reads.
        patterns: attention of the edited heads, under the steering.
    """

    tokens: tuple[str, ...]
    n_prompt: int
    answer: str
    trace: Trace
    patterns: AttentionPatterns

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each token: `position`, `token`, `part`, and `edits` there with their `displacement`."""
        trace = self.trace.to_dataframe()
        edited = trace[trace["gated"].astype(bool)].groupby("position")["displacement"]
        table = pd.DataFrame({"position": range(len(self.tokens)), "token": self.tokens})
        table["part"] = ["prompt" if i < self.n_prompt else "answer" for i in table["position"]]
        table["edits"] = table["position"].map(edited.size()).fillna(0).astype(int)
        table["displacement"] = table["position"].map(edited.sum()).fillna(0.0)
        return table

    def __repr__(self) -> str:
        """The answer, and the number of edits, in one line."""
        return f"TracedAnswer({self.answer!r:.80}, {int(self.to_dataframe()['edits'].sum())} edits)"

    def _repr_html_(self) -> str:
        # An edit acts on the token after the position at which it is made.
        marks = [0.0, *self.to_dataframe()["displacement"].tolist()[:-1]]
        words = "Darker tokens were predicted under longer edits"
        return card("TracedAnswer", f"{self!r}", marked_tokens(self.tokens, marks, words))


def trace_answer(
    model: TransformerBridge,
    prompt: Text,
    steering: Steering,
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> TracedAnswer:
    """Answer one prompt under a steering, and record its votes, edits and attention patterns.

    Args:
        model: from `load_model`.
        prompt: one text to continue, or a `Prompt`, which says whether its text is a rendered chat.
        steering: from a policy's `fit`.
        max_new_tokens, temperature, seed: of the generation; temperature 0 is greedy.
        stop: strings at which the answer ends, as for `generate_answers`.

    Raises:
        InvalidArgumentError: more than one prompt, or a number out of its range.
        DataError: a prompt without tokens, or that leaves no room for the answer in the context.
        ModelMismatchError: a steering for another model.

    Example:
        >>> answer = trace_answer(model, "Q : what is the capital of gizika ? A :", steering)  # doctest: +SKIP
    """
    _checks.instance("prompt", prompt, (str, Statement, Prompt), hint="trace one prompt at a time")
    check_sampling(1, max_new_tokens, temperature, seed)
    check_stop(stop)
    ids = torch.tensor([encode(model, [prompt], n_new=max_new_tokens)[0].ids])
    uniform = draws(1, max_new_tokens, seed)
    with steer(model, steering, trace=True) as trace:
        new = generate_tokens(model, ids, torch.ones_like(ids), uniform, temperature, stop)
    ids, n_prompt = torch.cat([ids, new.cpu()], dim=1), ids.shape[1]
    tokenizer: Any = model.tokenizer
    tokens = tuple(tokenizer.batch_decode([[i] for i in ids[0].tolist()]))
    answer = cut_answer(tokenizer.decode(new[0], skip_special_tokens=True), stop)
    patterns = AttentionPatterns(tokens, steering.sites, _patterns(model, ids, n_prompt, steering))
    return TracedAnswer(tokens, n_prompt, answer, trace, patterns)


def _patterns(model: TransformerBridge, ids: Tensor, n_prompt: int, steering: Steering) -> Tensor:
    by_layer: dict[int, Tensor] = {}
    hooks = [(pattern_hook_name(layer), _record(by_layer, layer)) for layer in steering.layers]
    # A second pass over the whole text: with a KV cache each step of generation has one row of the pattern only.
    # Edits begin at the last token of the prompt, as they did while the answer was generated.
    with torch.no_grad(), steer(model, steering, start=n_prompt - 1), model.hooks(fwd_hooks=hooks):
        model(ids.to(model.cfg.device))
    return torch.stack([by_layer[site.layer][site.head] for site in steering.sites])


def _record(by_layer: dict[int, Tensor], layer: int) -> HookFunction:
    def record(pattern: Tensor, hook: object) -> Tensor:
        by_layer[layer] = pattern[0].detach().float().cpu()
        return pattern

    return record
