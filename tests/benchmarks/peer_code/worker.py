"""One library in a process of its own, and in its own environment: it runs a task for each line of its input.

`python worker.py LIBRARY WORK [--lazy]`; WORK is a JSON file with the model's folder, precision, texts, prompts and
directions. With `--lazy` nothing is loaded before a task needs it. It answers each line with one line of JSON. Seconds
are processor time of the process, since other work shares the cores. A task is done by the functions in
`with_LIBRARY.py`, which are what a user writes.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.peer_code import with_transformers


def code_of(library: str) -> Any:
    """The module with the library's tasks."""
    return importlib.import_module(f"benchmarks.peer_code.with_{library}")


class Tasks:
    """What a worker is asked for, by name; each is a function that returns a tensor."""

    def __init__(self, library: str, work: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(1)
        self.code, self.work = code_of(library), work
        self.dtype = getattr(torch, work["dtype"])

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The library's model and tokenizer."""
        return self.code.load(self.work["folder"], self.dtype)

    @cached_property
    def plain(self) -> tuple[Any, Any]:
        """A Hugging Face model without anything on it, and its tokenizer."""
        return with_transformers.load(self.work["folder"], self.dtype)

    def find(self, task: str) -> Callable[[], Any]:
        """A task, with everything loaded that it needs."""
        if task in ("capture", "residual"):
            model, tokenizer = self.loaded
            return lambda: getattr(self.code, task)(model, tokenizer, self.work["batches"])
        options = {"max_new_tokens": self.work["n_new"], "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        prompts = self.work["prompts"]
        if task == "unsteered":
            model, tokenizer = self.plain
            return lambda: model.generate(**tokenizer(prompts, return_tensors="pt"), **options)
        (model, tokenizer), edit = self._edit(self.work["edits"][task])
        return lambda: self.code.generate(model, tokenizer, prompts, edit, options)

    def _edit(self, file: str) -> tuple[tuple[Any, Any], Any]:
        """The model to edit, and directions by layer or a steering."""
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file

            vectors = {int(layer): vector.to(self.dtype) for layer, vector in load_file(file).items()}
            return self.loaded, dict(sorted(vectors.items()))
        import radiant_lens as rl

        return self.plain, rl.Steering.load(file)


def resident(field: str) -> float:
    """Resident memory in MiB: `VmRSS` now, `VmHWM` at its peak."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def versions(library: str) -> dict[str, str]:
    names = ("torch", *code_of(library).PACKAGES)
    return {name: importlib.metadata.version(name) for name in names}


def answer(tasks: Tasks, request: dict[str, Any]) -> dict[str, Any]:
    """Run a task once. A reset of the peak before it needs Linux."""
    run = tasks.find(request["task"])
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.process_time()
    result = run()
    seconds = time.process_time() - begin
    if "values" in request:
        from safetensors.torch import save_file

        save_file({"values": result.detach().contiguous().clone()}, request["values"])
    return {"seconds": seconds, "before": before, "peak": resident("VmHWM")}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print goes to the errors, so that answers alone are read.
    os.dup2(2, 1)
    library, work = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    tasks = Tasks(library, work)
    if "--lazy" not in sys.argv:
        _ = tasks.loaded
    ready = {"seconds": time.process_time(), "peak": resident("VmHWM"), "versions": versions(library)}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(tasks, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
