"""The explorer as a widget of Jupyter, VS Code and Colab."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anywidget
import traitlets

from radiant_lens.analysis.effects import HeadEffects
from radiant_lens.analysis.steering import Steering
from radiant_lens.datasets.dataset import Dataset
from radiant_lens.detectors.detector import RiskAwareDetector
from radiant_lens.viz.explorer import assets
from radiant_lens.viz.explorer.engine import Engine
from radiant_lens.viz.explorer.explorer import Explorer
from radiant_lens.viz.explorer.messages import snapshot

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class ExplorerWidget(anywidget.AnyWidget):
    """The front end of an explorer in a notebook.

    Attributes:
        explorer: the state that is moved; `explorer.steering` is the steering as it is set.
    """

    _esm = assets.MODULE
    _css = assets.STYLE
    snapshot = traitlets.Dict().tag(sync=True)

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        super().__init__(snapshot=snapshot(explorer))
        self._engine = Engine(explorer, self.send)
        self._scheduled = False
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self.on_msg(self._receive)

    @property
    def steering(self) -> Steering | None:
        """The steering as it is set; None if every head is taken out."""
        return self.explorer.steering

    def _receive(self, _: object, message: object, buffers: object) -> None:
        self._engine.receive(message)
        if self._loop is None:
            while self._engine.turn():
                pass
            return
        # A kernel may deliver messages in another thread. The model is run by the thread of the cells alone, slice by
        # slice between them, so that no cell ever meets a model that the explorer is steering.
        self._loop.call_soon_threadsafe(self._schedule)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._turn()

    def _turn(self) -> None:
        assert self._loop is not None
        if self._engine.turn():
            # Not `call_soon`: the loop must get to the messages of the kernel in between.
            self._loop.call_later(0.001, self._turn)
        else:
            self._scheduled = False


def explore(
    model: TransformerBridge,
    steering: Steering,
    data: Dataset | None = None,
    *,
    detector: RiskAwareDetector | None = None,
    effects: HeadEffects | None = None,
    max_new_tokens: int = 20,
) -> ExplorerWidget:
    """Try a steering out by hand: heads, strength, budget of KL and gate, with plain and steered answers side by side.

    The result is a widget: let it be the last line of a cell. `.steering` is the steering as it is set. Answers are
    greedy, and the button "Copy as code" gives the code that reproduces them.

    The model is run between cells: while a cell runs, the widget waits.

    Args:
        model: from `load_model`.
        steering: from a policy's `fit`, or loaded.
        data: for examples, budgets of KL, and the tokens at which a head's score is largest. At most 96 of its
            statements are read, and the KL is measured on at most 32 desirable ones.
        detector: of the steering, for the risk of every head; without it, the risks that the steering records.
        effects: from `head_effects`, for the effect of each head.
        max_new_tokens: tokens of an answer at most.

    Raises:
        InvalidArgumentError: an object of another type, or a number out of its range.
        ModelMismatchError: a steering for another model.

    Example:
        >>> rl.explore(model, steering, data)  # doctest: +SKIP
    """
    explorer = Explorer(model, steering, data, detector=detector, effects=effects, max_new_tokens=max_new_tokens)
    return ExplorerWidget(explorer)
