"""Print the docstrings of Python's standard library in C, as one JSON object of name → signature and docstring.

This runs as a program in a bare interpreter (`python -I -S`). In any other process, libraries may have replaced
functions of Python (Ray replaces `print`), and the corpus would differ from run to run. So only the standard library is
imported here.
"""

import builtins
import importlib
import inspect
import json
import sys
import types
from collections.abc import Iterator
from typing import Final

_MODULES: Final = (
    "array asyncio atexit binascii builtins bz2 cmath collections contextvars csv datetime decimal faulthandler fcntl "
    "functools gc grp hashlib io itertools lzma marshal math mmap operator os pickle pwd queue random re resource "
    "select signal socket sqlite3 struct sys threading time types unicodedata weakref zlib"
)
"""Modules that are wholly or partly in C, and that do nothing when they are imported."""
_INTERNAL: Final = {"genericpath", "posix", "nt"}
_C_KINDS: Final = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
)


def is_public(module_name: str) -> bool:
    """Return whether users import the module by its name; a public module may re-export what other modules define."""
    return module_name not in _INTERNAL and not any(part.startswith("_") for part in module_name.split("."))


def c_docstrings() -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield (name, (signature, docstring)) of modules, of functions, methods, properties in C, and of all classes."""
    for module_name in _MODULES.split():
        try:
            module = importlib.import_module(module_name)
        except ImportError:  # not on this platform
            continue
        if module.__doc__ and module is not builtins:
            yield module_name, ("", inspect.cleandoc(module.__doc__))
        for name in sorted(getattr(module, "__all__", vars(module))):
            value = vars(module).get(name)
            if name.startswith("_") or not _belongs(value, module_name, name):
                continue
            members = _members(value) if isinstance(value, type) else {}
            for path, inner in {name: value, **{f"{name}.{member}": members[member] for member in members}}.items():
                doc = vars(inner).get("__doc__") if isinstance(inner, type) else inner.__doc__
                if isinstance(doc, str):
                    yield f"{module_name}.{path}", (_signature(path, inner), inspect.cleandoc(doc))


def _signature(path: str, value: object) -> str:
    """Return `split(sep=None, maxsplit=-1)`; "" if it is not known, or holds what differs from run to run."""
    try:
        found = inspect.signature(value) if callable(value) else None
    except (ValueError, TypeError):
        found = None
    if found is None:
        return ""
    given = list(found.parameters.values())
    is_bound = given and given[0].name in ("self", "cls", "type")
    written = str(found.replace(parameters=given[1:] if is_bound else given))
    return "" if "<" in written else path.rpartition(".")[2] + written


def _belongs(value: object, module_name: str, name: str) -> bool:
    """Return whether a value found as `module_name.name` is a class or C function that has no other public name."""
    if not isinstance(value, type):
        return _is_in_c(value)
    home = sys.modules.get(value.__module__)
    is_from_elsewhere = (value.__module__, value.__name__) != (module_name, name)
    has_public_home = getattr(home, value.__name__, None) is value and is_public(value.__module__)
    return not (is_from_elsewhere and has_public_home)


def _members(cls: type) -> dict[str, object]:
    """Return what a class defines in C, also in bases without a public name (`_socket.socket` of `socket.socket`)."""
    bases = [base for base in reversed(cls.__mro__) if base is cls or base.__module__.startswith("_")]
    members = {name: value for base in bases for name, value in vars(base).items()}
    return {name: members[name] for name in sorted(members) if not name.startswith("_") and _is_in_c(members[name])}


def _is_in_c(value: object) -> bool:
    return isinstance(getattr(value, "__func__", value), _C_KINDS)


if __name__ == "__main__":
    print(json.dumps(dict(c_docstrings())))
