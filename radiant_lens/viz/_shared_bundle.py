"""One copy of a script for all views of a notebook."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


class SharedBundle:
    """Decides which cells of a notebook carry the script that all views need.

    All outputs of a notebook are one page in JupyterLab, VS Code and exported HTML, so the first cell with a view
    carries the script for the others. Three cases need another copy:

    1. The cell runs again: its old output, with the script, is gone.
    2. A later cell runs again. The reason may be that the cell with the script was deleted.
    3. Colab, where each output is a page of its own.

    Cells are told apart by their source, which every front end has. Two cells of the same source count as one that runs
    again, which costs a copy and no more.
    """

    def __init__(self) -> None:
        self._carrier = ""
        self._seen: set[str] = set()
        self._execution: tuple[int, str] | None = None

    def is_due(self) -> bool:
        """Return whether the view that is shown now must bring the script, and remember the cell."""
        execution = _running_cell()
        # Outside a notebook, and where each output is a page of its own, every view is complete.
        if execution is None or "google.colab" in sys.modules:
            return True
        # A second view of the cell that runs: the first has brought the script, or found it elsewhere.
        if execution == self._execution:
            return False
        self._execution, source = execution, execution[1]
        if not self._carrier or source == self._carrier:
            # The first view, or a new pass over the notebook: cells below find the script in this one.
            self._carrier, self._seen = source, set()
            return True
        runs_again = source in self._seen
        self._seen.add(source)
        return runs_again


def _running_cell() -> tuple[int, str] | None:
    """Number and source of the cell that runs; None outside IPython."""
    # A script has not imported IPython; importing it here would cost a second.
    if "IPython" not in sys.modules:
        return None
    shell: Any = import_module("IPython").get_ipython()
    return None if shell is None else (shell.execution_count, str(shell.user_ns.get("In", [""])[-1]))
