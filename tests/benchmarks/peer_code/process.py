"""`Worker`: a process that runs `worker.py` for one library."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}


class Worker:
    """A library that is loaded and waits for tasks.

    Raises:
        RuntimeError: the process ended; with the end of what it printed.
    """

    def __init__(self, python: str, library: str, work: Path, *, lazy: bool = False) -> None:
        # Open as long as the worker is.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        script = str(Path(__file__).with_name("worker.py"))
        self._process = subprocess.Popen(
            [python, "-W", "ignore", script, library, str(work), *["--lazy"] * lazy],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **ONE_THREAD, **OFFLINE},
        )
        self.ready = self._answer()

    def run(self, task: str, **options: str) -> dict[str, Any]:
        """Run a task once: seconds of processor time, and resident memory before it and at its peak, in MiB."""
        assert self._process.stdin is not None
        # A worker that has ended says why in its errors, which `_answer` reads.
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"task": task, **options}), file=self._process.stdin, flush=True)
        return self._answer()

    def values(self, task: str) -> torch.Tensor:
        """Run a task once, for its result."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "values.safetensors"
            self.run(task, values=str(file))
            return load_file(file)["values"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            self._errors.seek(0)
            lines = [line for line in self._errors.read().splitlines() if line.strip()]
            self._errors.close()
            raise RuntimeError(lines[-1] if lines else f"exit code {self._process.returncode}")
        return json.loads(line)
