"""The house of .github/CONTRIBUTING.md: imports go down the floors, and the public names are frozen."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import radiant_lens as rl

PACKAGE = Path(rl.__file__).parent

CONTRIBUTING = PACKAGE.parent / ".github" / "CONTRIBUTING.md"


def read_floors() -> list[list[str]]:
    """Rooms from the ground up: a module may import those of lower floors and its own."""
    block = CONTRIBUTING.read_text().split("```floors\n")[1].split("```")[0]
    # Words that continue a line are indented; a long list of rooms has its description on the next line.
    names = [line.split("   ")[0].split() for line in block.splitlines() if not line.startswith(" ")]
    return [[name for name in floor if name] for floor in names]


LAYERS = read_floors()
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}
EXEMPT = {"__init__", "tiny"}
# Rooms that load TransformerLens or transformers as they are imported; elsewhere both are annotations.
LOADS_MODELS = {"models", "hooks", "harness", "tiny"}
# The stopping criterion of generation derives from a class of transformers.
LOADS_MODELS_FILES = {PACKAGE / "evaluation" / "generation.py"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, inside_functions: bool = True) -> set[str]:
    """Full names of the modules a file imports, `import_module` included and those under TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        or (isinstance(node, ast.FunctionDef) and not inside_functions)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            # A name that is not a literal could be anything.
            assert isinstance(node.args[0], ast.Constant), f"{path}: {ast.unparse(node)}"
            names.add(str(node.args[0].value))
    return names


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


def test_the_list_names_every_room():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(FLOOR) | EXEMPT == rooms
    assert len(list(PACKAGE.glob("*.py"))) - 1 <= 12


@pytest.mark.parametrize("path", [f for f in FILES if room(f) not in EXEMPT], ids=str)
def test_imports_go_down(path):
    assert not wrong_imports(path, imports(path))


def test_an_import_that_goes_up_is_seen(tmp_path):
    assert wrong_imports(PACKAGE / "caches.py", {"radiant_lens.policies.radiant"}) == ["radiant_lens.policies.radiant"]
    behind_a_door = tmp_path / "door.py"
    behind_a_door.write_text('from importlib import import_module\n\nimport_module("radiant_lens.studies")\n')
    assert "radiant_lens.studies" in imports(behind_a_door)


def test_no_two_modules_import_each_other():
    """Within a floor and within a room, too."""
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    graph = {
        name.removesuffix(".__init__"): {m for m in imports(path) if m in modules}
        for name, path in modules.items()
        if "tiny" not in name
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", [f for f in FILES if room(f) not in LOADS_MODELS | EXEMPT], ids=str)
def test_few_rooms_load_transformers(path):
    if path not in LOADS_MODELS_FILES:
        names = imports(path, inside_functions=False)
        assert not [n for n in names if n.split(".")[0] in ("transformers", "transformer_lens")]


def test_pure_mathematics_knows_no_processes_and_data_no_models():
    for path in FILES:
        forbidden = {"linalg": "distributed", "solvers": "distributed", "datasets": "models", "statistics": "models"}
        target = forbidden.get(room(path))
        assert not [n for n in imports(path) if target and n.startswith(f"radiant_lens.{target}")], path


def test_no_module_hides_behind_a_function_of_its_own_name():
    """Of a package's face: `from package import name` would give the module to some, the function to others."""
    for face in PACKAGE.rglob("__init__.py"):
        exported = {
            alias.asname
            for n in ast.walk(ast.parse(face.read_text()))
            if isinstance(n, ast.ImportFrom)
            for alias in n.names
        }
        hidden = exported & {path.stem for path in face.parent.glob("*.py")}
        assert not hidden, f"{face}: {hidden}"


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
    "FisherBlocks",
    "Fitted",
    "HeadCache",
    "HeadEffects",
    "HeadSite",
    "ITIPolicy",
    "IdentityPolicy",
    "LEACEPolicy",
    "LeastKLPolicy",
    "LinearActPolicy",
    "MeanShiftPolicy",
    "MomentMatchingPolicy",
    "Prompt",
    "RadiantPolicy",
    "RandomDirectionPolicy",
    "Report",
    "RiskAwareClassifier",
    "RiskAwareDetector",
    "SequentialFit",
    "SideEffects",
    "Statement",
    "Steering",
    "Study",
    "Trace",
    "TracedAnswer",
    "collect",
    "compose",
    "datasets",
    "detectors",
    "edit_writes",
    "errors",
    "evaluate",
    "evaluation",
    "explore",
    "fisher_blocks",
    "fit",
    "fit_sequential",
    "head_effects",
    "load_dataset",
    "load_model",
    "policies",
    "report",
    "side_effects",
    "steer",
    "studies",
    "trace_answer",
    "vector_steering",
    "viz",
]


def test_public_names_are_frozen():
    assert set(dir(rl)) == set(PUBLIC)
    for name in PUBLIC:
        assert getattr(rl, name) is not None


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'colect'|No radiant_lens attribute colect"):
        rl.colect  # noqa: B018


def test_importing_the_package_or_asking_for_help_loads_no_torch():
    script = (
        "import sys, time; start = time.process_time()\n"
        "{}\n"
        "assert not {{'torch', 'transformer_lens', 'transformers', 'pandas', 'plotly'}} & set(sys.modules)\n"
    )
    help_ = (
        "from typer.testing import CliRunner; from radiant_lens.cli.app import app\n"
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0, result.output"
    )
    for statement in ("import radiant_lens; dir(radiant_lens); radiant_lens.__version__", help_):
        subprocess.run([sys.executable, "-c", script.format(statement)], check=True)
