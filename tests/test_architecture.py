"""The rules of the house that a machine can check: who imports whom, and how large a room may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "harness"
MODULES = sorted(PACKAGE.rglob("*.py"))
ORDER = (
    "errors",
    "spec",
    "record",
    "document",
    "successors",
    "matrix",
    "interfaces",
    "plugins",
    "cache",
    "store",
    "machine",
    "job",
    "worker",
    "environments",
    "plan",
    "launch",
    "display",
    "executors",
    "estimate",
    "query",
    "gate",
    "baselines",
    "selection",
    "noise",
    "gating",
    "exchanging",
    "series",
    "interleaving",
    "nights",
    "reporting",
    "nightly",
    "doctor",
    "show",
    "testing",
    "cli_options",
    "running",
    "gate_cli",
    "conformance_cli",
    "cli",
)
PLUGIN_FOLDERS = ("sources", "stages", "runtimes", "evaluations", "reporters", "exchange")
PLUGINS_MAY_IMPORT = {"interfaces", "record", "spec", "errors", "statistics", "training"}
HEAVY = {
    "torch",
    "transformers",
    "lm_eval",
    "llama_cpp",
    "vllm",
    "pandas",
    "matplotlib",
    "duckdb",
    "pyarrow",
    "datasets",
    "gguf",
    "llmcompressor",
    "peft",
    "safetensors",
    "sklearn",
}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    """The room a module is in: `harness.stages.prune.depth` is in `stages`."""
    return module.split(".")[1] if "." in module else ""


def imports(file: Path, *, only_at_import: bool = False) -> set[str]:
    """Modules that a file imports; with `only_at_import`, those outside functions and TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if only_at_import and (checked or function):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return found


def our_parts(file: Path, *, only_at_import: bool = False) -> set[str]:
    rooms = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir()}
    found = {
        part_of(module) for module in imports(file, only_at_import=only_at_import) if module.startswith("harness.")
    }
    return (found & rooms) - {part_of(name_of(file))}


@pytest.mark.parametrize("file", [f for f in MODULES if part_of(name_of(f)) in ORDER], ids=name_of)
def test_imports_go_one_way(file: Path) -> None:
    mine = ORDER.index(part_of(name_of(file)))
    later = {part for part in our_parts(file, only_at_import=True) if part in ORDER and ORDER.index(part) > mine}
    assert not later, f"{name_of(file)} imports {sorted(later)}, which come after it"


@pytest.mark.parametrize("file", [f for f in MODULES if part_of(name_of(f)) in ORDER], ids=name_of)
def test_the_skeleton_knows_no_plugin(file: Path) -> None:
    assert not our_parts(file) & set(PLUGIN_FOLDERS)


@pytest.mark.parametrize("file", [f for f in MODULES if part_of(name_of(f)) in PLUGIN_FOLDERS], ids=name_of)
def test_plugins_import_only_the_contract_and_their_own_room(file: Path) -> None:
    assert our_parts(file) <= PLUGINS_MAY_IMPORT | set(PLUGIN_FOLDERS), sorted(our_parts(file))


def test_only_the_verb_knows_the_conformance_suite() -> None:
    assert {name_of(file) for file in MODULES if "conformance" in our_parts(file)} == {"harness.conformance_cli"}


@pytest.mark.parametrize("file", [f for f in MODULES if part_of(name_of(f)) == "gate"], ids=name_of)
def test_a_gate_is_a_function_of_records(file: Path) -> None:
    assert our_parts(file) <= PLUGINS_MAY_IMPORT, sorted(our_parts(file))


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_module_is_one_idea_that_says_what_it_is(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_function_does_one_thing_and_takes_few_parameters(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            where = f"{file.name}:{node.lineno} {node.name}"
            assert (node.end_lineno or 0) - node.lineno + 1 <= 80, f"{where} is longer than 80 lines"
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            counted = [name for name in names if name not in ("self", "cls")]
            assert len(counted) <= 5, f"{where} has {len(counted)} parameters"


def test_importing_every_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom harness import plugins\n"
        "for kind in plugins.KINDS:\n for name, point in plugins.installed(kind).items():\n"
        "  point.dist.name == 'compression-harness' and plugins.load(kind, name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_everything_is_caught_in_one_place_only() -> None:
    catching = [
        f"{name_of(file)}:{node.lineno}"
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    ]
    assert [place.split(":")[0] for place in catching] == ["harness.worker"]


def test_no_room_is_called_after_nothing() -> None:
    empty = {"utils", "helpers", "manager", "common", "misc", "util", "helper"}
    assert not [name_of(file) for file in MODULES if empty & set(file.stem.strip("_").split("_"))]
