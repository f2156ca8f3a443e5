"""`check_up`: can this model's heads be read and edited here, and does plain transformers agree?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from radiant_lens.analysis.effects import head_effects
from radiant_lens.capture._collect import collect
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.datasets.records import Prompt, Statement
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.errors import RadiantError
from radiant_lens.evaluation.generation import draws, generate_tokens
from radiant_lens.hooks._steer import steer
from radiant_lens.models.loading import projection_paths
from radiant_lens.policies.iti import ITIPolicy
from radiant_lens.sites import PROJECTION_PATHS, hook_name
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}
"""How far two results may be apart, as a share of the largest value (at least 1), by precision."""

N_TEXTS, N_TOKENS, N_NEW = 16, 7, 4


class Finding(NamedTuple):
    """One check of a model: whether it holds, and what was measured or went wrong."""

    check: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class Pair:
    """A bridge and the plain model of the same weights.

    Texts are random tokens of the model's own vocabulary, so that no check depends on what it speaks.
    """

    bridge: TransformerBridge
    plain: PreTrainedModel

    @cached_property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """Texts of equal length, without special tokens."""
        tokenizer = self.bridge.tokenizer
        size = min(len(tokenizer), int(self.bridge.cfg.d_vocab))
        ids = torch.tensor(sorted(set(range(size)) - set(tokenizer.all_special_ids)))
        drawn = torch.randint(len(ids), (N_TEXTS, N_TOKENS), generator=torch.Generator().manual_seed(0))
        return ids[drawn].to(self.bridge.cfg.device)

    @cached_property
    def statements(self) -> list[Statement]:
        """The texts, half of them labelled undesirable."""
        texts = self.bridge.tokenizer.batch_decode(self.tokens)
        return [Statement(text, i % 2, f"group {i}") for i, text in enumerate(texts)]

    @cached_property
    def steering(self) -> Steering:
        """A shift of every head, fitted to the texts, open at every position."""
        half = N_TEXTS // 2
        train, validation = (collect(self.bridge, part) for part in (self.statements[:half], self.statements[half:]))
        detector = RiskAwareDetector(loss="mass_mean").fit(train, validation=validation)
        return ITIPolicy(n_heads=detector.head_risk_.numel()).fit(train, detector)

    def logits(
        self, model: TransformerBridge | PreTrainedModel, tokens: Tensor | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """What a model predicts after each token."""
        output = model(self.tokens if tokens is None else tokens)
        return output if isinstance(output, Tensor) else output.logits

    @property
    def steerable(self) -> TransformerBridge | PreTrainedModel:
        """The plain model, where `steer` knows its type, else the bridge."""
        return self.plain if self.plain.config.model_type in PROJECTION_PATHS else self.bridge


def check_up(bridge: TransformerBridge, plain: PreTrainedModel) -> list[Finding]:
    """Check a bridge against the plain model: what is read, steered, differentiated, fitted and generated.

    Args:
        bridge: from `load_model`.
        plain: the same weights, loaded by transformers with `attn_implementation="eager"`.

    Returns:
        One finding a check, also where one raised: an error of any kind is what the checks look for.
    """
    pair = Pair(bridge, plain)
    return [_found(name, check, pair) for name, check in CHECKS.items()]


def _found(name: str, check: Callable[[Pair], str], pair: Pair) -> Finding:
    try:
        return Finding(name, True, check(pair))
    except Exception as error:
        reason = str(error).strip() or "no reason given"
        return Finding(name, False, reason if isinstance(error, RadiantError) else f"{type(error).__name__}: {reason}")


def projection_inputs(pair: Pair) -> list[Float[Tensor, "batch pos width"]]:
    """What the attention output projections of the plain model truly read, seen by forward pre-hooks."""
    seen: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])

    modules = dict(pair.plain.named_modules())
    handles = [modules[path].register_forward_pre_hook(see) for path in projection_paths(pair.bridge)]
    try:
        with torch.no_grad():
            pair.logits(pair.plain)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _reading(pair: Pair) -> str:
    inputs = projection_inputs(pair)
    with torch.no_grad():
        plain = pair.logits(pair.bridge)
        read, cache = pair.bridge.run_with_cache(pair.tokens, names_filter=[hook_name(i) for i in range(len(inputs))])
    if not torch.equal(read, plain):
        raise RadiantError("Reading changes what the model predicts.")
    heads = (pair.bridge.cfg.n_heads, pair.bridge.cfg.d_head)
    read_at = [cache[hook_name(layer)] for layer in range(pair.bridge.cfg.n_layers)]
    for layer, z in enumerate(read_at):
        if tuple(z.shape) != (*pair.tokens.shape, *heads):
            raise RadiantError(f"{hook_name(layer)!r} has shape {tuple(z.shape)}; its heads are {heads}.")
    return _agreeing([(z.flatten(-2), seen) for z, seen in zip(read_at, inputs, strict=True)])


def _predicting(pair: Pair) -> str:
    with torch.no_grad():
        return _agreeing([(pair.logits(pair.bridge), pair.logits(pair.plain))])


def _steering(pair: Pair) -> str:
    with torch.no_grad():
        before = pair.logits(pair.bridge)
        with steer(pair.bridge, pair.steering, start=2):
            steered = pair.logits(pair.bridge)
        if not torch.equal(pair.logits(pair.bridge), before):
            raise RadiantError("The model is not what it was once steering has ended.")
        _unmoved_before(steered, before, start=2)
        if pair.steerable is pair.bridge:
            kind = pair.plain.config.model_type
            return f"not compared: `steer` does not know plain models of type {kind!r}, only their bridges"
        with steer(pair.plain, pair.steering, start=2):
            return _agreeing([(steered, pair.logits(pair.plain))])


def _unmoved_before(steered: Tensor, before: Tensor, *, start: int) -> None:
    tolerance = TOLERANCES[before.dtype]
    if _difference(steered[:, :start], before[:, :start]) > tolerance:
        raise RadiantError("Steering changes what stands before the first edited position.")
    if not _difference(steered[:, start:], before[:, start:]) > tolerance:
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
    """Each new token, generated with a KV cache, is the likeliest in one steered pass over the whole text."""
    tokens = pair.tokens[:2]
    with torch.no_grad():
        with steer(pair.bridge, pair.steering, trace=True) as trace:
            new = generate_tokens(pair.bridge, tokens, torch.ones_like(tokens), draws(len(tokens), N_NEW, 0), 0.0, ())
        with steer(pair.steerable, pair.steering, start=N_TOKENS - 1):
            logits = pair.logits(pair.steerable, torch.cat([tokens, new], dim=1))[:, N_TOKENS - 1 : -1].float()
    if not bool(trace.to_dataframe()["gated"].all()):
        raise RadiantError("Some new tokens were generated without an edit.")
    ended = (new == pair.bridge.tokenizer.eos_token_id).long()
    lacks = (logits.amax(-1) - logits.gather(2, new[..., None])[..., 0])[ended.cumsum(1) - ended == 0]
    scale = max(1.0, float(logits.abs().max()))
    return _within(float(lacks.max()) / scale, pair.bridge.cfg.dtype)


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
    # Written so that NaN is too much.
    if not difference <= TOLERANCES[dtype]:
        raise RadiantError(f"max difference {difference:.1e}, allowed are {TOLERANCES[dtype]:g}.")
    return f"max difference {difference:.1e}"
