"""The processor of this machine, as results name it."""

import os
import platform
import re
from pathlib import Path

_INFO = Path("/proc/cpuinfo")
_WIDE = {"avx512_bf16": "AVX-512 bf16", "avx512f": "AVX-512", "avx2": "AVX2"}


def processor() -> str:
    """Return the processor's name."""
    found = re.search(r"model name\s*: (.*)", _info())
    return found[1].strip() if found else platform.machine()


def processor_and_cores() -> str:
    """Return the processor's name, its widest arithmetic that products use, and its number of cores."""
    flags = _info().partition("flags")[2].partition("\n")[0].split()
    wide = next((name for flag, name in _WIDE.items() if flag in flags), "")
    return f"{processor()}{wide and f' with {wide}'}, {os.cpu_count()} cores"


def _info() -> str:
    return _INFO.read_text(encoding="utf-8") if _INFO.exists() else ""
