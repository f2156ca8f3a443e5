"""Instructions to make a report again: shell commands and Python code, from the settings of its inputs."""

from __future__ import annotations

import shlex
from typing import Any, NamedTuple

from radiant_lens.viz.report.content import ReportInputs

FOLDER = "my-steering"


class Again(NamedTuple):
    """Commands for a shell, and a script, which measure a saved steering and write its report."""

    commands: str
    code: str


def again(inputs: ReportInputs, steered: str | None) -> Again | None:
    """Commands and code that make such a report of the saved steering; None without a steering and its data's name."""
    if inputs.steering is None:
        return None
    meta = inputs.steering.meta
    data, model = meta.get("data"), meta.get("model", {}).get("name")
    if not data or not model:
        return None
    settings: dict[str, Any] = {} if steered is None else inputs.evaluations[steered].settings
    return Again(_commands(str(model), str(data), settings), _code(str(model), str(data), settings))


def _commands(model: str, data: str, settings: dict[str, Any]) -> str:
    options = {"--model": model, "--data": data}
    names = {"n_samples": "--samples", "max_new_tokens": "--max-new-tokens", "temperature": "--temperature"}
    options |= {option: settings[name] for name, option in {**names, "seed": "--seed"}.items() if name in settings}
    shared = [part for pair in options.items() for part in map(str, pair)]
    steering = ["--steering", FOLDER]
    lines = [
        ["evaluate", *shared, "--out", "plain.json"],
        ["evaluate", *steering, *shared, "--out", "steered.json"],
        ["report", *steering, "--evaluation", "plain=plain.json", "--evaluation", "steered=steered.json"],
    ]
    return "\n".join(shlex.join(["radiant-lens", *line]) for line in lines)


def _code(model: str, data: str, settings: dict[str, Any]) -> str:
    names = ("n_samples", "max_new_tokens", "temperature", "seed")
    options = ", ".join(f"{name}={settings[name]!r}" for name in names if name in settings)
    return f"""import radiant_lens as rl

model = rl.load_model({model!r})
steering = rl.Steering.load({FOLDER!r})  # written by `steering.save`
data = rl.load_dataset({data!r}, model=model)
# Groups that took no part in the fit.
test = data.only(data.groups - set(steering.meta["seen_groups"]))
options = dict({options})
rl.report(
    steering,
    cache=rl.collect(model, test),
    evaluations={{
        "no steering": rl.evaluate(model, test, **options),
        "steered": rl.evaluate(model, test, steering, **options),
    }},
    writes=rl.edit_writes(model, test, steering),
    side_effects=rl.side_effects(model, steering),
).save("report.html")"""
