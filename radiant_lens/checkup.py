"""`check_up`: can this model's heads be read and edited here, and does plain transformers agree?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from radiant_lens.analysis.effects import head_effects
from radiant_lens.analysis.steering import Steering
from radiant_lens.capture._collect import collect
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import RadiantError
from radiant_lens.evaluation.generation import draws, generate_tokens
from radiant_lens.hooks._steer import steer
from radiant_lens.models.loading import projection_paths
from radiant_lens.models.precision import TOLERANCES
from radiant_lens.models.tokens import ordinary_tokens, pad_rows, pad_token
from radiant_lens.policies.iti import ITIPolicy
from radiant_lens.sites import PROJECTION_PATHS, hook_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

N_TEXTS, N_NEW, N_POOL = 16, 4, 64
LENGTHS = (7, 6, 4, 3)
"""Tokens of the texts, in turn: batches of them are padded, as those of real texts are."""

EDITED_FROM = 2
"""Position from which steered passes are edited; every text is longer."""


class Finding(NamedTuple):
    """One check of a model: whether it holds, and what was measured or went wrong."""

    check: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class Pair:
    """A bridge and the plain model of the same weights.

    Texts are random tokens of the model's own vocabulary, so that no check depends on its language. The bridge runs
    them as `collect`, `evaluate` and `generate` do, in padded batches with an attention mask; the plain model runs each
    of them alone, without either. A bridge that is right without a mask and wrong with one is seen only in this way.
    """

    bridge: TransformerBridge
    plain: PreTrainedModel

    @cached_property
    def rows(self) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        pool = torch.tensor(ordinary_tokens(self.bridge, N_POOL))
        drawn = torch.randint(N_POOL, (N_TEXTS, max(LENGTHS)), generator=torch.Generator().manual_seed(0))
        return [row[: LENGTHS[i % len(LENGTHS)]] for i, row in enumerate(pool[drawn].tolist())]

    @cached_property
    def batch(self) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Tokens and mask of one text of each length, padded on the right."""
        tokens, mask = pad_rows(self.rows[: len(LENGTHS)], pad_token(self.bridge))
        return tokens.to(self.bridge.cfg.device), mask.to(self.bridge.cfg.device)

    @cached_property
    def statements(self) -> list[Statement]:
        """The texts, half of them labelled undesirable."""
        return [Statement(self.bridge.tokenizer.decode(row), i % 2, f"group {i}") for i, row in enumerate(self.rows)]

    @cached_property
    def steering(self) -> Steering:
        """A shift of every head, fitted to the texts and applied at every position."""
        half = N_TEXTS // 2
        train, validation = (collect(self.bridge, rows) for rows in (self.statements[:half], self.statements[half:]))
        detector = RiskAwareDetector(loss="mass_mean").fit(train, validation=validation)
        return ITIPolicy(n_heads=detector.head_risk_.numel()).fit(train, detector)

    def batch_logits(self, model: TransformerBridge | PreTrainedModel) -> Float[Tensor, "batch pos vocab"]:
        """Predictions of a model for the padded batch, under its mask."""
        tokens, mask = self.batch
        return _logits(model(tokens, attention_mask=mask.long()))

    def lone_logits(self, row: list[int]) -> Float[Tensor, "pos vocab"]:
        """Predictions of the plain model for one text alone, without padding or mask."""
        return _logits(self.plain(torch.tensor([row], device=self.bridge.cfg.device)))[0]

    @property
    def steerable(self) -> TransformerBridge | PreTrainedModel:
        """The plain model if `steer` knows its type, else the bridge."""
        return self.plain if self.plain.config.model_type in PROJECTION_PATHS else self.bridge


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def check_up(bridge: TransformerBridge, plain: PreTrainedModel) -> list[Finding]:
    """Check reading, steering, differentiating, fitting and generating with a bridge against the plain model.

    Args:
        bridge: from `load_model`.
        plain: the same weights, loaded by transformers with `attn_implementation="eager"`.

    Returns:
        One finding for each check, also for one that raised: errors of any kind are what the checks look for.
    """
    pair = Pair(bridge, plain)
    return [_run(name, check, pair) for name, check in CHECKS.items()]


def _run(name: str, check: Callable[[Pair], str], pair: Pair) -> Finding:
    try:
        return Finding(name, True, check(pair))
    except Exception as error:
        reason = str(error).strip() or "no reason given"
        return Finding(name, False, reason if isinstance(error, RadiantError) else f"{type(error).__name__}: {reason}")


def projection_inputs(pair: Pair) -> list[Float[Tensor, "token width"]]:
    """Inputs of the attention output projections in the plain model, by layer, at the tokens of each text alone."""
    seen: dict[int, list[Tensor]] = defaultdict(list)

    def hook(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: seen[layer].append(args[0][0])

    modules, paths = dict(pair.plain.named_modules()), projection_paths(pair.bridge)
    with ExitStack() as handles, torch.no_grad():
        for layer, path in enumerate(paths):
            handles.callback(modules[path].register_forward_pre_hook(hook(layer)).remove)
        for row in pair.rows[: len(LENGTHS)]:
            pair.lone_logits(row)
    return [torch.cat(seen[layer]) for layer in range(len(paths))]


def _reading(pair: Pair) -> str:
    inputs, (tokens, mask) = projection_inputs(pair), pair.batch
    with torch.no_grad():
        unread = pair.batch_logits(pair.bridge)
        read, cache = pair.bridge.run_with_cache(
            tokens, attention_mask=mask.long(), names_filter=[hook_name(i) for i in range(len(inputs))]
        )
    if not torch.equal(read[mask], unread[mask]):
        raise RadiantError("Reading changes what the model predicts.")
    heads = (pair.bridge.cfg.n_heads, pair.bridge.cfg.d_head)
    activations = [cache[hook_name(layer)] for layer in range(pair.bridge.cfg.n_layers)]
    for layer, z in enumerate(activations):
        if tuple(z.shape) != (*tokens.shape, *heads):
            raise RadiantError(f"{hook_name(layer)!r} has shape {tuple(z.shape)}; its heads are {heads}.")
    return _agreeing([(z.flatten(-2)[mask], lone) for z, lone in zip(activations, inputs, strict=True)])


def _predicting(pair: Pair) -> str:
    with torch.no_grad():
        lone = torch.cat([pair.lone_logits(row) for row in pair.rows[: len(LENGTHS)]])
        return _agreeing([(pair.batch_logits(pair.bridge)[pair.batch[1]], lone)])


def _steering(pair: Pair) -> str:
    mask = pair.batch[1]
    with torch.no_grad():
        before = pair.batch_logits(pair.bridge)
        with steer(pair.bridge, pair.steering, start=EDITED_FROM):
            steered = pair.batch_logits(pair.bridge)
        if not torch.equal(pair.batch_logits(pair.bridge)[mask], before[mask]):
            raise RadiantError("The model is not what it was once steering has ended.")
        _require_edits(steered, before, mask)
        if pair.steerable is pair.bridge:
            kind = pair.plain.config.model_type
            return f"not compared: `steer` does not know plain models of type {kind!r}, only their bridges"
        with steer(pair.plain, pair.steering, start=EDITED_FROM):
            lone = torch.cat([pair.lone_logits(row) for row in pair.rows[: len(LENGTHS)]])
        return _agreeing([(steered[mask], lone)])


def _require_edits(steered: Tensor, before: Tensor, mask: Tensor) -> None:
    """Predictions change from the first edited position on, and not before it."""
    tolerance, edited = TOLERANCES[before.dtype], torch.arange(mask.shape[1], device=mask.device) >= EDITED_FROM
    if _difference(steered[mask & ~edited], before[mask & ~edited]) > tolerance:
        raise RadiantError("Steering changes predictions before the first edited position.")
    if not _difference(steered[mask & edited], before[mask & edited]) > tolerance:
        raise RadiantError("Steering changes nothing.")


def _collecting(pair: Pair) -> str:
    return f"{len(pair.steering.sites)} heads fitted"


def _differentiating(pair: Pair) -> str:
    texts = [s.text for s in pair.statements[:4]]
    prompts = (Prompt(texts[0], (texts[1],), (texts[2],), "one"), Prompt(texts[3], (texts[2],), (texts[1],), "other"))
    effects = head_effects(pair.bridge, Dataset("checkup", (), prompts), pair.steering).estimated
    if not bool(torch.isfinite(effects).all()) or not bool(effects.any()):
        raise RadiantError("The gradient at `hook_z` is zero or not finite.")
    return f"effects of {len(effects)} heads"


def _generating(pair: Pair) -> str:
    """Each new token, generated in a left-padded batch with a KV cache, is the likeliest of its text alone.

    The reference is one steered pass over the whole text without padding, mask or cache.
    """
    rows = pair.rows[:2]
    tokens, mask = pad_rows(rows, pad_token(pair.bridge), side="left")
    with torch.no_grad():
        with steer(pair.bridge, pair.steering, trace=True) as trace:
            new = generate_tokens(pair.bridge, tokens, mask, draws(len(rows), N_NEW, 0), 0.0, ()).cpu()
        lacks = [lack for row, answer in zip(rows, new.tolist()) for lack in _lacks(pair, row, answer)]
    if not bool(trace.to_dataframe()["gated"].all()):
        raise RadiantError("Some new tokens were generated without an edit.")
    return _within(max(lacks), pair.bridge.cfg.dtype)


def _lacks(pair: Pair, row: list[int], answer: list[int]) -> list[float]:
    """For each new token, how far its logit lies below the largest, as a share of the largest logit of all."""
    eos = pair.bridge.tokenizer.eos_token_id
    if eos in answer:
        # Padding follows the end of a text.
        answer = answer[: answer.index(eos) + 1]
    whole = torch.tensor([row + answer], device=pair.bridge.cfg.device)
    with steer(pair.steerable, pair.steering, start=len(row) - 1):
        logits = _logits(pair.steerable(whole))[0, len(row) - 1 : -1].float()
    scale = max(1.0, float(logits.abs().max()))
    chosen = logits.gather(1, torch.tensor(answer, device=logits.device)[:, None])[:, 0]
    return ((logits.amax(-1) - chosen) / scale).tolist()


CHECKS: dict[str, Callable[[Pair], str]] = {
    "hook_z is the input of the output projection": _reading,
    "logits agree with plain transformers": _predicting,
    "collect and fit": _collecting,
    "steered logits agree with plain transformers": _steering,
    "gradient at hook_z": _differentiating,
    "generate": _generating,
}


def _difference(one: Tensor, other: Tensor) -> float:
    scale = max(1.0, float(other.abs().max()))
    return float((one.double() - other.double()).abs().max()) / scale


def _agreeing(pairs: list[tuple[Tensor, Tensor]]) -> str:
    return _within(max(_difference(one, other) for one, other in pairs), pairs[0][0].dtype)


def _within(difference: float, dtype: torch.dtype) -> str:
    # Not `difference > tolerance`: a comparison with NaN is false.
    if not difference <= TOLERANCES[dtype]:
        raise RadiantError(f"max difference {difference:.1e}, allowed are {TOLERANCES[dtype]:g}.")
    return f"max difference {difference:.1e}"
