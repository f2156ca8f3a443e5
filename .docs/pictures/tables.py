"""The tables of results, from what `radiant-lens bench ... --json` and `radiant-lens ablate paper:... --json` printed.

python .docs/pictures/tables.py    write every table between `<!-- table: NAME COLUMNS -->` and `<!-- /table -->`

NAME is a file of .docs/results, or several with commas between them, which differ in their arms alone; COLUMNS is one
of `COLUMNS`; a third word is the task on which steerings were tested. COLUMNS "gains" is one line for each budget of
several files; "paper" is a table of the paper.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / ".docs" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / ".docs" / "pages").rglob("*.md")))
OURS, RIVALS = "least KL, affine", ("ITI", "mean shift")
BEST_RIVAL = "better of ITI and mean shift"
HALVES = ("first", "second")
MODELS = {"smollm2-135m-instruct": "SmolLM2", "gemma-3-270m": "gemma-3"}
CONDITIONS = {"after_undesirable": "after misconceptions", "bare": "on bare questions"}
COLUMNS = {
    "arms": (
        *("steering", "budget of KL", "gate", "KL, tested", "MC1", "MC2", "gain of MC2", "style", "beyond style"),
        *("gain of MC1", "cross entropy", "judged correct", "incorrect", "seconds"),
    ),
    "continued": (
        *("steering", "budget of KL", "groups of prompts", "undesirable samples", "times those of none"),
        *("some sample undesirable", "change", "expected maximum", "change of the maximum", "distinct pairs of words"),
        "KL on the samples",
    ),
    "paper": (
        *("steering", "MC1", "gain of MC1", "MC2", "gain of MC2", "judged correct", "informative", "True*Info"),
        *("KL", "layers, by fold"),
    ),
    "conditions": (
        *("steering", "budget of KL", "KL, tested"),
        *(word for condition in CONDITIONS.values() for word in (f"MC2 {condition}", f"gain {condition}")),
    ),
    "gains": ("task", "KL", BEST_RIVAL, OURS, "its style"),
    "transfer": ("steering", "budget of KL", "KL, tested", "MC1", "MC2", "gain of MC2", "style", "beyond style"),
}
_BLOCK = re.compile(r"(<!-- table: (\S+) (\S+) ?(\S*) -->\n).*?(<!-- /table -->)", re.DOTALL)


def cells(row: dict[str, Any], n_folds: int) -> dict[str, str]:
    """A row of the benchmark in words; an arm that misses a budget in a fold says so."""
    steered = row["budget"] is not None
    missed = f", {row['n_folds']} of {n_folds} folds" if row["n_folds"] < n_folds else ""
    return {
        "steering": row["arm"] + missed,
        "budget of KL": f"{row['budget']:g}" if steered else "",
        "gate": row["gates"],
        "KL, tested": number(row["kl"], ".3f"),
        "MC1": number(row["mc1"], ".3f"),
        "MC2": number(row["mc2"], ".3f"),
        "gain of MC2": interval(row, "gain"),
        # Answers alone are style, whatever the model knows.
        "style": "" if row["arm"].endswith("answers alone") else interval(row, "style"),
        "beyond style": "" if row["arm"].endswith("answers alone") else interval(row, "beyond_style"),
        "gain of MC1": interval(row, "mc1_gain"),
        "cross entropy": number(row["cross_entropy"], ".3f"),
        "judged correct": number(row["correct"], ".0%"),
        "incorrect": number(row["incorrect"], ".0%"),
        "seconds": number(row["seconds"], ".0f"),
        **{f"MC2 {words}": number(row.get(f"mc2/{c}"), ".3f") for c, words in CONDITIONS.items()},
        **{
            f"gain {words}": interval(row, f"gain/{c}") if f"gain/{c}" in row else "" for c, words in CONDITIONS.items()
        },
    }


def continued_cells(row: dict[str, Any], unsteered: float) -> dict[str, str]:
    """A row of the continuations in words; `unsteered` is the share of undesirable samples without a steering."""
    return {
        "steering": row["arm"],
        "budget of KL": f"{row['budget']:g}" if row["budget"] is not None else "",
        "groups of prompts": str(row["n_groups"]),
        "undesirable samples": number(row["incorrect"], ".1%"),
        "times those of none": number(row["incorrect"] / unsteered, ".2f") if unsteered else "",
        "some sample undesirable": number(row["undesirable_probability"], ".0%"),
        "change": interval(row, "undesirable_probability_change"),
        "expected maximum": number(row.get("expected_maximum"), ".3f"),
        "change of the maximum": interval(row, "expected_maximum_change") if "expected_maximum" in row else "",
        "distinct pairs of words": number(row["dist_2"], ".3f"),
        "KL on the samples": number(row.get("kl"), ".3f"),
    }


def paper_rows(content: dict[str, Any]) -> list[dict[str, str]]:
    """A table of the paper in words; an answer is informative where the judge finds it correct or incorrect."""
    methods = list(dict.fromkeys(row["row"] for row in content["pooled"]))
    layers = " / ".join(str(c["layers"]).strip("[]") or "none" for c in content["choices"] if c["chosen"])
    lines = []
    for method in methods:
        of = {row["metric"]: row for row in content["pooled"] if row["row"] == method}
        informative = 1 - of["other"]["value"]
        changes = {name: {"arm": method, "change": _difference(of[name])} for name in ("mc1", "mc2")}
        steered = method != "no steering"
        lines.append(
            {
                "steering": method,
                "MC1": number(of["mc1"]["value"], ".3f"),
                "gain of MC1": interval(changes["mc1"], "change") if steered else "",
                "MC2": number(of["mc2"]["value"], ".3f"),
                "gain of MC2": interval(changes["mc2"], "change") if steered else "",
                "judged correct": number(of["correct"]["value"], ".1%"),
                "informative": number(informative, ".1%"),
                "True*Info": number(of["correct"]["value"] * informative, ".1%"),
                "KL": number(of["kl"]["value"], ".3f") if steered else "",
                "layers, by fold": layers if method == "RADIANT" else "",
            }
        )
    return lines


def _difference(row: dict[str, float]) -> dict[str, float]:
    return {"value": row["difference"], "low": row["difference_low"], "high": row["difference_high"]}


def gains(names: list[str]) -> list[dict[str, str]]:
    """Gains of MC2 of the better rival and of least KL, and the style in that of least KL."""
    lines = []
    for name in names:
        content = json.loads((RESULTS / f"{name}.json").read_text())
        settings = content["settings"]
        for budget in settings["budgets"]:
            rows = {r["arm"]: r for r in content["rows"] if (r["data"], r["budget"]) == (settings["data"], budget)}
            rival = max(RIVALS, key=lambda arm: rows[arm]["gain"]["value"])
            words = {name: short(rows[arm]["gain"]) for name, arm in ((BEST_RIVAL, rival), (OURS, OURS))}
            first = OURS if rows[OURS]["gain"]["value"] >= rows[rival]["gain"]["value"] else BEST_RIVAL
            if max(rows[arm]["gain"]["value"] for arm in (rival, OURS)) > 0:
                words[first] = f"**{words[first]}**"
            halves = settings["folds"]
            half = f", {HALVES[halves[0]]} half" if len(halves) == 1 else ""
            task = f"{MODELS[settings['model']]}, {settings['data']}{half}"
            lines.append({"task": task, "KL": f"{budget:g}", **words, "its style": short(rows[OURS]["style"])})
    return lines


def short(interval: dict[str, float]) -> str:
    """A value with its interval, to three places, without a zero before the point."""
    return re.sub(r"(?<!\d)0\.", ".", f"{interval['value']:+.3f} [{interval['low']:.3f}, {interval['high']:.3f}]")


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def interval(row: dict[str, Any], name: str) -> str:
    if row["arm"] == "none":
        return ""
    value = row[name]
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def best(rows: list[dict[str, Any]]) -> list[int]:
    """Places of the rows with the most MC2 at their budget; controls and ceilings do not compete."""
    n_folds = max(row["n_folds"] for row in rows)
    competing = [i for i, row in enumerate(rows) if competes(row) and row["n_folds"] == n_folds]
    budgets = {rows[i]["budget"] for i in competing}
    return [max((i for i in competing if rows[i]["budget"] == b), key=lambda i: rows[i]["mc2"]) for b in budgets]


def competes(row: dict[str, Any]) -> bool:
    """Whether a row is that of a steering at a budget, and neither a control nor a ceiling."""
    return row["budget"] is not None and not row["arm"].startswith(("control", "trained"))


def table(name: str, columns: str, tested: str = "") -> str:
    """One table in Markdown; rows with budgets by budget, in the order of the arms."""
    if columns == "gains":
        return markdown(columns, gains(name.split(",")))
    content = join(name.split(","))
    if "," in name and columns == "paper":
        raise SystemExit(f"A table of {columns!r} is of one run; got {name!r}.")
    if columns == "paper":
        return markdown(columns, paper_rows(content))
    if columns == "continued":
        rows = sorted(content["continuations"], key=budget_of)
        (unsteered,) = [row["incorrect"] for row in rows if row["budget"] is None]
        return markdown(columns, [continued_cells(row, unsteered) for row in rows])
    task = tested or content["settings"]["data"]
    rows = [row for row in content["rows"] if row["data"] == task]
    if not rows:
        raise SystemExit(f"{name}.json has no rows of {task!r}.")
    rows.sort(key=budget_of)
    n_folds = max(row["n_folds"] for row in rows)
    written = [cells(row, n_folds) for row in rows]
    for i in best(rows):
        written[i] |= {column: f"**{written[i][column]}**" for column in ("steering", "MC2")}
    return markdown(columns, written)


def join(names: list[str]) -> dict[str, Any]:
    """Join the results of runs that differ in their arms alone; a row that several have is taken from the first."""
    first, *others = [json.loads((RESULTS / f"{name}.json").read_text()) for name in names]
    for other in others:
        keys = sorted({*first["settings"], *other["settings"]} - {"arms"})
        differing = [key for key in keys if first["settings"].get(key) != other["settings"].get(key)]
        if differing:
            raise SystemExit(f"{', '.join(names)} differ in {', '.join(differing)}.")
        _append(first["rows"], other["rows"], "mc2", names)
        if "continuations" in first:
            _append(first["continuations"], other["continuations"], "incorrect", names)
    return first


def _append(rows: list[dict[str, Any]], more: list[dict[str, Any]], metric: str, names: list[str]) -> None:
    """Append the rows that are new; those of the same arm must have the same value of a metric."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row.get("data"), row["arm"], row["budget"]

    known = {key(row): row for row in rows}
    for row in more:
        same = known.get(key(row))
        if same is None:
            rows.append(row)
        elif abs(same[metric] - row[metric]) > 5e-4:
            raise SystemExit(f"{', '.join(names)}: {metric} of {row['arm']!r} is {same[metric]} and {row[metric]}.")


def budget_of(row: dict[str, Any]) -> float:
    """The budget by which rows are sorted: what has none comes first."""
    return -1.0 if row["budget"] is None else row["budget"]


def markdown(columns: str, written: list[dict[str, str]]) -> str:
    """The table of rows in words; what was not measured has no column."""
    names = [column for column in COLUMNS[columns] if any(words[column] for words in written)]
    lines = [names, ["-"] * len(names), *([words[column] for column in names] for words in written)]
    return "\n".join("|" + "|".join("-" if cell == "-" else f" {cell} " for cell in line) + "|" for line in lines)


def filled(text: str) -> str:
    """The page with all its tables made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}{table(found[2], found[3], found[4])}\n{found[5]}", text)


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        if filled(text) != text:
            page.write_text(filled(text))


if __name__ == "__main__":
    main()
