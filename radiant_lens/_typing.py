"""Types that travel through the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

HookFunction = Callable[[Tensor, Any], Tensor]
"""`hook_fn(z, hook) -> z`, as TransformerLens calls it; `z` has axes `batch pos head d_head`."""
