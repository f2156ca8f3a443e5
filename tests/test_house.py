"""The house of DESIGN 4: imports go down the layers, and the public names are frozen."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import radiant_lens as rl

PACKAGE = Path(rl.__file__).parent

# From the ground up: a module may import those of lower layers and its own.
LAYERS = [
    ["errors", "_typing", "_checks"],
    ["_files", "ranks", "sites", "splits"],
    ["linalg", "risks", "statistics"],
    ["caches", "stores"],
    ["datasets"],
    ["detectors"],
    ["policies"],
    ["identity", "models", "tokens"],
    ["tracing", "passes", "texts"],
    ["runs"],
    ["capture", "hooks"],
    ["evaluation"],
    ["fitting"],
    ["studies", "harness", "checkup"],
    ["viz"],
    ["cli"],
]
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}
EXEMPT = {"__init__", "tiny"}
MAY_IMPORT_MODELS = {
    "identity",
    "models",
    "tokens",
    "texts",
    "runs",
    "capture",
    "hooks",
    "fitting",
    "evaluation",
    "studies",
    "harness",
    "checkup",
    "tiny",
    "cli",
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Full names of the modules a file imports, those under TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def wrong_imports(path: Path, names: set[str]) -> list[str]:
    here, wrong = room(path), []
    for name in names:
        parts = name.split(".")
        if parts[0] != "radiant_lens" or len(parts) < 2:
            continue
        target = parts[1]
        if target not in EXEMPT and FLOOR[target] > FLOOR[here]:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", [f for f in FILES if room(f) not in EXEMPT], ids=str)
def test_imports_go_down(path):
    assert not wrong_imports(path, imports(path))


def test_an_import_that_goes_up_is_seen():
    assert wrong_imports(PACKAGE / "caches.py", {"radiant_lens.policies.steering"}) == [
        "radiant_lens.policies.steering"
    ]


@pytest.mark.parametrize("path", [f for f in FILES if room(f) not in MAY_IMPORT_MODELS | EXEMPT], ids=str)
def test_only_upper_layers_know_transformers(path):
    assert not [n for n in imports(path) if n.split(".")[0] in ("transformers", "transformer_lens")]


def test_no_module_imports_through_the_package_root():
    for path in (f for f in FILES if room(f) not in EXEMPT | {"cli"}):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "radiant_lens":
                # Whole modules may be named; what the package re-exports may not.
                assert {alias.name for alias in node.names} <= set(FLOOR), f"{path}: {ast.unparse(node)}"


def test_files_are_rooms():
    long = {str(f): n for f in FILES if (n := len(f.read_text().splitlines())) > 400}
    assert not long


PUBLIC = [
    "AblationPolicy",
    "AttentionPatterns",
    "Contexts",
    "Dataset",
    "EditWrites",
    "Evaluation",
    "HeadCache",
    "HeadEffects",
    "HeadSite",
    "ITIPolicy",
    "IdentityPolicy",
    "LEACEPolicy",
    "LinearActPolicy",
    "MeanShiftPolicy",
    "MomentMatchingPolicy",
    "Prompt",
    "RadiantPolicy",
    "RandomDirectionPolicy",
    "RiskAwareClassifier",
    "RiskAwareDetector",
    "Report",
    "SequentialFit",
    "Statement",
    "Steering",
    "Study",
    "Trace",
    "TracedAnswer",
    "collect",
    "compose",
    "edit_writes",
    "evaluate",
    "fit_sequential",
    "head_effects",
    "load_dataset",
    "load_model",
    "policies",
    "report",
    "steer",
    "trace_answer",
    "viz",
]


def test_public_names_are_frozen():
    modules = {
        "capture",
        "caches",
        "ranks",
        "runs",
        "stores",
        "texts",
        "datasets",
        "detectors",
        "evaluation",
        "fitting",
        "errors",
        "hooks",
        "identity",
        "models",
        "passes",
        "tracing",
        "linalg",
        "risks",
        "sites",
        "splits",
        "statistics",
        "tiny",
        "tokens",
        "studies",
        "harness",
        "checkup",
        "cli",
    }
    names = {n for n in vars(rl) if not n.startswith("_")} - modules
    assert names == set(PUBLIC)
