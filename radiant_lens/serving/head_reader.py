"""An engine of vLLM that returns the activations of heads at chosen positions of tokenized texts."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from radiant_lens.serving import plugin
from radiant_lens.serving.collecting_worker import CollectingWorker, KeptHeads
from radiant_lens.serving.kept_rows import KEEP, Keep
from radiant_lens.serving.prompt_tails import MOST, PromptTails, shared_prefix
from radiant_lens.serving.versions import require_vllm

_CLASS = f"{CollectingWorker.__module__}.{CollectingWorker.__qualname__}"


class HeadReader:
    """An engine of vLLM whose scheduler is in this process; its workers may be others (tensor or pipeline parallel).

    Args:
        path: folder or Hub id of a model.
        dtype: precision of the model.
        layers: layers to keep, ascending.
        longest: tokens of the longest text.
        options: further arguments of `vllm.LLM`.

    Raises:
        MissingPackageError: vLLM is not installed, or in another release.
        InvalidArgumentError, UnknownNameError: a model whose heads cannot be read in vLLM.
    """

    def __init__(
        self, path: str, dtype: torch.dtype, layers: Sequence[int], longest: int, options: Mapping[str, Any]
    ) -> None:
        require_vllm()
        from vllm import LLM  # pyright: ignore[reportMissingImports]  # vLLM has an environment of its own

        # The keys of the prefix cache must be ours, also where VLLM_PLUGINS leaves the plugin out.
        plugin.register()
        self._layers = tuple(layers)
        settings = {"max_model_len": longest + 1, "disable_log_stats": True, **_small_blocks(), **options}
        fixed = {"enforce_eager": True, "worker_extension_cls": _CLASS, "seed": 0}
        # In this process, so that activations need not be serialised on their way here. A text may fill the context:
        # vLLM wants room for one token more, which is sampled and never read.
        with _environment(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_ALLOW_LONG_MAX_MODEL_LEN="1"):
            self._engine: Any = LLM(path, dtype=str(dtype).removeprefix("torch."), **{**settings, **fixed})
        self._engine.collective_rpc("follow_heads", args=(self._layers,))
        self._tails = PromptTails(self._engine.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager)

    def read(
        self,
        tokens: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        z: Float[Tensor, "kept chosen head d_head"],
    ) -> None:
        """Copy the activations of texts at their positions (ascending) to `z`, text by text.

        What was not kept is NaN.
        """
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]  # not in .venv

        rows = accumulate(map(len, positions), initial=0)
        settings = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
        keeps = [Keep(row, np.asarray(own, dtype=np.int64)) for row, own in zip(rows, positions)]
        sampling = [SamplingParams(extra_args={KEEP: keep}, **settings) for keep in keeps]
        self._engine.collective_rpc("begin_keeping", args=(len(z),))
        prefixes = [shared_prefix(row, own) for row, own in zip(tokens, positions)]
        for texts in _in_phases(prefixes, MOST):
            prompts = [{"prompt_token_ids": list(tokens[i])} for i in texts]
            self._engine.generate(prompts, [sampling[i] for i in texts], use_tqdm=False)
        self._tails.release()
        join_parts(self._engine.collective_rpc("kept_heads"), self._layers, z)

    def close(self) -> None:
        """End the engine and free its memory."""
        self._engine.llm_engine.engine_core.shutdown()


def join_parts(parts: Sequence[KeptHeads], layers: Sequence[int], z: Float[Tensor, "kept chosen head d_head"]) -> None:
    """Copy what each process has kept, of its own layers and heads, to `z`, whose second axis has `layers`."""
    for own, first, rows in parts:
        places = [layers.index(layer) for layer in own]
        z[:, places, first : first + rows.shape[2]] = rows.to(z.dtype)


def _in_phases(prefixes: Sequence[tuple[int, ...]], size: int) -> Iterator[list[int]]:
    """Numbers of the texts to read together: of `size` texts first one with each prefix, then the others.

    A prefix is shared once a text that has it is done.
    """
    for begin in range(0, len(prefixes), size):
        first: dict[tuple[int, ...], int] = {}
        for i in range(begin, min(begin + size, len(prefixes))):
            first.setdefault(prefixes[i], i)
        others = sorted(set(range(begin, min(begin + size, len(prefixes)))) - set(first.values()))
        yield from (texts for texts in (list(first.values()), others) if texts)


def _small_blocks() -> dict[str, int]:
    """On CPUs, the smallest blocks of the prefix cache that vLLM has there: answers share whole blocks of a prompt."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]  # not in .venv

    return {"block_size": 32} if current_platform.is_cpu() else {}


@contextmanager
def _environment(**values: str) -> Generator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
