"""Answers that arrive token by token, each token with the votes, edits and KL that belong to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens.datasets.records import Prompt
from radiant_lens.evaluation.generation import are_numbers, require_numbers
from radiant_lens.evaluation.stops import cut_answer, has_ended
from radiant_lens.hooks._steer import steer
from radiant_lens.models.predictions import token_kl
from radiant_lens.models.tokens import encode
from radiant_lens.sites import HeadSite, head_hook
from radiant_lens.steering.editor import LayerEdit
from radiant_lens.steering.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PLAIN, STEERED = "plain", "steered"
TOKENS_AT_ONCE = 4
"""Tokens that the plain model reads at a time for the KL: one pass for several costs little more than for one."""


@dataclass(frozen=True)
class Token:
    """A new token of an answer.

    The votes, edits and displacement are those at the token before it, from which it was predicted.

    Attributes:
        side: "plain" or "steered".
        index: in the answer.
        text: that it adds to the answer; "" while a character is not complete.
        votes: heads of the steering that flag.
        edited: heads that were edited; none on the plain side.
        displacement: length of the edits, summed over heads; 0 on the plain side.
    """

    kind: ClassVar[str] = "token"
    side: str
    index: int
    text: str
    votes: tuple[HeadSite, ...]
    edited: tuple[HeadSite, ...]
    displacement: float


@dataclass(frozen=True)
class TokenKL:
    """KL in nats from the plain to the steered model at tokens of the steered answer, from token `first` on."""

    kind: ClassVar[str] = "kl"
    first: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """The end of an answer.

    Attributes:
        side: "plain" or "steered".
        text: of the answer, as `generate_answers` gives it.
        n_tokens: of the answer; later ones are cut off with the stop string.
        ended: "end" (the model's end token), "stop" (a stop string) or "limit".
        seconds: that the answer took.
    """

    kind: ClassVar[str] = "answer"
    side: str
    text: str
    n_tokens: int
    ended: str
    seconds: float


class _Row:
    """One text that the model reads piece by piece, on a KV cache."""

    def __init__(self, model: TransformerBridge) -> None:
        self._model: Any = model.original_model
        self._device = model.cfg.device
        self._cache: Any = None

    def read(self, ids: Sequence[int]) -> Float[Tensor, "pos vocab"]:
        with torch.no_grad():
            tokens = torch.tensor([list(ids)], device=self._device)
            output = self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        require_numbers(are_numbers(output.logits[:, -1]))
        return output.logits[0]


class _Edits:
    """Votes and edits at the last position of a pass."""

    def __init__(self) -> None:
        self.votes: list[HeadSite] = []
        self.edited: list[HeadSite] = []
        self.displacement = 0.0

    def add(self, edit: LayerEdit, *, applied: bool) -> None:
        sites = [HeadSite(edit.layer, head) for head in edit.heads.tolist()]
        self.votes += [site for site, flag in zip(sites, edit.flagged[0, -1].tolist()) if flag]
        if applied:
            self.edited += [site for site, is_open in zip(sites, edit.gated[0, -1].tolist()) if is_open]
            self.displacement += float(edit.displacement[0, -1].norm(dim=-1).sum())


def stream_answer(
    model: TransformerBridge,
    prompt: Prompt,
    steering: Steering | None,
    *,
    side: str,
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> Iterator[Token | TokenKL | Answer]:
    """Generate a greedy answer; its text is that of `generate_answers` with temperature 0.

    Between two events the model carries no hook: other passes may run there, and the rest may be left out.

    Args:
        model: from `load_model`.
        prompt: text to continue.
        steering: on the plain side it votes and edits nothing; None for neither votes nor edits.
        side: "plain" or "steered".
        max_new_tokens: tokens of the answer at most.
        stop: strings at which the answer ends.

    Raises:
        DataError: a prompt without tokens, or that leaves no room for the answer in the context.
        RadiantError: logits that are not numbers, or another thread is steering the model.
    """
    start = time.perf_counter()
    prompt_ids = encode(model, [prompt], n_new=max_new_tokens)[0].ids
    row, compared = _Row(model), _Comparison(model, prompt_ids) if side == STEERED and steering is not None else None
    ends, tokenizer = _end_tokens(model), _Decoder(model)
    ids, ended = list(prompt_ids), "limit"
    for index in range(max_new_tokens):
        logits, edits = _read(model, row, ids, steering, change=side == STEERED)
        token = int(logits.argmax())
        ids, piece, length = [token], tokenizer.add(token), float(f"{edits.displacement:.4g}")
        yield Token(side, index, piece, tuple(edits.votes), tuple(edits.edited), length)
        if compared is not None:
            yield from compared.add(token, logits)
        if token in ends or has_ended(tokenizer.text, stop):
            ended = "end" if token in ends else "stop"
            break
    if compared is not None:
        yield from compared.rest()
    answer = cut_answer(tokenizer.text, stop)
    yield Answer(side, answer, tokenizer.count_within(answer), ended, round(time.perf_counter() - start, 2))


def _read(
    model: TransformerBridge, row: _Row, ids: Sequence[int], steering: Steering | None, *, change: bool
) -> tuple[Float[Tensor, " vocab"], _Edits]:
    """Read tokens; returns the logits of the next one, with the edits at the last token."""
    edits = _Edits()
    if steering is None:
        return row.read(ids)[-1].float(), edits
    if not change:
        with _Watching(model, steering, edits):
            return row.read(ids)[-1].float(), edits
    # The explorer has checked the steering against the model; hashing the weights at every token would be slow.
    with steer(model, steering, trace=True, allow_mismatch=True) as trace:
        logits = row.read(ids)[-1].float()
    for record in trace.records:
        edits.add(record.edit, applied=True)
    return logits, edits


class _Watching:
    """Hooks that record the votes of a steering at the last position, and change nothing."""

    def __init__(self, model: TransformerBridge, steering: Steering, edits: _Edits) -> None:
        self._points = {layer: head_hook(model, layer) for layer in steering.hooked_layers}
        self._steering, self._edits, self._displace = steering, edits, steering.displacing()

    def __enter__(self) -> None:
        for layer, point in self._points.items():
            # A level of its own: `remove_hooks` takes away those of one level, and users have others.
            point.add_hook(self._record(layer), level=id(self))

    def __exit__(self, *error: object) -> None:
        for point in self._points.values():
            point.remove_hooks(level=id(self))

    def _record(self, layer: int) -> Any:
        def record(z: Tensor, hook: object) -> Tensor:
            edit = self._displace(z[:, -1:].detach(), layer)
            if layer in self._steering.layers:
                self._edits.add(edit, applied=False)
            return z

        return record


class _Comparison:
    """KL at the tokens of a steered answer: the plain model reads the same tokens, a few at a time."""

    def __init__(self, model: TransformerBridge, prompt_ids: Sequence[int]) -> None:
        self._row, self._unread = _Row(model), list(prompt_ids)
        # The newest token predicts nothing yet, so it is not read before the next one comes.
        self._newest: list[int] = []
        self._steered: list[Tensor] = []
        self._n = 0

    def add(self, token: int, logits: Float[Tensor, " vocab"]) -> Iterator[TokenKL]:
        """Take in a token with the logits that predicted it."""
        self._unread += self._newest
        self._newest = [token]
        self._steered.append(logits)
        if len(self._steered) == TOKENS_AT_ONCE:
            yield from self.rest()

    def rest(self) -> Iterator[TokenKL]:
        """Compare the tokens that were taken in since the last time."""
        n = len(self._steered)
        if n == 0:
            return
        ids, self._unread = self._unread, []
        plain = self._row.read(ids)[-n:].float().log_softmax(-1)
        kl = token_kl(plain, torch.stack(self._steered).log_softmax(-1))
        first, self._n, self._steered = self._n, self._n + n, []
        yield TokenKL(first, tuple(float(f"{max(value, 0.0):.4g}") for value in kl.tolist()))


class _Decoder:
    """Text of tokens that come one by one."""

    def __init__(self, model: TransformerBridge) -> None:
        self._tokenizer: Any = model.tokenizer
        self._ids: list[int] = []
        self._ends: list[int] = []
        self._shown = ""
        self.text = ""

    def add(self, token: int) -> str:
        """Return what the token adds; a character of several tokens comes with the last of them."""
        self._ids.append(token)
        self.text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        complete = self.text.rstrip("\ufffd")
        piece = complete[len(self._shown) :] if complete.startswith(self._shown) else ""
        self._shown += piece
        self._ends.append(len(self._shown))
        return piece

    def count_within(self, answer: str) -> int:
        """Return the number of tokens that begin within an answer that was cut out of the text."""
        last = len(self.text) - len(self.text.lstrip()) + len(answer)
        return sum(start < last for start in [0, *self._ends[:-1]])


def _end_tokens(model: TransformerBridge) -> set[int]:
    """Tokens at which `generate` ends an answer."""
    tokenizer: Any = model.tokenizer
    ends: Any = getattr(model.cfg, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return set(ends) if isinstance(ends, (list, tuple)) else {ends}
