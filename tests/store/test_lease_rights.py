"""The lease among users: a holder whose process is hidden from others, and one whose rights come and go."""

import os
from pathlib import Path

import pytest

from dpr.store import LocalStore
from dpr.store.lease import Lease
from tests.store.unprivileged import hiding_processes, public_folder, run_unprivileged

TAKE = """
from dpr.errors import ConflictError
from dpr.store import LocalStore
from dpr.store.lease import Lease
print(os.access(f"/proc/{sys.argv[2]}/stat", os.R_OK))
try:
    print("taken", Lease.acquire(LocalStore(sys.argv[1]), "run of nobody").fencing_number)
except ConflictError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("hidepid", [1, 2])
def test_a_holder_whose_process_is_hidden_keeps_the_lease(hidepid: int) -> None:
    """The other user may write everything in the store, so only what it sees of the holder keeps it from the lease."""
    before = hiding_processes(hidepid)
    with public_folder() as folder, Lease.acquire(LocalStore(folder / "store"), "run of root") as lease:
        for path in [folder / "store", *(folder / "store").rglob("*")]:
            path.chmod(0o777)
        is_shown, answer = run_unprivileged(TAKE, folder / "store", os.getpid(), before=before).split("\n")
        assert is_shown == "False"
        assert answer.startswith(f"store {folder / 'store'} is held by run of root (host ")
        lease.check()


BEAT = """
import time
from pathlib import Path
from dpr.store import LocalStore
from dpr.store.lease import Lease

def note():
    global attempts
    attempts += 1

def wait_until(happened):
    until = time.monotonic() + 60
    while not happened():
        lease.check()
        assert time.monotonic() < until
        time.sleep(0.01)

attempts, folder = 0, Path(sys.argv[1], "lease/00000001")
lease = Lease.acquire(LocalStore(sys.argv[1]), "run of nobody", ttl_seconds=0.1)
lease.account = note
folder.chmod(0o555)
tried, there = attempts, set(os.listdir(folder))
wait_until(lambda: attempts >= tried + 3)
folder.chmod(0o755)
wait_until(lambda: set(os.listdir(folder)) - there)
lease.release()
print("released")
"""


@pytest.mark.slow
def test_a_heart_outlives_a_folder_that_may_not_be_written_for_a_while() -> None:
    with public_folder() as folder:
        (folder / "store").mkdir()
        (folder / "store").chmod(0o777)
        assert run_unprivileged(BEAT, folder / "store") == "released"
        assert Path(folder, "store", "lease", "00000001", "released.json").exists()
