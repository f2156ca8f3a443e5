"""Which share of the work is this process's, under `torchrun` or `accelerate launch`."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

# A rank may wait for a slower one as long as that works; one that has died is noticed at once.
PATIENCE = timedelta(days=7)


class Rank(NamedTuple):
    """The `number` of this process, counted from 0, among `n`."""

    number: int
    n: int

    def wait(self) -> None:
        """Go on when every rank has come here; an error where one has died."""
        if self.n > 1:
            dist.barrier()


def this_rank() -> Rank:
    """This process among those that were launched together; alone if it was launched by itself.

    Joins the group of processes that the launcher's environment names, unless the script has done so already.
    """
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo", timeout=PATIENCE)
    if dist.is_available() and dist.is_initialized():
        return Rank(dist.get_rank(), dist.get_world_size())
    return Rank(0, 1)
