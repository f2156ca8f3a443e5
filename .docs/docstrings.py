"""A Griffe extension: our docstrings as its Google parser reads them."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

# "    n_samples, seed: of the generation.", with the lines indented further that continue it.
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+)(:.*(?:\n\1 +.*)*)", re.M)


def split_shared(text: str) -> str:
    """Repeat a description for each of the names before its colon: "a, b: numbers." gives two entries."""
    return _SHARED.sub(lambda m: "\n".join(f"{m[1]}{name}{m[3]}" for name in m[2].split(", ")), text)


class OurDocstrings(Extension):
    """Arguments that share a description get an entry each, and `Example:` is a section of code."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the text before it is parsed."""
        if obj.docstring:
            text = split_shared(obj.docstring.value)
            # Its parser knows the plural only; it reads the singular as text, in which brackets are links.
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
