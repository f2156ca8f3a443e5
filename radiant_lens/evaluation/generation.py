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
from radiant_lens.evaluation.stops import check_stop, cut_answer, has_ended
from radiant_lens.models.tokens import Text, batch_rows, encode, pad_rows, pad_token

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class _StopStrings(StoppingCriteria):
    """Ends a row once its new text holds a stop string."""

    def __init__(self, tokenizer: Any, n_prompt: int, stop: Sequence[str]) -> None:
        self._tokenizer, self._n_prompt, self._stop = tokenizer, n_prompt, stop

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        texts = self._tokenizer.batch_decode(input_ids[:, self._n_prompt :], skip_special_tokens=True)
        # Text, not token ids: one stop string has many tokenizations, and may begin or end within a token.
        return torch.tensor([has_ended(text, self._stop) for text in texts], device=input_ids.device)


class Drawing:
    """Forward hook of a model that makes greedy generation take the token that a row's own random number selects.

    Sampling inside `generate` draws from one generator for the whole batch, so an answer would depend on its batch.
    """

    def __init__(self, uniform: Float[Tensor, "batch new"], temperature: float) -> None:
        self._steps, self._temperature = iter(uniform.unbind(1)), temperature

    def __call__(self, module: Any, args: Any, logits: Float[Tensor, "batch pos vocab"]) -> Tensor:
        """Replace the logits of the last position by 1 at the selected token and 0 elsewhere."""
        cumulative = (logits[:, -1:].float() / self._temperature).softmax(-1).cumsum(-1)
        # Inverse of the cumulative distribution. Rounding leaves its last value a little off 1, so the number in
        # [0, 1) is scaled by it; `right=True` skips tokens of probability 0.
        height = next(self._steps).to(cumulative)[:, None, None] * cumulative[..., -1:]
        # A number just below 1 can round up to the last value itself and fall behind the vocabulary.
        token = torch.searchsorted(cumulative, height, right=True).clamp_max(cumulative.shape[-1] - 1)
        return torch.zeros_like(cumulative).scatter_(-1, token, 1.0)


def keep_last_position(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook of the unembedding: the next token follows from the last position alone.

    The logits of a prompt's other positions would take most of its pass where the vocabulary is large.
    """
    return args[0][:, -1:], *args[1:]


class _Watch:
    """Forward hook of a model that records whether the logits of every next token were numbers."""

    def __init__(self) -> None:
        # Tensors, read once at the end: a bool at every step would make the host wait for the GPU.
        self.sound: list[Tensor] = []

    def __call__(self, module: Any, args: Any, logits: Float[Tensor, "batch pos vocab"]) -> None:
        self.sound.append(are_numbers(logits[:, -1]).all())


def are_numbers(logits: Float[Tensor, "*pos vocab"]) -> Bool[Tensor, "*pos"]:
    """True where logits have probabilities: no NaN, no +inf, and at least one token that is possible."""
    # The maximum alone: -inf is allowed for single tokens, and NaN, +inf and a row of -inf all show in it.
    return logits.amax(-1).isfinite()


def require_numbers(sound: Bool[Tensor, "*pos"]) -> None:
    """Raise where logits are not numbers: everything computed from them would be wrong without a warning.

    Args:
        sound: from `are_numbers`.

    Raises:
        RadiantError: some are not; the message names the usual causes.
    """
    if not bool(sound.all()):
        raise RadiantError(
            "The model's logits are not numbers (NaN or infinity). float16 overflows in many models: load it in "
            "bfloat16 or float32. float64 has none for padded rows in eager attention: load it in float32."
        )


def check_sampling(n_samples: int, max_new_tokens: int, temperature: float, seed: int = 0) -> None:
    """Check that the numbers that generation takes are in their ranges."""
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
        stop: strings at which an answer ends; a period, question or exclamation mark is kept. One with letters, such
            as "Q:", counts at the start of a line only. Line breaks before the answer do not end it.
        seed: the same seed gives the same answers of the same model, however they are batched or shared.
        max_tokens: tokens in one batch, padding and new tokens included.

    Returns:
        For each prompt its answers, without the prompt.

    Raises:
        InvalidArgumentError: a number out of its range, or prompts or stop strings that are not lists of texts.
        DataError: a prompt that leaves no room for the answer in the model's context.
        RadiantError: logits that are not numbers.
    """
    check_sampling(n_samples, max_new_tokens, temperature, seed)
    check_stop(stop)
    rows = [e.ids for e in encode(model, prompts, n_new=max_new_tokens) for _ in range(n_samples)]
    requests = list(zip(rows, draws(len(rows), max_new_tokens, seed)))
    answers = shared(requests, lambda mine: _generate(model, mine, temperature, stop, max_tokens))
    return [answers[i : i + n_samples] for i in range(0, len(answers), n_samples)]


def draws(n_rows: int, max_new_tokens: int, seed: int) -> Float[Tensor, "row new"]:
    """Uniform random numbers, one for each token of each row: an answer depends on those of its own row alone."""
    return torch.rand((n_rows, max_new_tokens), generator=torch.Generator().manual_seed(seed))


def _generate(
    model: TransformerBridge,
    requests: Sequence[tuple[list[int], Float[Tensor, " new"]]],
    temperature: float,
    stop: Sequence[str],
    max_tokens: int,
) -> list[str]:
    """Answer each row of tokens, with its own random numbers."""
    answers = [""] * len(requests)
    widest, n_new = max(len(ids) for ids, _ in requests), len(requests[0][1])
    # `batch_rows` counts the prompts' tokens alone; rows must have room for the new tokens too.
    budget = max(1, max_tokens // (widest + n_new)) * widest
    for batch in batch_rows(torch.tensor([len(ids) for ids, _ in requests]), max_tokens=budget):
        index = batch.tolist()
        tokens, mask = pad_rows([requests[i][0] for i in index], pad_token(model), side="left")
        new = generate_tokens(model, tokens, mask, torch.stack([requests[i][1] for i in index]), temperature, stop)
        for i, text in zip(index, model.tokenizer.batch_decode(new, skip_special_tokens=True)):
            answers[i] = cut_answer(text, stop)
    return answers


def generate_tokens(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    mask: Tensor,
    uniform: Float[Tensor, "batch new"],
    temperature: float,
    stop: Sequence[str],
) -> Int[Tensor, "batch generated"]:
    """Generate for left-padded prompts at most as many tokens as there are random numbers.

    Generation ends when every row holds a stop string or the model's end token; rows that end earlier are filled up.
    """
    device, n_prompt = model.cfg.device, tokens.shape[1]
    options: dict[str, Any] = {"stopping_criteria": _StopStrings(model.tokenizer, n_prompt, stop)} if stop else {}
    watch = _Watch()
    with ExitStack() as handles:
        handles.enter_context(torch.no_grad())
        handles.callback(model.unembed.register_forward_pre_hook(keep_last_position).remove)
        handles.callback(model.register_forward_hook(watch).remove)
        # Last, so that it replaces the logits only after they have been looked at.
        if temperature > 0:
            handles.callback(model.register_forward_hook(Drawing(uniform, temperature)).remove)
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
