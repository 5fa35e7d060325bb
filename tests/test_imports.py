"""Imports go one way, held by parsing every module; imports inside functions count like all others."""

import ast
import graphlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = (
    (
        "dpr.answers",
        "dpr.closing",
        "dpr.errors",
        "dpr.hidden_names",
        "dpr.idle_processors",
        "dpr.json_kinds",
        "dpr.plurals",
    ),
    ("dpr.client", "dpr.fingerprint", "dpr.recipe_section", "dpr.recipe_yaml", "dpr.store"),
    ("dpr.recipe_index", "dpr.recipe_service"),
    ("dpr.recipe",),
    ("dpr.formats", "dpr.recipe_file"),
    ("dpr.encoder", "dpr.index"),
    ("dpr.corpus",),
    ("dpr.lexical",),
    ("dpr.search",),
    ("dpr.evaluate",),
    ("dpr.engine", "dpr.retired"),
    ("dpr.run", "dpr.train"),
    ("dpr.stages",),
    ("dpr.nightly",),
    ("dpr.operations",),
    ("dpr.mcp", "dpr.run_recipe"),
    ("ray_jobs.heartbeats", "ray_jobs.output", "ray_jobs.signals", "ray_jobs.stand_ins"),
    (
        "ray_jobs.cli_common",
        "ray_jobs.command_line",
        "ray_jobs.console",
        "ray_jobs.failures",
        "ray_jobs.guard",
        "ray_jobs.node_facts",
        "ray_jobs.oversight",
        "ray_jobs.placement",
        "ray_jobs.ray_output",
        "ray_jobs.tables",
        "ray_jobs.transport",
    ),
    ("ray_jobs.connect", "ray_jobs.data_actors", "ray_jobs.evaluation_tables", "ray_jobs.feed", "ray_jobs.leaving"),
    ("ray_jobs.ahead", "ray_jobs.doctor", "ray_jobs.inspection"),
    ("ray_jobs.ray_executor",),
    ("ray_jobs.jobs", "ray_jobs.serve", "ray_jobs.torch_trainer"),
    ("ray_jobs.train_jobs",),
    (
        "ray_jobs.embed",
        "ray_jobs.evaluation_commands",
        "ray_jobs.index",
        "ray_jobs.inspect_command",
        "ray_jobs.mcp_command",
        "ray_jobs.nightly",
        "ray_jobs.run_commands",
        "ray_jobs.scan",
        "ray_jobs.search_commands",
        "ray_jobs.state_commands",
        "ray_jobs.store_commands",
        "ray_jobs.train_commands",
    ),
    ("ray_jobs.cli", "ray_jobs.submit", "ray_jobs.train"),
)
"""A module imports from its own unit and from units of earlier rows; units of one row do not know each other."""

ONLY_IN = {
    "faiss": "dpr.index",
    "httpx": "dpr.client",
    "langchain_core": "dpr.client",
    "llama_index": "dpr.client",
    "mcp": "dpr.mcp",
    "numba": "dpr.lexical",
    "openvino": "dpr.encoder",
    "ray": "ray_jobs",
    "s3fs": "dpr.store",
    "transformers": "dpr.encoder",
}
"""Package → the only unit whose modules import it."""

RANK = {unit: rank for rank, row in enumerate(LAYERS) for unit in row}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for tree in ("dpr", "ray_jobs") for path in sorted((ROOT / tree).rglob("*.py"))}


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """The full name of everything that `module` imports, wherever in it that happens."""
    package = module if module in MODULES and MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


def unit_of(name: str) -> str | None:
    """The unit of the table that holds `name`: its first two parts."""
    unit = ".".join(name.split(".")[:2])
    return unit if unit in RANK else None


def problems(module: str, source: str) -> list[str]:
    """Return what is wrong with the imports of `module`, one sentence each."""
    own, found = unit_of(module), []
    for name in imported(module, ast.parse(source)):
        top = name.partition(".")[0]
        home = ONLY_IN.get(top)
        if home and not f"{module}.".startswith(f"{home}."):
            found.append(f"{module} imports {name}: only {home} may")
        if top not in ("dpr", "ray_jobs") or name == "dpr.__version__":
            continue
        theirs = unit_of(name)
        if own is None or theirs is None:
            found.append(f"{module} imports {name}: one of them is in no row of LAYERS")
        elif own != theirs and RANK[theirs] >= RANK[own]:
            found.append(f"{module} imports {name}: {theirs} is not in an earlier row than {own}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports_one_way(module: str) -> None:
    assert problems(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_the_table_names_all_units_and_no_others() -> None:
    assert {".".join(module.split(".")[:2]) for module in MODULES} - {"dpr", "ray_jobs"} == set(RANK)


def test_no_two_modules_import_each_other() -> None:
    graph = {}
    for module, path in MODULES.items():
        names = imported(module, ast.parse(path.read_text(encoding="utf-8")))
        found = {name if name in MODULES else name.rpartition(".")[0] for name in names}
        graph[module] = (found & MODULES.keys()) - {module}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the modules of a cycle


MIRRORS = {"scan", "embed", "index", "nightly", "train"}
"""Jobs of `ray_jobs` that mirror what they run."""


def test_no_two_modules_have_one_name() -> None:
    names = Counter(path.stem for module, path in MODULES.items() if path.stem != "__init__")
    names.subtract(dict.fromkeys(MIRRORS, 1))
    assert [name for name, count in names.items() if count > 1] == []


BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


def names_of(path: Path) -> set[str]:
    """Return the names that a module defines or imports, and the modules of a package."""
    tree = ast.parse(path.read_text())
    found = {module.stem for module in path.parent.glob("*.py")} if path.name == "__init__.py" else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", BENCHMARKS, ids=[path.stem for path in BENCHMARKS])
def test_what_benchmarks_import_is_there(path: Path) -> None:
    """No test runs them, so that a name that has moved would be found by the next user."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("dpr", "ray_jobs", "simulation"):
            module = ROOT.joinpath(*str(node.module).split("."))
            file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
            assert {alias.name for alias in node.names} <= names_of(file), f"{path.name} imports from {node.module}"


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("dpr.stages.scan", "import faiss", "only dpr.index may"),
        ("dpr.run", "def f():\n    import ray.data", "only ray_jobs may"),
        ("dpr.search.retrieve", "from transformers import AutoModel", "only dpr.encoder may"),
        ("dpr.corpus.input_files", "import importlib\nimportlib.import_module('s3fs')", "only dpr.store may"),
        ("dpr.storefront", "import s3fs", "only dpr.store may"),
        ("dpr.corpus.lines", "from dpr import run", "dpr.run is not in an earlier row than dpr.corpus"),
        ("dpr.encoder.spec", "from ..corpus import lines", "dpr.corpus is not in an earlier row than dpr.encoder"),
        ("dpr.stages.scan", "def f():\n    from dpr.nightly import make_body", "dpr.nightly is not in an earlier row"),
        ("dpr.run", "if TYPE_CHECKING:\n    import ray_jobs.connect", "ray_jobs.connect is not in an earlier"),
        ("dpr.stages.scan", "import dpr.novelty", "in no row"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, problem: str) -> None:
    (sentence,) = problems(module, source)
    assert problem in sentence


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dpr.index.kinds", "import faiss"),
        ("dpr.store.s3_bucket", "def f():\n    import s3fs"),
        ("ray_jobs.serve.app", "from ray import serve\nimport dpr.search.retrieve\nfrom ray_jobs import connect"),
        ("dpr.stages.scan", "import numpy\nfrom dpr.corpus import rows\nfrom dpr.formats import segment"),
    ],
)
def test_a_right_import_is_left_alone(module: str, source: str) -> None:
    assert problems(module, source) == []


@pytest.mark.slow
def test_the_driver_does_without_pytorch(encoder: Path, static_encoder: Path) -> None:
    look = """
import sys, ray_jobs.jobs, ray_jobs.cli
from dpr.encoder.spec import resolve
from dpr.recipe import EncoderConfig
for model in sys.argv[1:]:
    resolve(EncoderConfig(model=model, pooling="mean"))
print([m for m in ("torch", "transformers") if m in sys.modules])
"""
    command = [sys.executable, "-c", look, str(encoder), str(static_encoder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("module", ["dpr.run_recipe", "ray_jobs.run_commands"])
def test_arrow_uses_the_allocator_of_the_system(module: str) -> None:
    look = f"import {module}, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    command = [sys.executable, "-c", look]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "system\n"
