"""The README's example runs as it stands, and its commands are the ones that CI runs."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_ten_lines_run(capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.S)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line and not line.startswith("import")]) <= 11
    exec(compile(code[1], "README", "exec"), {})
    out = capsys.readouterr().out
    assert "held-out groups still flagged" in out
    assert "Evaluation(" in out


def test_there_are_two_commands_of_one_line():
    commands = [block for block in re.findall(r"```sh\n(.*?)```", README.read_text(), re.S) if "venv" in block]
    assert len(commands) == 2
    assert all(block.count("\n") == 1 for block in commands)
    assert commands[0].rstrip().endswith("radiant-lens demo")
    assert commands[1].rstrip().endswith("pytest -n auto")
