"""The counts of the page on reliability are those of the suite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / ".docs" / "pages" / "results" / "reliability.md"
TESTS = Path(__file__).parents[1]
# Rows of the page's table, by the beginning of the paths of their tests, or by words of their names.
PLACES = {
    "Architectures": ("models/test_architectures.py",),
    "Wrong calls in Python": ("bad_input/", "test_forty_calls.py", "detectors/test_detector_refusals.py"),
    "Wrong commands": ("test_bad_commands.py", "cli/test_bench.py"),
    "Files that were changed": ("test_fuzz_files.py", "test_old_artefacts.py", "test_files.py"),
    "Shapes of data": ("datasets/readers/", "datasets/test_public_shapes.py"),
    "Several processes": ("test_distributed.py", "test_two_hosts.py"),
    "Browsers": ("viz/test_browser.py", "viz/explorer/"),
    "Serving": ("serving/",),
}
KILLS = re.compile(r"_kill|interrupt|test_stopped|was_stopped|is_stopped")


def printed() -> dict[str, int]:
    """Names and counts of the table's rows."""
    return {name: int(n) for name, n in re.findall(r"^\| ([^|]+?) \| (\d+) \|", PAGE.read_text(), re.MULTILINE)}


def test_counts_are_those_of_the_suite(every_test):
    names = [name for name in every_test if "tests/" in name]
    # Every folder of tests has been collected.
    parts = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")} - {"benchmarks"}
    if not all(any(f"tests/{part}" in name for name in names) for part in parts):
        pytest.skip("the counts are those of the whole suite")
    found = {row: sum(any(f"tests/{p}" in name for p in places) for name in names) for row, places in PLACES.items()}
    functions = [name.split("::")[1].split("[")[0] for name in names]
    found["Kills and interruptions"] = sum(bool(KILLS.search(function)) for function in functions)
    table = printed()
    assert set(table) >= set(found)
    for row, n in found.items():
        # A page may lag behind the suite; it must not be ahead of it.
        assert 0.8 * n <= table[row] <= n, (row, n)


def test_properties_are_counted():
    lines = [line for path in TESTS.rglob("test_*.py") for line in path.read_text().splitlines()]
    n = sum(line.startswith(("@given(", "    @given(")) for line in lines)
    assert 0.8 * n <= printed()["Properties of random input"] <= n
