"""lm-evaluation-harness: run any of its tasks on a steered model, as `--model radiant-lens`.

Importing this module registers the model. lm_eval 0.4.13 finds no models outside itself, so its command line is
started as `radiant-lens lm-eval ...`; later versions find the entry point that this package declares, and
`lm_eval --model radiant-lens ...` works directly.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radiant_lens import _checks
from radiant_lens.analysis.steering import Steering
from radiant_lens.errors import DataError, InvalidArgumentError, MissingPackageError
from radiant_lens.evaluation.generation import are_numbers, require_numbers
from radiant_lens.hooks._steer import steer
from radiant_lens.hooks.trace import Trace
from radiant_lens.models.identity import signature
from radiant_lens.models.loading import load_model
from radiant_lens.models.tokens import pad_rows, pad_token

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import simple_parse_args_string
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise MissingPackageError(
        f"radiant_lens.harness needs lm-evaluation-harness ({error}): pip install 'radiant-lens[harness]'."
    ) from error

# The harness registers its class with a decorator that has no type.
_HarnessModel: Any = HFLM

# A request as the harness passes it on: its text (None for a window of a long text), and the tokens of context and
# continuation.
Request = tuple[tuple[str, str] | None, list[int], list[int]]


class _Pass(NamedTuple):
    """A row of a forward pass: its tokens, where edits begin, and the position that predicts the first scored token."""

    tokens: tuple[int, ...]
    start: int
    first: int


class SteeredLM(_HarnessModel):
    """A model of the harness with a steering.

    Texts are truncated, scored and generated as by the harness's own `hf` model. Edits begin at the last token of the
    context, for each row by its own gate. A text that is scored as a whole (perplexity) is all continuation, so it is
    edited everywhere.

    Special tokens are those of the model's own tokenizer, as everywhere in this package: BOS begins a text if the
    tokenizer adds it, or as `prepend_bos` of `load_model` says. A chat that the harness renders
    (`--apply_chat_template`) has the special tokens that the chat template writes and no others, so no second BOS; nor
    is BOS added to any other text that begins with it. A text that is scored as a whole follows the prefix token, in
    place of its own BOS and not before it: `hf` reads two there, and scores the second.

    A `--use_cache` file of the harness does not record the model or the steering: use another file for each.

    Args:
        pretrained: anything that `load_model` takes: "tiny", a Hub id, a folder, or (from Python) a model or a bridge.
        steering: folder that `fit` or `demo` wrote, or a `Steering`; None for the unsteered model.
        device, dtype: as for `load_model`; dtype by its name, such as "bfloat16".
        batch_size: rows in a forward pass, or "auto".
        max_batch_size: the size from which "auto" goes down.
        max_length: tokens in the window, default the model's; longer contexts lose their beginning, and
            `n_truncated` counts them.
        max_gen_toks: new tokens if a task does not say; default 256, or half the window if that is less.
        add_bos_token: True or False to begin texts that are not chats with BOS or without it; None for the rule above.
        prefix_token_id: token in place of an empty context; default BOS, else EOS.
        think_end_token, enable_thinking, chat_template_args: as for `hf`.
        allow_mismatch: use a steering that was made for another model of the same shape.

    Attributes:
        bridge: the loaded model.
        steering: the steering or None.
        n_truncated: number of requests of each kind that lost the beginning of their context.

    Raises:
        ArtefactError: the folder holds no steering.
        ModelLoadError: the model cannot be loaded.
        ModelMismatchError: the steering was made for another model.

    Example:
        >>> model = SteeredLM("tiny", batch_size=8)
        >>> model.max_length, model.max_gen_toks
        (256, 128)
    """

    def __init__(
        self,
        pretrained: str | Path | PreTrainedModel | TransformerBridge = "tiny",
        *,
        steering: str | Path | Steering | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        think_end_token: str | int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        allow_mismatch: bool = False,
    ) -> None:
        if not str(batch_size).startswith("auto"):
            _checks.whole("batch_size", _number(batch_size), 1)
        if max_length is not None:
            _checks.whole("max_length", max_length, 2)
        if max_gen_toks is not None:
            _checks.whole("max_gen_toks", max_gen_toks, 1)
        self.steering = _load(steering)
        self.bridge = load_model(pretrained, device=device, dtype=dtype)
        self.n_truncated: Counter[str] = Counter()
        self._max_gen_toks, self._allow_mismatch = max_gen_toks, allow_mismatch
        self._chat_openings: set[str] = set()
        self._prefix_is_bos = False
        with self._steered():
            pass  # Raises for a steering of another model, before any task is loaded.
        super().__init__(
            pretrained=self.bridge.original_model,
            tokenizer=self.bridge.tokenizer,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            max_length=max_length,
            add_bos_token=add_bos_token,
            prefix_token_id=prefix_token_id,
            think_end_token=think_end_token,
            enable_thinking=enable_thinking,
            chat_template_args=chat_template_args,
        )

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> SteeredLM:
        """Create the model from `--model_args`.

        Raises:
            UnknownNameError: there is no option of that name.
        """
        # The harness drops unknown options without a word, and a typo in "steering" would run the unsteered model.
        known = list(inspect.signature(cls).parameters)
        for name in arg_dict:
            _checks.known("option of the model radiant-lens", name, known)
        config = dict(additional_config or {})
        # The harness's command line asks for CUDA by default, on machines without a GPU too.
        if str(config.get("device")).startswith("cuda") and not torch.cuda.is_available():
            config["device"] = None
        return super().create_from_arg_obj(arg_dict, config)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> SteeredLM:
        """Create the model from `--model_args` as one string: name=value,name=value."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def max_gen_toks(self) -> int:
        """New tokens if a task does not say how many."""
        return self._max_gen_toks or min(256, self.max_length // 2)

    def get_model_info(self) -> dict[str, Any]:
        """Return the information that the harness saves with its results."""
        return {
            **super().get_model_info(),
            "model_signature": signature(self.bridge),
            "steering": None if self.steering is None else repr(self.steering),
            "n_truncated": dict(self.n_truncated),
        }

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a chat as `hf` does, and remember how such chats begin."""
        text = super().apply_chat_template(chat_history, add_generation_prompt)
        # The harness passes text on without saying that it is a chat. The text before the first turn, such as
        # "<|im_start|>user\n", is the only sign of one (empty if the template begins with the turn itself). It
        # could fail for a plain text with the same opening, which does not occur where that has a special token.
        opening = text[: max(text.find(str(chat_history[0]["content"]).strip()), 0)] if chat_history else ""
        self._chat_openings |= {opening} - {""}
        return text

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Tokenize a text with the special tokens of the model's own tokenizer; see the class."""
        tokenizer: Any = self.tokenizer
        openings = tuple(self._chat_openings) + ((tokenizer.bos_token,) if tokenizer.bos_token else ())
        if add_special_tokens is False or (add_special_tokens is None and string.startswith(openings)):
            ids: list[int] = list(tokenizer.encode(string, add_special_tokens=False))
        else:
            ids = self._special_tokens(list(tokenizer.encode(string)))
        if self._prefix_is_bos and ids[:1] == [self.prefix_token_id]:
            ids = ids[1:]
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _special_tokens(self, ids: list[int]) -> list[int]:
        """Apply the rule of `models.tokens` to the ids of a text with the tokenizer's own special tokens."""
        tokenizer: Any = self.tokenizer
        bos: Any = tokenizer.bos_token_id
        if getattr(self.bridge.cfg, "tokenizer_appends_eos", False) and ids[-1:] == [tokenizer.eos_token_id]:
            # An end-of-text token before the continuation is not part of the text.
            ids = ids[:-1]
        with_bos = self.bridge.cfg.default_prepend_bos if self.add_bos_token is None else self.add_bos_token
        if bos is None or with_bos == (ids[:1] == [bos]):
            return ids
        return [bos, *ids] if with_bos else ids[1:]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Encode contexts to generate from, each by itself; an empty one becomes the prefix token."""
        rows = [self.tok_encode(string) or [self.prefix_token_id] for string in strings]
        if left_truncate_len is not None:
            self.n_truncated["generate_until"] += sum(len(row) > left_truncate_len for row in rows)
            rows = [row[-left_truncate_len:] for row in rows]
        tokens, mask = pad_rows(rows, pad_token(self.bridge), side=padding_side)
        return tokens, mask.long()

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        with self._steered():
            return super()._model_generate(context, max_length, stop, **generation_kwargs)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts; every token but BOS is scored once."""
        self._prefix_is_bos = True
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self._prefix_is_bos = False

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding gives it.

        Requests with the same pass, such as one-token answers to the same question, run it once.
        """
        by_pass: dict[_Pass, list[int]] = {}
        for i, request in enumerate(requests):
            by_pass.setdefault(self._pass(*request), []).append(i)
        # Longest first: memory runs out at once or never.
        passes = sorted(by_pass, key=lambda row: -len(row.tokens))
        n = override_bs or self._n_rows(requests)
        answers: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as progress:
            for batch in (passes[i : i + n] for i in range(0, len(passes), n)):
                for row, log_probs in zip(batch, self._log_probs(batch)):
                    for i in by_pass[row]:
                        text, _, continuation = requests[i]
                        answers[i] = _score(log_probs, continuation)
                        if text is not None:
                            self.cache_hook.add_partial("loglikelihood", text, answers[i])
                    progress.update(len(by_pass[row]))
        return [answers[i] for i in range(len(requests))]

    def _pass(self, text: tuple[str, str] | None, context: list[int], continuation: list[int]) -> _Pass:
        if not 1 <= len(continuation) <= self.max_length:
            raise DataError(
                f"A continuation must have 1 to {self.max_length} tokens; got {len(continuation)}: {text!r:.200}."
            )
        # The last token is predicted and never read, so the window holds one token more than the model reads.
        tokens = tuple(context + continuation)[-(self.max_length + 1) : -1]
        self.n_truncated["loglikelihood"] += len(tokens) < len(context) + len(continuation) - 1
        # Position `first` predicts the continuation's first token: it is the last one of the context.
        first = len(tokens) - len(continuation)
        return _Pass(tokens, 0 if text is None else first, first)

    def _n_rows(self, requests: Sequence[Request]) -> int:
        if self.batch_size != "auto":
            return self.batch_size
        longest = max(range(len(requests)), key=lambda i: len(requests[i][1]) + len(requests[i][2]), default=0)
        return self._detect_batch_size(requests, longest) if requests else 1

    def _log_probs(self, batch: Sequence[_Pass]) -> list[Float[Tensor, "_ vocab"]]:
        """Log-probabilities of each row at the positions that predict its continuation."""
        tokens, mask = pad_rows([row.tokens for row in batch], pad_token(self.bridge))
        tokens, mask = tokens.to(self.device), mask.long().to(self.device)
        with torch.no_grad(), self._steered([row.start for row in batch]):
            logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        scored = [logits[i, row.first : len(row.tokens)] for i, row in enumerate(batch)]
        # Only the scored positions: padding may be NaN in some precisions, and is never read.
        require_numbers(torch.stack([are_numbers(rows).all() for rows in scored]))
        return [rows.float().log_softmax(-1) for rows in scored]

    def _steered(self, start: Sequence[int] | None = None) -> AbstractContextManager[Trace | None]:
        if self.steering is None:
            return nullcontext()
        return steer(self.bridge, self.steering, start=start, allow_mismatch=self._allow_mismatch)


register_model("radiant-lens")(SteeredLM)


def run_command_line(arguments: Sequence[str]) -> None:
    """Run lm_eval's own command line with `radiant-lens` among its models."""
    before = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def _load(steering: str | Path | Steering | None) -> Steering | None:
    if steering is None or isinstance(steering, Steering):
        return steering
    if isinstance(steering, (str, Path)):
        return Steering.load(steering)
    raise InvalidArgumentError(f"`steering` must be a folder or a Steering; got {type(steering).__name__}.")


def _number(value: int | str) -> int | str:
    """A batch size from the command line is a string; as a number it can be checked."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _score(log_probs: Float[Tensor, "pos vocab"], continuation: Sequence[int]) -> tuple[float, bool]:
    target = torch.tensor(continuation, device=log_probs.device)
    total = log_probs.gather(1, target[:, None]).sum()
    return float(total), bool((log_probs.argmax(-1) == target).all())
