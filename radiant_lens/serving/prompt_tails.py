"""Answers to one prompt share all of it, also where it ends within a block of vLLM's prefix cache.

The prefix cache shares whole blocks, of 32 tokens on CPUs, so each answer would compute the rest of its prompt again.
vLLM can begin a request within a block: it copies that block first and goes on in the copy. It does so for models with
several kinds of layers alone; here its manager of the cache is given such beginnings for collections.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiant_lens.serving.kept_rows import read_keep

MOST = 512
"""Blocks that are held at most; and a quarter of the cache, so that requests have room."""


def shared_prefix(tokens: Sequence[int], positions: Sequence[int] | NDArray[np.int64]) -> tuple[int, ...]:
    """The tokens of a text before the first that is kept; texts may share them, since nothing of them is kept."""
    return tuple(tokens[: positions[0]]) if len(positions) else ()


class PromptTails:
    """Blocks in which the shared prefixes of finished requests end, by the tokens of the prefix.

    Two facts make the copy right, and both are checked: the block is held, so that no request has written to it since;
    and all blocks before it are in the prefix cache.

    Args:
        manager: `KVCacheManager` of a scheduler in this process. With several kinds of layers it is left alone.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._blocks: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        managers = manager.coordinator.single_type_managers
        if not manager.enable_caching or len(managers) > 1:
            return
        self._size, self._of_requests = managers[0].block_size, managers[0].req_to_blocks
        self._most = min(MOST, manager.block_pool.num_gpu_blocks // 4)
        self._find, self._free = manager.get_computed_blocks, manager.free
        manager.get_computed_blocks, manager.free = self._find_with_tail, self._free_but_tail

    def release(self) -> None:
        """Give all blocks back to the cache."""
        self._manager.block_pool.free_blocks(self._blocks.values())
        self._blocks.clear()

    def _prefix(self, request: Any) -> tuple[int, ...]:
        """The prefix of a request that ends within a block; empty for others."""
        keep = read_keep((request.sampling_params and request.sampling_params.extra_args) or {})
        prefix = () if keep is None else shared_prefix(request.prompt_token_ids, keep.positions)
        return prefix if len(prefix) % self._size else ()

    def _find_with_tail(self, request: Any) -> Any:
        """Find the computed blocks of a request: where its last block is held, all of its prefix."""
        computed, n, boundary = self._find(request)
        prefix = self._prefix(request)
        block = self._blocks.get(prefix)
        if block is None or n != len(prefix) // self._size * self._size:
            return computed, n, boundary
        self._blocks.move_to_end(prefix)
        return self._manager.create_kv_cache_blocks(([*computed.blocks[0], block],)), len(prefix), boundary

    def _free_but_tail(self, request: Any) -> None:
        """Free the blocks of a request, but hold the one in which its prefix ends."""
        prefix = self._prefix(request)
        # A request that is preempted before its prefix is computed has nothing to share.
        if prefix and prefix not in self._blocks and request.num_computed_tokens >= len(prefix):
            block = self._of_requests[request.request_id][len(prefix) // self._size]
            self._manager.block_pool.touch([block])
            self._blocks[prefix] = block
            if len(self._blocks) > self._most:
                self._manager.block_pool.free_blocks([self._blocks.popitem(last=False)[1]])
        self._free(request)
