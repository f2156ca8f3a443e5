"""Sampled answers to many prompts, batched by length, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import StoppingCriteria

from radiant_lens import _checks
from radiant_lens.tokens import batched, encode, pad_id

SENTENCE_ENDS = (".", "!", "?")


class _StopStrings(StoppingCriteria):
    """Ends a row once what was generated holds a stop string."""

    def __init__(self, tokenizer: Any, n_prompt: int, stop: Sequence[str]) -> None:
        self._tokenizer, self._n_prompt, self._stop = tokenizer, n_prompt, stop

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        texts = self._tokenizer.batch_decode(input_ids[:, self._n_prompt :], skip_special_tokens=True)
        return torch.tensor([any(s in text for s in self._stop) for text in texts], device=input_ids.device)


def check_sampling(n_samples: int, max_new_tokens: int, temperature: float, seed: int = 0) -> None:
    """The numbers that generation takes are in their ranges."""
    _checks.whole("n_samples", n_samples, 1)
    _checks.whole("max_new_tokens", max_new_tokens, 1)
    _checks.between("temperature", temperature, 0, closed="low")
    _checks.seed(seed)


def generate_answers(
    model: TransformerBridge,
    prompts: Sequence[str],
    *,
    n_samples: int = 1,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    max_tokens: int = 16384,
) -> list[list[str]]:
    """Generate answers; a `steer` around the call acts on them.

    Args:
        model: from `load_model`.
        prompts: texts to continue.
        n_samples: answers to each prompt.
        max_new_tokens: tokens of an answer at most.
        temperature: 0 for greedy answers.
        stop: an answer ends where one of these begins; a period, question or exclamation mark is kept.
        seed: the same seed gives the same answers of the same model.
        max_tokens: tokens in one batch, padding and new tokens included.

    Returns:
        For each prompt its answers, without the prompt.

    Raises:
        InvalidArgumentError: a number out of its range, or prompts that are no texts.
        DataError: a prompt that leaves no room for the answer in the model's context.
    """
    check_sampling(n_samples, max_new_tokens, temperature, seed)
    rows = [e.ids for e in encode(model, prompts, n_new=max_new_tokens) for _ in range(n_samples)]
    answers = [""] * len(rows)
    widest = max((len(r) for r in rows), default=1)
    budget = max(1, max_tokens // (widest + max_new_tokens)) * widest
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for batch in batched(rows, pad_id(model), max_tokens=budget):
            tokens, mask = _left_padded(batch.tokens, batch.mask)
            new = generate_tokens(model, tokens, mask, max_new_tokens, temperature, stop)
            for i, text in zip(batch.texts, model.tokenizer.batch_decode(new, skip_special_tokens=True)):
                answers[i] = _cut(text, stop)
    return [answers[i : i + n_samples] for i in range(0, len(answers), n_samples)]


def _left_padded(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    shift = (~mask).sum(1, keepdim=True)
    columns = (torch.arange(tokens.shape[1]) - shift) % tokens.shape[1]
    return tokens.gather(1, columns), mask.gather(1, columns)


def generate_tokens(
    model: TransformerBridge, tokens: Tensor, mask: Tensor, max_new_tokens: int, temperature: float, stop: Sequence[str]
) -> Int[Tensor, "batch new"]:
    """New tokens of left-padded prompts, drawn from torch's own generator; a row ends at a stop string."""
    device, n_prompt = model.cfg.device, tokens.shape[1]
    options: dict[str, Any] = {"stopping_criteria": _StopStrings(model.tokenizer, n_prompt, stop)} if stop else {}
    output: Any = model.generate(
        tokens.to(device),
        attention_mask=mask.long().to(device),
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        return_type="tokens",
        verbose=False,
        **options,
    )
    return output[:, n_prompt:]


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string, which is kept where it ends a sentence."""
    ends = [(text.find(s), text.find(s) + len(s) * (s.strip() in SENTENCE_ENDS)) for s in stop if s in text]
    return text[: min(ends)[1]].strip() if ends else text.strip()
