"""A tiny random model in transformers and in vLLM, with the same steerings in both."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_models import random_model, tokenizer
from transformers import PreTrainedModel

import radiant_lens as rl
from radiant_lens.serving import engine_config

Choice = tuple[str, float] | None
"""Name and strength of a steering."""


def before_release(*values: str) -> list[Any]:
    """Values of a parameter that are tried before a release alone."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def make_model(model_type: str, folder: Path, **changes: Any) -> PreTrainedModel:
    """Saved in `folder`; its heads have a length that the attention of vLLM on CPUs can do."""
    model = random_model(model_type, **{"hidden_size": 128, "head_dim": 32, **changes})
    if model_type == "gemma3_text":
        # Gemma scales its embeddings up, so a random one repeats its prompt whatever its layers write.
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.05)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def prompts(n: int, *, longest: int = 60, seed: int = 0) -> list[list[int]]:
    """Of lengths from 1 to `longest`."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(1, longest, n).long().tolist()
    return [torch.randint(4, 50, (length,), generator=generator).tolist() for length in lengths]


class Engine:
    """An engine of vLLM in this process."""

    def __init__(self, vllm: Any, folder: Path, steerings: Mapping[str, rl.Steering], **options: Any) -> None:
        self._vllm, saved = vllm, folder.parent / f"{folder.name}-steerings"
        for name, steering in steerings.items():
            steering.save(saved / name)
        folders = {name: saved / name for name in steerings}
        named = {key: options.pop(key, None) for key in ("default", "trace_file")}
        config = engine_config(folders, **named)
        settings = {"enforce_eager": True, "max_model_len": 128, "max_num_seqs": 16, "block_size": 32, **options}
        self.llm = vllm.LLM(str(folder), dtype="float32", additional_config=config, seed=0, **settings)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        cleanup_dist_env_and_memory()

    @property
    def runner(self) -> Any:
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner

    def outputs(self, rows: Sequence[list[int]], choices: Sequence[Any], n_new: int = 12, **options: Any) -> list[Any]:
        def extra(choice: Any) -> dict[str, Any] | None:
            return {"steering": choice[0], "strength": choice[1]} if isinstance(choice, tuple) else choice

        settings = {"temperature": 0, "max_tokens": n_new, "ignore_eos": True, **options}
        sampling = [self._vllm.SamplingParams(extra_args=extra(choice), **settings) for choice in choices]
        return self.llm.generate([{"prompt_token_ids": row} for row in rows], sampling, use_tqdm=False)

    def answers(
        self, rows: Sequence[list[int]], choices: Sequence[Any], n_new: int = 12, **options: Any
    ) -> list[list[int]]:
        """New tokens of each row."""
        return [list(output.outputs[0].token_ids) for output in self.outputs(rows, choices, n_new, **options)]


def expected_answers(
    model: PreTrainedModel,
    steerings: Mapping[str, rl.Steering],
    rows: Sequence[list[int]],
    choices: Sequence[Choice],
    n_new: int = 12,
    edited: dict[str, torch.Tensor] | None = None,
) -> list[list[int]]:
    """The same through `rl.steer`; `edited` gets the number of edits of each layer and head, by steering."""
    answers: list[list[int]] = []
    for row, choice in zip(rows, choices):
        with ExitStack() as block, torch.no_grad():
            trace = None
            if choice is not None:
                name, strength = choice
                options: dict[str, Any] = {"strength": strength, "trace": edited is not None, "allow_mismatch": True}
                trace = block.enter_context(rl.steer(model, steerings[name], **options))
            # With a mask: without one, transformers takes answers that hold the padding token for padding.
            ids = torch.tensor([row])
            settings = {"attention_mask": torch.ones_like(ids), "min_new_tokens": n_new, "max_new_tokens": n_new}
            tokens = model.generate(ids, do_sample=False, eos_token_id=None, **settings)
        answers.append(tokens[0, len(row) :].tolist())
        if edited is not None and trace is not None:
            table = trace.to_dataframe()
            counts = edited.setdefault(choice[0], torch.zeros(steerings[choice[0]].scores.biases.shape))
            for (layer, head), gated in table.groupby(["layer", "head"])["gated"].sum().items():
                counts[layer, head] += gated
    return answers
