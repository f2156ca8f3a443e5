"""Names for the shapes that travel through the package, and the protocols that its parts ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor

HeadActivations = Float[Tensor, "example layer head d_head"]
"""What a `HeadCache` holds."""

Z = Float[Tensor, "batch pos head d_head"]
"""What a hook function at `hook_z` sees."""

HeadVectors = Float[Tensor, "layer head d_head"]
HeadScalars = Float[Tensor, "layer head"]
HeadFlags = Bool[Tensor, "example layer head"]
Labels = Int[Tensor, " example"]


class HookLike(Protocol):
    """What a hook function reads of the hook point that calls it."""

    name: str | None


HookFunction = Callable[[Tensor, Any], Tensor]
"""`hook_fn(z, hook) -> z`, as TransformerLens calls it."""
