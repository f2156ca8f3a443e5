"""One steered answer with all that can be seen of it: its tokens, its trace, and where the edited heads look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens._typing import HookFunction
from radiant_lens.evaluation.generation import check_sampling, draws, generate_tokens
from radiant_lens.hooks._steer import steer
from radiant_lens.hooks.trace import Trace
from radiant_lens.models.tokens import encode
from radiant_lens.sites import HeadSite, pattern_hook_name
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class AttentionPatterns:
    """Where heads look: for each token (`dest`) the weight of every token up to it (`src`)."""

    tokens: tuple[str, ...]
    sites: tuple[HeadSite, ...]
    weights: Float[Tensor, "site dest src"]


@dataclass(frozen=True)
class TracedAnswer:
    """A prompt and its steered answer.

    Attributes:
        tokens: of prompt and answer, as the trace counts them.
        n_prompt: how many of them are the prompt.
        trace: votes, gates and displacements; the answer's last token is never read, so it has none.
        patterns: of the edited heads, under the steering.
    """

    tokens: tuple[str, ...]
    n_prompt: int
    trace: Trace
    patterns: AttentionPatterns

    @property
    def answer(self) -> str:
        """The answer's tokens, joined."""
        return " ".join(token.strip() for token in self.tokens[self.n_prompt :])


def trace_answer(
    model: TransformerBridge,
    prompt: str,
    steering: Steering,
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> TracedAnswer:
    """Answer a prompt under a steering, and keep what can be seen of it.

    Args:
        model: from `load_model`.
        prompt: text to continue.
        steering: from a policy's `fit`.
        max_new_tokens, temperature, seed: of the generation; temperature 0 is greedy.
        stop: the answer ends where one of these begins.

    Raises:
        InvalidArgumentError: a number out of its range.
        DataError: a prompt without tokens, or that leaves no room for the answer in the context.
        ModelMismatchError: a steering for another model.

    Example:
        >>> answer = trace_answer(model, "Q : what is the capital of gizika ? A :", steering)  # doctest: +SKIP
    """
    check_sampling(1, max_new_tokens, temperature, seed)
    ids = torch.tensor([encode(model, [prompt], n_new=max_new_tokens)[0].ids])
    uniform = draws(1, max_new_tokens, seed)
    with steer(model, steering, trace=True) as trace:
        new = generate_tokens(model, ids, torch.ones_like(ids), uniform, temperature, stop)
    ids, n_prompt = torch.cat([ids, new.cpu()], dim=1), ids.shape[1]
    tokenizer: Any = model.tokenizer
    tokens = tuple(tokenizer.batch_decode([[i] for i in ids[0].tolist()]))
    weights = _patterns(model, ids, n_prompt, steering)
    return TracedAnswer(tokens, n_prompt, trace, AttentionPatterns(tokens, steering.sites, weights))


def _patterns(model: TransformerBridge, ids: Tensor, n_prompt: int, steering: Steering) -> Tensor:
    seen: dict[int, Tensor] = {}
    hooks = [(pattern_hook_name(layer), _keeping(seen, layer)) for layer in steering.layers]
    with torch.no_grad(), steer(model, steering, start=n_prompt - 1), model.hooks(fwd_hooks=hooks):
        model(ids.to(model.cfg.device))
    return torch.stack([seen[site.layer][site.head] for site in steering.sites])


def _keeping(seen: dict[int, Tensor], layer: int) -> HookFunction:
    def keep(pattern: Tensor, hook: object) -> Tensor:
        seen[layer] = pattern[0].detach().float().cpu()
        return pattern

    return keep
