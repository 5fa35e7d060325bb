"""Python code run by a user who may not do everything: nobody where the tests run as root, else who runs them."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65_534

# nobody may be unable to read Python and this project, so everything is imported before
BECOME = f"""
import ast, encodings.ascii, encodings.idna, json, linecache, os, sys, tempfile, traceback
import dpr.store.cache, dpr.store.lease
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
"""


def run_unprivileged(
    code: str, *arguments: object, environment: dict[str, str] | None = None, before: tuple[str, ...] = ()
) -> str:
    """Return what the code prints. `before` is a command that runs the command that follows it."""
    own = ("HOME", "XDG_CACHE_HOME", "DPR_CACHE", "DPR_CACHE_GB")
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        (*before, sys.executable, "-c", BECOME + code, *map(str, arguments)),
        env=inherited | (environment or {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def hiding_processes(hidepid: int) -> tuple[str, ...]:
    """Return what runs a command where /proc hides the processes of other users; skip where that cannot be."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root, with unshare, can mount a /proc that hides processes")
    mount = f"mount -t proc -o hidepid={hidepid} proc /proc"
    hide = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
    if subprocess.run((*hide, mount), capture_output=True, check=False).returncode != 0:
        pytest.skip("this system lets not even root mount a /proc that hides processes")
    return (*hide, f'{mount} && exec "$@"', "sh")


@contextmanager
def public_folder() -> Iterator[Path]:
    """Make a folder that every user can reach: pytest's own are its user's alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        try:
            yield Path(name)
        finally:
            Path(name).chmod(0o755)
            for folder, subfolders, _ in os.walk(name):
                for subfolder in subfolders:
                    Path(folder, subfolder).chmod(0o755)  # or it could not be removed
