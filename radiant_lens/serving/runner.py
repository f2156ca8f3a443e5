"""The news of each pass from a model runner of vLLM: the requests that begin and end, and the rows of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Request = TypeVar("Request")
_Request = TypeVar("_Request", contravariant=True)


class Follower(Protocol, Generic[_Request]):
    """Follows the requests of one model runner."""

    def add(self, request_id: str, request: _Request | None) -> None:
        """Remember a request that begins, or begins again after preemption; None for one that does not matter."""
        ...

    def remove(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended."""
        ...

    def fill(self, request_ids: Sequence[str], n_scheduled: NDArray[np.int_], n_computed: NDArray[np.int_]) -> None:
        """Read the rows of a pass: the requests in their order, the rows of each, and the tokens before these."""
        ...


def follow(
    runner: Any,
    follower: Follower[Request],
    read: Callable[[Any], Request | None],
    after: Callable[[Any], None] = lambda scheduler_output: None,
) -> None:
    """Have a model runner of vLLM, of either version, tell a follower of every pass.

    Args:
        runner: of a worker.
        follower: hears of requests before the pass in which they begin, and of its rows before the model runs.
        read: makes of a new request of vLLM what the follower needs of it.
        after: called with the output of the scheduler after each pass.
    """
    execute = runner.execute_model

    def execute_model(scheduler_output: Any, *args: Any, **options: Any) -> Any:
        follower.remove(scheduler_output.finished_req_ids)
        for new in scheduler_output.scheduled_new_reqs:
            follower.add(new.req_id, read(new))
        result = execute(scheduler_output, *args, **options)
        after(scheduler_output)
        return result

    runner.execute_model = execute_model
    if hasattr(runner, "prepare_inputs"):
        prepare = runner.prepare_inputs

        def prepare_inputs(*args: Any, **options: Any) -> Any:
            batch = prepare(*args, **options)
            follower.fill(batch.req_ids, batch.num_scheduled_tokens, batch.num_computed_tokens_np)
            return batch

        runner.prepare_inputs = prepare_inputs
        return
    prepare_v1 = runner._prepare_inputs

    def prepare_inputs_v1(scheduler_output: Any, n_scheduled: NDArray[np.int_]) -> Any:
        result, batch = prepare_v1(scheduler_output, n_scheduled), runner.input_batch
        follower.fill(batch.req_ids, n_scheduled, batch.num_computed_tokens_cpu[: len(n_scheduled)])
        return result

    runner._prepare_inputs = prepare_inputs_v1


def extra_args(new: Any) -> dict[str, Any]:
    """Extra arguments of a new request of vLLM; empty for one without."""
    return (new.sampling_params and new.sampling_params.extra_args) or {}
