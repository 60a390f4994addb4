"""Lower layers never import upper ones; report and `--help` never import torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import avalanche_ntk

ROOT = Path(avalanche_ntk.__file__).parent

# Layers of docs/design.md, lowest first; a module may import its own layer and those below. In a group of modules each
# has a layer of its own.
GROUPS = ("recorder", "adapters", "lab")
LAYERS = {
    **dict.fromkeys(["children", "errors", "files", "frozen", "numerals", "owned", "randomness"], 0),
    **dict.fromkeys(["recorder.clock", "recorder.frames", "recorder.labels", "recorder.names"], 0),
    **dict.fromkeys(["recorder.steps", "recorder.stepclock", "adapters.tasks"], 0),
    **dict.fromkeys(["kernels", "measures", "recorder.schedule", "recorder.cost", "recorder.runfolder"], 1),
    **dict.fromkeys(
        ["recorder.probes", "recorder.processes", "recorder.samples", "recorder.weights", "recorder.parameters"], 2
    ),
    **dict.fromkeys(
        ["recorder.boundaries", "recorder.measurement", "recorder.plots", "recorder.trajectory", "recorder.resume"], 2
    ),
    **dict.fromkeys(["adapters.reading", "adapters.trained"], 2),
    **dict.fromkeys(["lab", "lab.benchmarks", "lab.layers", "lab.networks", "lab.models", "lab.regimes"], 2),
    **dict.fromkeys(
        ["recorder.afterwards", "recorder.measurer", "recorder.readout", "recorder.recording", "recorder.recorder"], 3
    ),
    **dict.fromkeys(["adapters.strategy_host", "adapters.plugin", "adapters.checkpoints", "adapters.loggers"], 3),
    **dict.fromkeys(["observables", "recorder.extras", "recorder.failures", "recorder.host", "recorder.session"], 3),
    "report": 3,  # reads run folders and trajectories, nothing that trains
    **dict.fromkeys(["adapters", "adapters.tensorboard", "adapters.evaluation", "adapters.text_logs"], 4),
    "recorder": 4,
    "strategies": 5,
    "demo": 6,
    "experiments": 6,
    "reproduce": 7,
    "commands": 8,
    "cli": 8,
}
MAY_IMPORT_AVALANCHE = {
    *("adapters.checkpoints", "adapters.evaluation", "adapters.loggers", "adapters.plugin", "adapters.reading"),
    *("adapters.strategy_host", "adapters.text_logs", "adapters.trained", "lab.benchmarks"),
    *("strategies", "demo", "experiments", "reproduce"),
}


def place(parts: list[str] | tuple[str, ...]) -> str:
    """Name of the layer of a module, from the parts of its name below the package."""
    return ".".join(parts[: 2 if parts[0] in GROUPS else 1])


def imports(source: str) -> set[str]:
    """Modules that a source imports when it runs (imports for type checkers only are left out)."""
    found = set()
    for node in ast.walk(_Runtime().visit(ast.parse(source))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


class _Runtime(ast.NodeTransformer):
    def visit_If(self, node):
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else self.generic_visit(node)


def violations(layer_of: str, source: str) -> list[str]:
    found = set()
    for name in sorted(imports(source)):
        parts = name.split(".")
        if parts[0] == "avalanche" and layer_of not in MAY_IMPORT_AVALANCHE:
            found.add(f"{layer_of} imports avalanche")
        if name in {f"avalanche_ntk.{group}" for group in GROUPS}:
            continue  # what is taken from the group has a name of its own
        if parts[0] == "avalanche_ntk" and len(parts) > 1 and LAYERS.get(place(parts[1:]), -1) > LAYERS[layer_of]:
            found.add(f"{layer_of} imports {place(parts[1:])}")
    return sorted(found)


def sources():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts != ("__init__",):
            yield place(parts).removesuffix(".__init__"), path
    for path in sorted((ROOT.parent / "strategies").glob("*.py")):
        yield "strategies", path


@pytest.mark.parametrize(("part", "path"), list(sources()), ids=lambda v: v.name if isinstance(v, Path) else v)
def test_imports_point_downwards(part, path):
    assert violations(part, path.read_text()) == []


def test_the_test_can_fail():
    assert violations("measures", "from avalanche_ntk.adapters.plugin import NTKPlugin") == [
        "measures imports adapters.plugin"
    ]
    assert violations("kernels", "def f():\n    import avalanche.training") == ["kernels imports avalanche"]
    assert violations("report", "from avalanche_ntk import cli") == ["report imports cli"]
    assert violations("report", "if TYPE_CHECKING:\n    from avalanche_ntk import cli") == []


# Rooms of `kernels`, lowest first; the door (modules of `kernels` itself) stands above all of them.
ROOMS = ["_function", "_device", "_structure", "_contract", "_guard", "_generic", "door"]


def room_violations(room: str, source: str) -> list[str]:
    """Rooms above its own that a module of `kernels` imports; for a module outside, every private one."""
    used = {name.split(".")[2] for name in imports(source) if name.startswith("avalanche_ntk.kernels._")}
    limit = ROOMS.index(room) if room in ROOMS else -1
    return sorted(f"{room} imports {other}" for other in used if ROOMS.index(other) > limit)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts if path.is_relative_to(ROOT) else ("strategies",)
    return (parts[1] if parts[1].startswith("_") and len(parts) > 2 else "door") if parts[0] == "kernels" else parts[0]


@pytest.mark.parametrize("path", [path for _, path in sources()], ids=lambda p: p.name)
def test_rooms_of_the_kernels_import_downwards_and_are_private(path):
    assert room_violations(room_of(path), path.read_text()) == []


def test_the_test_of_rooms_can_fail():
    source = "from avalanche_ntk.kernels._guard.proof import prove"
    assert room_violations("_contract", source) == ["_contract imports _guard"]
    assert room_violations("plugin", source) == ["plugin imports _guard"]
    assert room_violations("_guard", source) == room_violations("door", source) == []
    assert room_violations("plugin", "from avalanche_ntk.kernels.support import Batch") == []


def rooms_used() -> dict[str, set[str]]:
    """Other rooms that the modules of each room of `kernels` import."""
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in (ROOT / "kernels").rglob("*.py"):
        names = {name.split(".")[2] for name in imports(path.read_text()) if name.startswith("avalanche_ntk.kernels._")}
        used[room_of(path)] |= names - {room_of(path)}
    return used


def test_the_picture_of_the_rooms_is_what_they_import():
    """Every arrow of docs/design.md is an import, and every import an arrow; lower rooms stand below."""
    text = (ROOT.parent / "docs" / "design.md").read_text().split("## Sub-packages of the kernels")[1].split("\n## ")[0]
    drawn = [line.split("──►") for line in text.split("```text\n")[1].split("```")[0].splitlines()]
    assert [room.strip() for room, _ in drawn] == ROOMS[::-1]
    assert {room.strip(): set(rooms.split()) for room, rooms in drawn} == rooms_used()


def test_the_readme_of_the_kernels_names_every_module():
    rows = (ROOT / "kernels" / "README.md").read_text().split("| sub-package |")[1].split("\n\n")[0].splitlines()
    told = {
        line.split("|")[1].strip().strip("`"): set(re.findall(r"`([\w/]+)`", line.split("|")[2])) for line in rows[2:]
    }
    for room in ROOMS:
        folder = ROOT / "kernels" / ("" if room == "door" else room)
        modules = {p.stem for p in folder.glob("*.py")} - {"__init__"}
        named = told["top level" if room == "door" else room]
        assert modules <= named | {"support"}, (room, modules - named)


# Modules of the run folder, lowest first; its door, which holds the class only, stands above all of them.
RUN_FOLDER = [
    *("faults", "files", "lock", "codec", "schema", "kernels", "description", "lines", "table", "rewinding"),
    *("overwriting", "folder", "__init__"),
]


def run_folder_violations(module: str | None, source: str) -> list[str]:
    """Modules above its own that a module of the run folder imports; for a module outside, every one of them."""
    prefix = "avalanche_ntk.recorder.runfolder."
    used = {name.removeprefix(prefix).split(".")[0] for name in imports(source) if name.startswith(prefix)}
    limit = -1 if module is None else RUN_FOLDER.index(module)
    return sorted(f"{module} imports {other}" for other in used & set(RUN_FOLDER[limit + 1 :]))


@pytest.mark.parametrize("path", [path for _, path in sources()], ids=lambda p: p.name)
def test_modules_of_the_run_folder_import_downwards_and_are_private(path):
    within = path.parent == ROOT / "recorder" / "runfolder"
    assert run_folder_violations(path.stem if within else None, path.read_text()) == []


def test_the_test_of_the_run_folder_can_fail():
    source = (
        "from avalanche_ntk.recorder.runfolder import files\nfrom avalanche_ntk.recorder.runfolder.lines import scan"
    )
    assert run_folder_violations("codec", source) == ["codec imports lines"]
    assert run_folder_violations(None, source) == ["None imports files", "None imports lines"]
    assert run_folder_violations("folder", source) == []
    assert run_folder_violations(None, "from avalanche_ntk.recorder.runfolder import RunFolder") == []


def test_the_table_of_the_run_folder_names_every_module_in_its_order():
    text = (ROOT.parent / "docs" / "design.md").read_text().split("## Modules of the run folder")[1].split("\n## ")[0]
    assert [*re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE), "__init__"] == RUN_FOLDER
    assert {path.stem for path in (ROOT / "recorder" / "runfolder").glob("*.py")} == set(RUN_FOLDER)


def loads_torch(statement: str) -> str:
    code = f"import sys; sys.argv = ['avalanche-ntk', '--help']\n{statement}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "statement",
    [
        "import avalanche_ntk",
        "import avalanche_ntk.report, avalanche_ntk.measures, avalanche_ntk.recorder.trajectory",
        "from avalanche_ntk.cli import app\ntry:\n    app()\nexcept SystemExit:\n    pass",
    ],
    ids=["package", "report", "--help"],
)
def test_torch_is_not_loaded(statement):
    assert loads_torch(statement) == "False"


def test_the_torch_test_can_fail():
    assert loads_torch("from avalanche_ntk import NTKPlugin") == "True"


def test_lazy_names_exist_and_unknown_ones_are_told():
    for name in avalanche_ntk.__all__:
        assert getattr(avalanche_ntk, name) is not None
    assert set(avalanche_ntk.__all__) <= set(dir(avalanche_ntk))
    with pytest.raises(
        AttributeError, match="module 'avalanche_ntk' has no attribute 'NTKPlugins'; it offers NTKPlugin"
    ):
        _ = avalanche_ntk.NTKPlugins


def test_strategies_refuse_another_name():
    code = f"import sys; sys.path.insert(0, {str(ROOT.parent)!r}); import strategies"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    if (ROOT.parent / "strategies").is_dir():
        assert done.returncode == 1
        assert "this folder was imported as 'strategies'; it is the package avalanche_ntk.strategies." in done.stderr


# ---------------------------------------------------------------------- sizes

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 80


def sources() -> dict[str, Path]:
    """Every file of the package by its name below it, strategies included."""
    found = {path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*.py")}
    return found | {f"strategies/{path.name}": path for path in (ROOT.parent / "strategies").glob("*.py")}


def test_a_long_file_has_its_reason():
    design = (ROOT.parent / "docs" / "design.md").read_text(encoding="utf-8")
    section = design.partition("## Files of more than 400 lines\n")[2].partition("\n## ")[0]
    told = re.findall(r"`([\w/]+\.py)`", section)
    long = [name for name, path in sources().items() if len(path.read_text("utf-8").splitlines()) > MOST_LINES]
    assert sorted(told) == sorted(long)


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and ast.get_docstring(function) is not None
    return (function.end_lineno or 0) - function.lineno + 1 - documented * ((first.end_lineno or 0) - first.lineno + 1)


def test_no_function_is_long():
    for name, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert lines_of_code(node) <= MOST_LINES_OF_A_FUNCTION, f"{name}: {node.name}"


def test_the_length_of_a_function_is_that_of_its_code():
    text = 'def f():\n    """Two\n    lines."""\n    return 1\n'
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.FunctionDef) and lines_of_code(node) == 2
