"""Other libraries and ours at the same tasks in the same run: `python tests/benchmarks/peers.py --environments FOLDER`.

Tasks: keep the activations at 60 answers' tokens; generate at batch 8 with an edit in one middle layer, and in all of
them; load a model. Each library runs in a process of its own and, where its requirements conflict with ours, in an
environment of its own that is made in FOLDER; one that does not install has the error as its row. Libraries take
turns with radiant_lens, in an order drawn anew for every task. All have the same weights, precision, texts and
batches, one thread, and are timed by the processor time of their process. Values are compared with those of plain
PyTorch hooks before anything is timed. Two further tables compare LEACE with concept-erasure's, and detectors with
scikit-learn's probes (`peer_code/probes.py`).

`--page` writes tables and versions into a page of the documentation and `--picture` draws the figure; with `--only` and
nothing after it they are made of the numbers in `--results`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.peer_code import environments, picture, probes, tables
from benchmarks.peer_code.process import Worker
from benchmarks.peer_code.work import prepare

import radiant_lens as rl

OURS, PLAIN = "radiant_lens", "transformers"
# Those in our own environment have no packages to install.
PEERS = {
    PLAIN: (),
    "transformer_lens": (),
    "steering_vectors": ("steering-vectors",),
    "repeng": ("repeng",),
    "nnsight": ("nnsight",),
    "pyvene": ("pyvene",),
}
EDITS = {OURS: ("head", "heads", "gated head", "gated heads")}
RESIDUAL = ("layer", "layers")


def tasks_of(library: str) -> tuple[str, ...]:
    return ("capture", "unsteered", *EDITS.get(library, RESIDUAL))


def distance(values: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest relative distance of a token's values from the reference; infinite if they are of another shape."""
    values = values.flatten(2)[:, : reference.shape[1]]
    if values.shape != reference.shape:
        return float("inf")
    values, reference = values.double().flatten(1), reference.double().flatten(1)
    return float(((values - reference).norm(dim=1) / reference.norm(dim=1)).max())


class Group:
    """Workers of several libraries that take turns; `errors` has those that failed, and they take no further part."""

    def __init__(self, names: list[str], pythons: dict[str, str], work: Path) -> None:
        self.workers: dict[str, Worker] = {}
        self.errors: dict[str, str] = {}
        for name in names:
            self._try(name, lambda name=name: self.workers.update({name: Worker(pythons[name], name, work)}))

    def values(self) -> dict[str, dict[str, torch.Tensor]]:
        """The result of every task, which also warms the workers up."""
        results: dict[str, dict[str, torch.Tensor]] = {}
        for name, worker in list(self.workers.items()):
            self._try(name, lambda n=name, w=worker: results.update({n: {t: w.values(t) for t in tasks_of(n)}}))
        return results

    def turns(self, n_turns: int) -> dict[str, dict[str, list[float]]]:
        """Seconds of every task, turn by turn; in each turn the libraries do a task in an order of its own."""
        seconds = {name: {task: [] for task in tasks_of(name)} for name in self.workers}
        draw = random.Random(0)
        for _ in range(n_turns):
            for i in range(max(map(len, map(tasks_of, self.workers)))):
                for name in draw.sample(sorted(self.workers), len(self.workers)):
                    for task in tasks_of(name)[i : i + 1]:
                        seconds[name][task].append(self.workers[name].run(task)["seconds"])
        return seconds

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()

    def _try(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except (KeyError, RuntimeError) as error:
            self.errors[name] = str(error)
            self.workers.pop(name, None)


def alone(python: str, library: str, work: Path) -> dict[str, Any]:
    """Peaks of memory, and seconds to start, of processes that do one thing."""
    peaks, starts, versions = {}, [], {}
    for task in ("capture", tasks_of(library)[3]):
        # Edits of ours need no bridge, so that none is loaded for them.
        lazy = library == OURS and task != "capture"
        worker = Worker(python, library, work, lazy=lazy)
        peaks[task] = worker.run(task)["peak"]
        worker.close()
        versions = worker.ready["versions"]
        starts += [] if lazy else [worker.ready["seconds"]]
    return {"peaks": peaks, "starts": starts, "versions": versions}


def check(values: dict[str, dict[str, torch.Tensor]], plain: dict[str, torch.Tensor], n_prompt: int) -> dict[str, Any]:
    """How far each library's values are from those of plain hooks, and what share of new tokens agrees."""
    results = {}
    for name, by_task in values.items():
        row: dict[str, Any] = {"capture": distance(by_task["capture"], plain[tables.captures(name)])}
        for task in by_task.keys() & set(RESIDUAL):
            row[task] = float((by_task[task] == plain[task])[:, n_prompt:].double().mean())
        row["changed"] = {
            task: float((result != by_task["unsteered"])[:, n_prompt:].double().mean())
            for task, result in by_task.items()
            if task not in ("capture", "unsteered")
        }
        results[name] = row
    return results


def reference(group: Group, values: dict[str, torch.Tensor], kept: list[int]) -> dict[str, torch.Tensor]:
    """Values of plain hooks, by what libraries capture."""
    residual = group.workers[PLAIN].values("residual")
    # repeng reads the output of the last block after the norm that follows it, so that one is left out.
    last = residual[torch.tensor(kept).cumsum(0) - 1, :-1]
    named = {"all heads": values["capture"], "residual stream": residual, "residual stream, last tokens": last}
    return values | named


def measure(
    pythons: dict[str, str], peers: list[str], file: Path, n_turns: int, n_together: int
) -> dict[str, dict[str, Any]]:
    """Everything of one precision, by library; ours is measured again with every group of peers."""
    work = json.loads(file.read_text())
    results: dict[str, dict[str, Any]] = {OURS: {"seconds": [], "starts": []}}
    plain: dict[str, torch.Tensor] = {}
    # Plain hooks come first, because the values of all others are compared with theirs.
    order = [PLAIN, *(name for name in peers if name != PLAIN)]
    for i in range(0, len(order), n_together):
        group = Group([OURS, *order[i : i + n_together]], pythons, file)
        starts = {name: worker.ready["seconds"] for name, worker in group.workers.items()}
        try:
            values = group.values()
            plain = plain or reference(group, values[PLAIN], work["kept"])
            checks = check(values, plain, work["n_prompt"])
            seconds = group.turns(n_turns)
        finally:
            group.close()
        results[OURS]["seconds"].append(seconds[OURS])
        results[OURS]["check"] = checks[OURS]
        results[OURS]["starts"].append(starts[OURS])
        results |= {name: {"error": error} for name, error in group.errors.items()}
        for name in seconds.keys() - {OURS}:
            row = alone(pythons[name], name, file)
            row["starts"].append(starts[name])
            results[name] = {"seconds": seconds[name], "ours": seconds[OURS], "check": checks[name], **row}
        print(json.dumps(results), file=sys.stderr, flush=True)
    ours = alone(pythons[OURS], OURS, file)
    results[OURS] |= {**ours, "starts": results[OURS]["starts"] + ours["starts"]}
    return results


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure every precision; a library that does not install has its error in place of numbers."""
    data = rl.load_dataset(options.data)
    work = prepare(options.model, data, folder, n_texts=options.texts, n_new=options.new)
    pythons, errors = {OURS: sys.executable}, {}
    for name in options.peers:
        try:
            packages = PEERS[name]
            pythons[name] = environments.make(options.environments / name, packages) if packages else sys.executable
        except RuntimeError as error:
            errors[name] = {"error": str(error)}
    results: dict[str, Any] = {"work": {key: work[key] for key in ("n_tokens", "n_prompt", "kept")}}
    for dtype in options.dtypes:
        file = folder / f"{dtype}.json"
        file.write_text(json.dumps({**work, "dtype": dtype}))
        peers = [name for name in options.peers if name in pythons]
        results[f"work {dtype}"] = {"n_new": options.new}
        results[dtype] = errors | measure(pythons, peers, file, options.turns, options.together)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", default="misconceptions", help="data set of the package, or a file")
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--together", type=int, default=3, help="peers that take turns with ours at a time")
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--new", type=int, default=12, help="new tokens of each of 8 prompts")
    parser.add_argument("--results", type=Path, default=Path("peers.json"), help="all numbers, added to what is there")
    parser.add_argument("--only", nargs="*", default=["tasks", "probes"], choices=["tasks", "probes"])
    parser.add_argument("--page", type=Path, help="Markdown file with the tables between its comments")
    parser.add_argument("--picture", type=Path, help="SVG file for the figure")
    options = parser.parse_args()
    if options.environments is None and any(PEERS[name] for name in options.peers):
        parser.error("--environments is needed for peers that are installed in their own")
    torch.set_num_threads(1)
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    if "tasks" in options.only:
        with tempfile.TemporaryDirectory() as folder:
            results |= run(options, Path(folder))
    if "probes" in options.only:
        results["probes"] = probes.compare(options.model, options.data, options.turns)
    options.results.write_text(json.dumps(results))
    text = tables.page(results)
    print(text)
    if options.page is not None:
        tables.replace(options.page, text)
    if options.picture is not None:
        options.picture.write_text(picture.draw(results))


if __name__ == "__main__":
    main()
