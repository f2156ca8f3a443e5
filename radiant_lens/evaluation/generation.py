"""Sampled answers to many prompts, batched by length, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import StoppingCriteria

from radiant_lens import _checks
from radiant_lens.distributed import shared
from radiant_lens.errors import RadiantError
from radiant_lens.models.tokens import Text, batch_rows, encode, pad_rows, pad_token

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SENTENCE_ENDS = (".", "!", "?")


class _StopStrings(StoppingCriteria):
    """Ends a row once what was generated holds a stop string."""

    def __init__(self, tokenizer: Any, n_prompt: int, stop: Sequence[str]) -> None:
        self._tokenizer, self._n_prompt, self._stop = tokenizer, n_prompt, stop

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        texts = self._tokenizer.batch_decode(input_ids[:, self._n_prompt :], skip_special_tokens=True)
        return torch.tensor([any(s in text for s in self._stop) for text in texts], device=input_ids.device)


class _Drawing:
    """Forward hook of a model: what greedy generation then takes is the token that a row's own draw falls on."""

    def __init__(self, uniform: Float[Tensor, "batch new"], temperature: float) -> None:
        self._steps, self._temperature = iter(uniform.unbind(1)), temperature

    def __call__(self, module: Any, args: Any, logits: Float[Tensor, "batch pos vocab"]) -> Tensor:
        heights = (logits[:, -1:].float() / self._temperature).softmax(-1).cumsum(-1)
        wanted = next(self._steps).to(heights)[:, None, None] * heights[..., -1:]
        token = torch.searchsorted(heights, wanted, right=True).clamp_max(heights.shape[-1] - 1)
        return torch.zeros_like(heights).scatter_(-1, token, 1.0)


class _Watch:
    """Forward hook of a model: whether the logits of every next token were numbers; read once, at the end."""

    def __init__(self) -> None:
        self.sound: list[Tensor] = []

    def __call__(self, module: Any, args: Any, logits: Float[Tensor, "batch pos vocab"]) -> None:
        self.sound.append(are_numbers(logits[:, -1]).all())


def are_numbers(logits: Float[Tensor, "*pos vocab"]) -> Bool[Tensor, "*pos"]:
    """Where logits have probabilities: no NaN, no infinity, and at least one token that is possible."""
    return logits.amax(-1).isfinite()


def require_numbers(sound: Bool[Tensor, "*pos"]) -> None:
    """Raise where logits are no numbers: whatever is read from them would be wrong without a word.

    Args:
        sound: from `are_numbers`.

    Raises:
        RadiantError: with what usually is the cause.
    """
    if not bool(sound.all()):
        raise RadiantError(
            "The model's logits are not numbers (NaN or infinity). float16 overflows in many models: load it in "
            "bfloat16 or float32. float64 has none for padded rows in eager attention: load it in float32."
        )


def check_sampling(n_samples: int, max_new_tokens: int, temperature: float, seed: int = 0) -> None:
    """The numbers that generation takes are in their ranges."""
    _checks.whole("n_samples", n_samples, 1)
    _checks.whole("max_new_tokens", max_new_tokens, 1)
    _checks.between("temperature", temperature, 0, closed="low")
    _checks.seed(seed)


def generate_answers(
    model: TransformerBridge,
    prompts: Sequence[Text],
    *,
    n_samples: int = 1,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    max_tokens: int = 16384,
) -> list[list[str]]:
    """Generate answers; a `steer` around the call acts on them. Ranks share the answers.

    Args:
        model: from `load_model`.
        prompts: texts to continue, or `Prompt`s, which say whether their text is a rendered chat.
        n_samples: answers to each prompt.
        max_new_tokens: tokens of an answer at most.
        temperature: 0 for greedy answers.
        stop: an answer ends where one of these begins; a period, question or exclamation mark is kept.
        seed: the same seed gives the same answers of the same model, however they are batched or shared.
        max_tokens: tokens in one batch, padding and new tokens included.

    Returns:
        For each prompt its answers, without the prompt.

    Raises:
        InvalidArgumentError: a number out of its range, or prompts that are no texts.
        DataError: a prompt that leaves no room for the answer in the model's context.
        RadiantError: logits that are no numbers.
    """
    check_sampling(n_samples, max_new_tokens, temperature, seed)
    rows = [e.ids for e in encode(model, prompts, n_new=max_new_tokens) for _ in range(n_samples)]
    asked = list(zip(rows, draws(len(rows), max_new_tokens, seed)))
    answers = shared(asked, lambda mine: _answered(model, mine, temperature, stop, max_tokens))
    return [answers[i : i + n_samples] for i in range(0, len(answers), n_samples)]


def draws(n_rows: int, max_new_tokens: int, seed: int) -> Float[Tensor, "row new"]:
    """Uniform random numbers, one for each token: what a row says depends on its own alone."""
    return torch.rand((n_rows, max_new_tokens), generator=torch.Generator().manual_seed(seed))


def _answered(
    model: TransformerBridge,
    asked: Sequence[tuple[list[int], Float[Tensor, " new"]]],
    temperature: float,
    stop: Sequence[str],
    max_tokens: int,
) -> list[str]:
    """An answer to each row of tokens, with its draws."""
    answers = [""] * len(asked)
    widest, n_new = max(len(ids) for ids, _ in asked), len(asked[0][1])
    budget = max(1, max_tokens // (widest + n_new)) * widest
    for batch in batch_rows(torch.tensor([len(ids) for ids, _ in asked]), max_tokens=budget):
        index = batch.tolist()
        tokens, mask = pad_rows([asked[i][0] for i in index], pad_token(model), side="left")
        new = generate_tokens(model, tokens, mask, torch.stack([asked[i][1] for i in index]), temperature, stop)
        for i, text in zip(index, model.tokenizer.batch_decode(new, skip_special_tokens=True)):
            answers[i] = _cut(text, stop)
    return answers


def generate_tokens(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    mask: Tensor,
    uniform: Float[Tensor, "batch new"],
    temperature: float,
    stop: Sequence[str],
) -> Int[Tensor, "batch made"]:
    """At most as many new tokens of left-padded prompts as there are draws; a row ends at a stop string."""
    device, n_prompt = model.cfg.device, tokens.shape[1]
    options: dict[str, Any] = {"stopping_criteria": _StopStrings(model.tokenizer, n_prompt, stop)} if stop else {}
    watch = _Watch()
    with ExitStack() as handles:
        handles.enter_context(torch.no_grad())
        handles.callback(model.register_forward_hook(watch).remove)
        if temperature > 0:
            handles.callback(model.register_forward_hook(_Drawing(uniform, temperature)).remove)
        output: Any = model.generate(
            tokens.to(device),
            attention_mask=mask.long().to(device),
            max_new_tokens=uniform.shape[1],
            do_sample=False,
            return_type="tokens",
            verbose=False,
            **options,
        )
    require_numbers(torch.stack(watch.sound))
    return output[:, n_prompt:]


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string, which is kept where it ends a sentence."""
    ends = [(text.find(s), text.find(s) + len(s) * (s.strip() in SENTENCE_ENDS)) for s in stop if s in text]
    return text[: min(ends)[1]].strip() if ends else text.strip()
