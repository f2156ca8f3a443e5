"""Tables of the page `results/peers.md`, and counts of the lines that a user writes."""

from __future__ import annotations

import ast
import importlib
import re
import statistics
from pathlib import Path
from typing import Any

OURS, PLAIN = "radiant_lens", "transformers"
NAMES = {
    OURS: "radiant_lens",
    PLAIN: "PyTorch hooks",
    "transformer_lens": "TransformerLens",
    "steering_vectors": "steering-vectors",
    "repeng": "repeng",
    "nnsight": "nnsight",
    "pyvene": "pyvene",
}
OUR_EDITS = {"everywhere": ("head", "heads"), "behind the vote gate": ("gated head", "gated heads")}
BEGIN, END = "<!-- tables -->", "<!-- /tables -->"


def captures(library: str) -> str:
    """What the library's code keeps of a pass."""
    return importlib.import_module(f"benchmarks.peer_code.with_{library}").CAPTURES


def function_lines(file: Path, name: str) -> int:
    """Lines of a function's body, without blank ones, comments and docstrings; helpers of `answer_tokens.py` count."""
    text = file.read_text()
    (function,) = (n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == name)
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    lines = text.splitlines()[body[0].lineno - 1 : function.end_lineno]
    n = sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))
    calls = {n.func.id for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    helper = file.with_name("answer_tokens.py")
    return n + (function_lines(helper, "answer_tokens") if "answer_tokens" in calls else 0)


def user_lines(library: str) -> tuple[int, int]:
    """Lines to load a model and capture, and to load one and generate with an edit."""
    file = Path(__file__).with_name(f"with_{library}.py")
    # Edits of ours are on a Hugging Face model, whose loading counts in place of the bridge's.
    edited = file.with_name(f"with_{PLAIN}.py") if library == OURS else file
    load = function_lines(file, "load")
    return load + function_lines(file, "capture"), function_lines(edited, "load") + function_lines(file, "generate")


def spread(values: list[float], digits: int = 2) -> str:
    """Median with the least and the largest."""
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low}, {high}]"


def ratios(top: list[float], bottom: list[float]) -> list[float]:
    return [a / b for a, b in zip(top, bottom)]


def rates(library: str, rows: dict[str, Any], work: dict[str, Any]) -> dict[str, list[float]]:
    """Capture in tokens a second, times ours in the same turn, and steered over unsteered speed."""
    if library == OURS:
        # Ours took turns with every group of libraries.
        groups = rows[OURS]["seconds"]
        seconds = ours = {task: [s for group in groups for s in group[task]] for task in groups[0]}
    else:
        seconds, ours = rows[library]["seconds"], rows[library]["ours"]
    result = {
        "capture": [work["n_tokens"] / s for s in seconds["capture"]],
        "over ours": ratios(ours["capture"], seconds["capture"]),
    }
    for task in seconds.keys() - {"capture", "unsteered"}:
        result[task] = ratios(seconds["unsteered"], seconds[task])
    return result


def library_rows(library: str, rows: dict[str, Any], work: dict[str, Any]) -> list[list[str]]:
    """Cells of one library; ours has a row for each gate."""
    row = rows[library]
    if "error" in row:
        return [[NAMES[library], "", row["error"].replace("|", "/"), *[""] * 8]]
    measured = rates(library, rows, work)
    over = "1" if library == OURS else spread(measured["over ours"])
    captured = [captures(library), spread(measured["capture"], 0), over]
    edited = "heads" if library == OURS else "layers"
    peaks = [f"{row['peaks'][task]:,.0f}" if task in row["peaks"] else "" for task in ("capture", edited)]
    start = [spread(row["starts"], 1), *map(str, user_lines(library))]
    if library != OURS:
        return [[NAMES[library], *captured, *(spread(measured[task]) for task in ("layer", "layers")), *peaks, *start]]
    cells = [[spread(measured[task]) for task in tasks] for tasks in OUR_EDITS.values()]
    first, second = (f"{NAMES[OURS]}, edits {gate}" for gate in OUR_EDITS)
    return [[first, *captured, *cells[0], *peaks, *start], [second, "", "", "", *cells[1], *[""] * 5]]


HEAD = (
    "library | keeps | capture, tokens/s | times ours | steered, one layer | steered, all layers | "
    "memory: capture, MiB | memory: steered, MiB | start-up, s | lines: capture | lines: steer"
)


def task_table(rows: dict[str, Any], work: dict[str, Any]) -> str:
    order = [OURS, *(name for name in NAMES if name in rows and name != OURS)]
    lines = [" | ".join(cells) for name in order for cells in library_rows(name, rows, work)]
    head, *body = (f"| {line} |" for line in (HEAD, *lines))
    return "\n".join([head, "|" + "-|" * (HEAD.count("|") + 1), *body])


def check_text(rows: dict[str, Any]) -> str:
    """How far values were from those of plain hooks, and what share of new tokens agreed."""
    parts = []
    for name, row in rows.items():
        if "check" not in row:
            continue
        result = row["check"]
        agreement = f", tokens {result['layer']:.0%} and {result['layers']:.0%}" if "layer" in result else ""
        parts.append(f"{NAMES[name]} {result['capture']:.1e}{agreement}")
    changed = ", ".join(f"{share:.0%}" for share in rows[OURS]["check"]["changed"].values())
    return f"{'; '.join(parts)}. Our four edits change {changed} of the new tokens"


def interval(values: list[float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*values)


def probe_table(probes: dict[str, Any]) -> str:
    lines = ["| probe | AUROC | error | seconds, all heads |", "|-|-|-|-|"]
    for name, row in probes["probes"].items():
        lines.append(f"| {name} | {interval(row['auroc'])} | {interval(row['error'])} | {spread(row['seconds'])} |")
    return "\n".join(lines)


def erasure_table(probes: dict[str, Any]) -> str:
    erasure = probes["erasure"]
    lines = ["| eraser | accuracy of a probe afterwards | seconds, all heads |", "|-|-|-|"]
    lines.append(f"| none | {interval(erasure['before'])} | |")
    for name in ("concept-erasure", "`rl.LEACEPolicy`"):
        row = erasure[name]
        lines.append(f"| {name} | {interval(row['accuracy'])} | {spread(row['seconds'])} |")
    return "\n".join(lines)


def versions(results: dict[str, Any]) -> str:
    rows = next(results[dtype] for dtype in ("bfloat16", "float32") if dtype in results)
    parts = []
    for name, row in rows.items():
        if "versions" in row:
            parts.append(f"{NAMES[name]}: " + ", ".join(f"{k} {v}" for k, v in row["versions"].items()))
    return "; ".join(parts) + "."


def page(results: dict[str, Any]) -> str:
    """All tables that there are numbers for."""
    parts = []
    for dtype in ("bfloat16", "float32"):
        if dtype in results:
            work, rows = results["work"] | results[f"work {dtype}"], results[dtype]
            title = f"### {dtype}: {work['n_tokens']:,} tokens of {len(work['kept'])} texts, {work['n_new']} new tokens"
            parts += [title, task_table(rows, work), f"Values against those of plain hooks: {check_text(rows)}."]
    if any(dtype in results for dtype in ("bfloat16", "float32")):
        parts.append(f"Versions: {versions(results)}")
    if "probes" in results:
        sizes = results["probes"]["sizes"]
        (n_train, n_test), (groups, held_out) = sizes["examples"], sizes["groups"]
        counts = f"{n_train} statements of {groups} questions, {n_test} of {held_out} held out, {sizes['heads']} heads"
        largest = f"{results['probes']['erasure']['difference']:.0e}"
        difference = f"The two maps differ by at most {largest} of the largest value."
        parts += [f"### Probes: `{Path(sizes['data']).name}`, {counts}", probe_table(results["probes"])]
        parts += ["### Erasure", erasure_table(results["probes"]), difference]
    return "\n\n".join(parts)


def replace(file: Path, text: str) -> None:
    """Write the tables between the comments of a page."""
    before = file.read_text()
    after = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}\n{END}", before, flags=re.DOTALL)
    if BEGIN not in before:
        raise ValueError(f"{file} has no comment {BEGIN}.")
    file.write_text(after)
