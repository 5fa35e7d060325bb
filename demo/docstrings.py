"""The docstrings of Python's standard library under the names that users know, without running its modules.

Python sources are parsed and never imported. A separate process imports the modules that are written in C.
"""

import ast
import json
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from demo import c_docstrings
from demo.c_docstrings import is_public
from dpr.errors import CorpusError

_SKIPPED: Final = frozenset(
    {"antigravity", "this", "idlelib", "lib2to3", "pydoc_data", "turtledemo", "test"}
    | {"ntpath", "nturl2path", "encodings", "distutils"}  # for Windows, generated, removed in Python 3.12
)
_SKIPPED_PARTS: Final = {"test", "tests", "idle_test", "__main__", "__phello__"}
_RENAMED: Final = {"posixpath": "os.path"}
_Def = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Doc(NamedTuple):
    """A docstring, and how what it documents is called: `nlargest(n, iterable, key=None)`, or "" if nobody can say."""

    signature: str
    text: str


@dataclass
class _Module:
    """What one source file defines and imports."""

    name: str
    is_package: bool
    docs: dict[str, Doc] = field(default_factory=dict)
    """Docstring by name within the module; "" is the module itself."""
    exported: frozenset[str] | None = None
    """`__all__`, where it is a plain list of names."""
    imports: list[tuple[str, str, str]] = field(default_factory=list)
    """(module, name or `*`, name in this module) of each imported name."""


def stdlib_docstrings() -> dict[str, Doc]:
    """Return qualified public name → docstring with signature, sorted by name.

    The result is the same on every machine with the same Python and the same platform. Raises CorpusError if Python's
    own sources are not installed.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    modules = {module.name: module for path in _sources(folder) if (module := _parse(folder, path))}
    if not modules:
        raise CorpusError(
            f"Python's documentation cannot be read: {folder} holds no sources of the standard library; "
            "use a Python that comes with them"
        )
    docs = _public_docs(modules)
    for name, doc in _docs_in_c().items():
        docs.setdefault(name, doc)
    return _without_repeats(docs)


def _sources(folder: Path) -> Iterator[Path]:
    for name in sorted(sys.stdlib_module_names - _SKIPPED):
        if (folder / f"{name}.py").is_file():
            yield folder / f"{name}.py"
        elif (folder / name / "__init__.py").is_file():
            paths = (path.relative_to(folder) for path in (folder / name).rglob("*.py"))
            yield from (folder / path for path in sorted(paths) if not _SKIPPED_PARTS & set(path.with_suffix("").parts))


def _parse(folder: Path, path: Path) -> _Module | None:
    parts = path.relative_to(folder).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = _Module(".".join(parts[:-1] if is_package else parts), is_package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old sources hold escapes that Python warns of
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # templates and samples among the sources
            return None
    module.docs[""] = Doc("", ast.get_docstring(tree) or "")
    for statement in _statements(tree.body):
        if isinstance(statement, _Def):
            _add_docs(module.docs, "", statement)
        elif isinstance(statement, ast.ImportFrom):
            source = _imported_module(module, statement)
            module.imports += [(source, alias.name, alias.asname or alias.name) for alias in statement.names]
        elif isinstance(statement, ast.Assign) and any(ast.unparse(t) == "__all__" for t in statement.targets):
            module.exported = _names_in(statement.value)
    return module


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield all statements of a body, also those inside if and try."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            for inner in (statement.body, *(h.body for h in getattr(statement, "handlers", [])), statement.orelse):
                yield from _statements(inner)


def _add_docs(docs: dict[str, Doc], prefix: str, node: _Def) -> None:
    if node.name.startswith("_"):
        return
    name = prefix + node.name
    doc, called = ast.get_docstring(node) or "", node
    if isinstance(node, ast.ClassDef):
        inner = [one for one in _statements(node.body) if isinstance(one, _Def)]
        # the entry of a class also says how an object of it is made
        called = next((one for one in inner if one.name == "__init__"), node)
        made = (ast.get_docstring(called) or "") if called is not node else ""
        doc = "\n\n".join(text for text in (doc, made) if text)
        for one in inner:
            _add_docs(docs, f"{name}.", one)
    if doc:
        docs.setdefault(name, Doc(_signature(node.name, called), doc))


def _signature(name: str, called: _Def) -> str:
    """Return how a function is called: its parameters with their defaults, without `self`, `cls` and types."""
    if isinstance(called, ast.ClassDef):
        return ""
    given = called.args
    positional = [ast.arg(one.arg) for one in (*given.posonlyargs, *given.args)]
    shown = ast.arguments(
        posonlyargs=[],
        args=positional[1:] if positional and positional[0].arg in ("self", "cls") else positional,
        vararg=given.vararg and ast.arg(given.vararg.arg),
        kwonlyargs=[ast.arg(one.arg) for one in given.kwonlyargs],
        kw_defaults=given.kw_defaults,
        kwarg=given.kwarg and ast.arg(given.kwarg.arg),
        defaults=given.defaults,
    )
    return f"{name}({ast.unparse(shown)})"


def _imported_module(module: _Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    up = statement.level - (1 if module.is_package else 0)
    base = module.name.split(".")
    return ".".join([*base[: len(base) - up], *([statement.module] if statement.module else [])])


def _names_in(value: ast.expr) -> frozenset[str] | None:
    try:
        return frozenset(ast.literal_eval(value))
    except (ValueError, TypeError):  # computed from other lists
        return None


def _public_docs(modules: dict[str, _Module]) -> dict[str, Doc]:
    """Return each docstring under its shortest public name, of its own module or of one that re-exports it."""
    names: dict[tuple[str, str], list[str]] = {}
    for module in modules.values():
        if not is_public(module.name):
            continue
        public = _RENAMED.get(module.name, module.name)
        for name in module.docs:
            names.setdefault((module.name, name), []).append(f"{public}.{name}".removesuffix("."))
        for source, name, here in _reexports(module, modules):
            for doc in modules[source].docs:
                if doc == name or doc.startswith(f"{name}."):
                    names.setdefault((source, doc), []).append(f"{public}.{here}{doc[len(name) :]}")
    public_docs: dict[str, Doc] = {}
    for (source, name), choices in sorted(names.items()):
        if modules[source].docs[name].text:
            public_docs.setdefault(min(choices, key=_plainness), modules[source].docs[name])
    return public_docs


def _reexports(module: _Module, modules: dict[str, _Module]) -> Iterator[tuple[str, str, str]]:
    """Yield (module, name there, name here) of all names that a module re-exports.

    These are its imports from private modules and, in a package, from modules of the package.
    """
    for source, name, here in module.imports:
        origin = modules.get(source)
        if origin is None or (is_public(source) and not source.startswith(f"{module.name}.")):
            continue
        if name != "*":
            if not here.startswith("_") and here in (module.exported or {here}):
                yield source, name, here
            continue
        tops = {doc for doc in origin.docs if doc and "." not in doc}
        yield from ((source, top, top) for top in sorted(tops & (origin.exported or tops)))


def _docs_in_c() -> dict[str, Doc]:
    command = [sys.executable, "-I", "-S", "-W", "ignore", c_docstrings.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = done.stderr.strip().rpartition("\n")[2]
        raise CorpusError(f"Python's documentation cannot be read: {' '.join(command)} failed: {message}")
    return {name: Doc(*doc) for name, doc in json.loads(done.stdout).items()}


def _without_repeats(docs: dict[str, Doc]) -> dict[str, Doc]:
    """Keep only the plainest of the names that share a docstring, since inherited and copied ones add nothing."""
    first: dict[str, str] = {}
    for name in sorted(docs, key=_plainness):
        first.setdefault(" ".join(docs[name].text.split()), name)
    return {name: docs[name] for name in sorted(first.values())}


def _plainness(name: str) -> tuple[int, bool, int, str]:
    """Return a sort key by which plainer names come first: fewer parts, builtins, fewer letters."""
    return name.count("."), not name.startswith("builtins."), len(name), name
