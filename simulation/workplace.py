"""Where simulated nights run: a folder in memory with their inputs, and libraries that use one thread."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import faiss
import pyarrow as pa

from simulation import corpora

_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Work in the folder with the inputs of all nights; return a new folder for caches, which goes away."""
    root = _MEMORY if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="dpr-simulation-", dir=root))
    threads = pa.cpu_count(), pa.io_thread_count(), faiss.omp_get_max_threads()
    before = Path.cwd()
    try:
        for name in ("caches", "temporary"):
            (folder / name).mkdir()
        os.chdir(_inputs(root, folder))
        _set_threads(1, 1, 1)
        with patch.object(tempfile, "tempdir", str(folder / "temporary")):
            yield folder / "caches"
    finally:
        _set_threads(*threads)
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def _inputs(root: Path, folder: Path) -> Path:
    """Return the folder of the inputs, which every process of this machine shares and leaves behind: some 30 kB.

    The ids of runs and scans depend on its path, and with them the order of calls. So a seed replays exactly only where
    the path is the same.
    """
    source = Path(corpora.__file__).read_bytes()
    shared = root / f"dpr-simulation-inputs-{os.getuid()}-{hashlib.sha256(source).hexdigest()[:16]}"
    if not shared.is_dir():
        (folder / "inputs").mkdir()
        corpora.write_inputs(folder / "inputs")
        with contextlib.suppress(OSError):  # another process was first, and its inputs are the same
            (folder / "inputs").rename(shared)
    return shared


def _set_threads(arrow: int, arrow_io: int, openmp: int) -> None:
    pa.set_cpu_count(arrow)
    pa.set_io_thread_count(arrow_io)
    faiss.omp_set_num_threads(openmp)
