"""Commands and the processes of one launch: which commands share their work, and which refuse several processes."""

from __future__ import annotations

from radiant_lens.distributed import launched
from radiant_lens.errors import InvalidArgumentError

SHARED = ("collect", "generate", "evaluate", "ablate")
"""Commands that share their work among the processes of one launch."""


def require_one_process(command: str, hint: str) -> None:
    """Refuse several processes: they would write the same files over each other.

    Raises:
        InvalidArgumentError: several processes were launched.
    """
    n = launched().n
    if n > 1:
        raise InvalidArgumentError(f"{command} runs in one process; {n} were launched. {hint}")
