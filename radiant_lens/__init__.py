"""Detect undesirable content in attention heads and edit them, as little as possible, with a stated probability.

An implementation of RADIANT (arXiv 2501.15758) for TransformerLens: `load_model`, `load_dataset`,
`collect`, `RiskAwareDetector`, `RadiantPolicy`, `steer`, `evaluate`.

Names are imported when they are first used, so `import radiant_lens` loads neither torch nor TransformerLens.
`__init__.pyi` lists the names; type checkers and editors read them there.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("radiant-lens")
