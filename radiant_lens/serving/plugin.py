"""The plugin that vLLM loads in each of its processes (entry point `vllm.general_plugins`).

It changes five methods of vLLM, each so that it does what it did before and one thing more. Without steerings in the
configuration of an engine (`engine_config`), the one thing more is nothing.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from radiant_lens.errors import MissingPackageError
from radiant_lens.serving.versions import require_vllm

_REGISTERED: list[bool] = []


def register() -> None:
    """Change the methods; once in each process, however often vLLM calls this."""
    if _REGISTERED:
        return
    _REGISTERED.append(True)
    try:
        require_vllm()
    except MissingPackageError as error:
        # Not raised: a vLLM without steerings must go on. `engine_config` raises it.
        logging.getLogger("vllm.radiant_lens").warning("The plugin of radiant-lens is off. %s", error)
        return
    _change_frontend()
    _change_prefix_cache()
    _change_workers()


def _change_frontend() -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import (  # pyright: ignore[reportMissingImports]  # not in .venv
        ChatCompletionRequest,
    )
    from vllm.entrypoints.openai.completion.protocol import (  # pyright: ignore[reportMissingImports]  # not in .venv
        CompletionRequest,
    )
    from vllm.entrypoints.openai.models.serving import (  # pyright: ignore[reportMissingImports]  # not in .venv
        ModelCard,
        OpenAIServingModels,
    )
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]  # not in .venv
    from vllm.sampling_params import BeamSearchParams, SamplingParams  # pyright: ignore[reportMissingImports]  # not in .venv
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore[reportMissingImports]  # not in .venv

    from radiant_lens.serving.frontend import check_requests, list_steerings, refuse_steered_beams

    check_requests(InputProcessor, SamplingParams, BeamSearchParams, VLLMValidationError)
    for request_class in (CompletionRequest, ChatCompletionRequest):
        refuse_steered_beams(request_class, VLLMValidationError)
    list_steerings(OpenAIServingModels, ModelCard)


def _change_prefix_cache() -> None:
    from vllm.v1.core import kv_cache_utils  # pyright: ignore[reportMissingImports]  # not in .venv

    from radiant_lens.serving import kept_rows, requests

    # Of the functions that make a block's key this one alone gets the request and the place of the block, and is looked
    # up at every call. `test_edited_blocks_are_not_reused` fails if vLLM no longer calls it.
    make_keys = kv_cache_utils._gen_prompt_embeds_extra_hash_keys

    @functools.wraps(make_keys)
    def make_keys_with_steering(request: Any, start: int, end: int) -> list[Any]:
        extra_args = request.sampling_params and request.sampling_params.extra_args
        keys = (
            requests.cache_key(extra_args, request.num_prompt_tokens, end),
            kept_rows.keep_key(extra_args, request.request_id, end),
        )
        return make_keys(request, start, end) + [key for key in keys if key is not None]

    kv_cache_utils._gen_prompt_embeds_extra_hash_keys = make_keys_with_steering


def _change_workers() -> None:
    from vllm.v1.worker.worker_base import WorkerWrapperBase  # pyright: ignore[reportMissingImports]  # not in .venv

    from radiant_lens.serving.worker import attach

    # The wrapper passes on what it lacks to the worker, and every executor of vLLM calls the wrapper.
    def load_model(self: Any, **options: Any) -> Any:
        result = self.worker.load_model(**options)
        attach(self.worker)
        return result

    WorkerWrapperBase.load_model = load_model
