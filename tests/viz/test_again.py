"""Commands and code that make a report again."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

import radiant_lens as rl
from radiant_lens.viz.report import again as module
from radiant_lens.viz.report.again import again
from radiant_lens.viz.report.content import ReportInputs

SETTINGS = {"n_samples": 3, "max_new_tokens": 12, "temperature": 0.5, "seed": 4, "data": "tiny-facts"}


@pytest.fixture(scope="module")
def inputs(gaussian_cache):
    detector = rl.RiskAwareDetector().fit(gaussian_cache(80), gaussian_cache(80, seed=1))
    steering = rl.RadiantPolicy(gamma=0.05, heads=[(0, 2)]).fit(gaussian_cache(80), detector)
    meta = {**steering.meta, "data": "my data.csv", "model": {"name": "tiny"}}
    evaluation = rl.Evaluation(None, None, (), SETTINGS)
    return ReportInputs(replace(steering, meta=meta), None, None, None, None, {"steered": evaluation}, None, None)


def test_commands_name_the_settings_and_are_quoted(inputs, command_line):
    lines = [shlex.split(line) for line in again(inputs, "steered").commands.splitlines()]
    assert [line[:2] for line in lines] == [["radiant-lens", name] for name in ("evaluate", "evaluate", "report")]
    assert lines[0][lines[0].index("--data") + 1] == "my data.csv"
    assert lines[0][lines[0].index("--samples") + 1] == "3"
    assert "--steering" not in lines[0] and "--steering" in lines[1]
    for line in lines:
        # Every option exists: what is refused is the folder, which is not there.
        options = [word for word in line if word.startswith("--")]
        status, out, _ = command_line(line[1], "--help")
        assert status == 0 and all(option in out for option in options)


def test_code_is_python_that_names_the_settings(inputs):
    code = again(inputs, "steered").code
    compile(code, "again", "exec")
    assert "options = dict(n_samples=3, max_new_tokens=12, temperature=0.5, seed=4)" in code
    assert "rl.load_dataset('my data.csv', model=model)" in code
    assert all(hasattr(rl, name) for name in ("load_model", "load_dataset", "collect", "evaluate", "report"))


def test_without_the_names_of_model_and_data_there_is_none(inputs):
    assert again(inputs._replace(steering=None), None) is None
    unnamed = replace(inputs.steering, meta={**inputs.steering.meta, "data": None})
    assert again(inputs._replace(steering=unnamed), None) is None
    assert module.FOLDER in again(inputs, None).commands
