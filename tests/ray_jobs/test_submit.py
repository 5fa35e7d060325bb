"""`python -m ray_jobs.submit` against a head that answers as Ray's does: it ends as the job ends, whatever is lost."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from dpr.errors import ClusterError
from ray_jobs import submit
from tests.services.endpoint import free_ports

pytestmark = pytest.mark.without_ray

COMMAND = ["python", "-m", "ray_jobs.nightly", "--recipe", "my recipe.yaml"]


@dataclass
class Head:
    """What the head answers about its one job."""

    end: dict[str, object]
    """Fields of the job once it has ended."""
    texts: list[str] = field(default_factory=lambda: ["one\n", "one\ntwo\n", "one\ntwo\nthree\n"])
    """What it has printed at each look; it has ended when all were seen. Empty: its machine never answers."""
    submitted: list[dict[str, object]] = field(default_factory=list)
    looks: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def answer(self, method: str, path: str, body: bytes) -> object:
        if path == "/api/version":
            return {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}
        if method == "POST":
            self.submitted.append(json.loads(body))
            return {"submission_id": "night", "job_id": "night"}
        if path.endswith("/logs"):
            if not self.texts:
                self.stopping.wait()
            self.looks += 1
            return {"logs": self.texts[min(self.looks, len(self.texts)) - 1]}
        job = {"type": "SUBMISSION", "submission_id": "night", "entrypoint": "…"}
        return job | (self.end if self.looks >= len(self.texts) else {"status": "RUNNING"})


@contextmanager
def running(head: Head) -> Iterator[str]:
    """Run a head; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            text = json.dumps(head.answer(self.command, self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            head.stopping.set()
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LOOK_SECONDS": 0.05, "LAST_LINES_SECONDS": 0.5, "HEAD_SECONDS": 0.5}.items():
        monkeypatch.setattr(submit, name, seconds)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"status": "SUCCEEDED"}, 0),
        ({"status": "FAILED", "message": "…", "driver_exit_code": 8}, 8),
        ({"status": "STOPPED", "message": "…"}, 1),
    ],
)
def test_it_prints_what_the_job_prints_and_ends_as_it_ends(
    end: dict[str, object], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    head = Head(end)
    with running(head) as address:
        assert submit.submit(address, 1, COMMAND) == code
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
    (submitted,) = head.submitted
    assert str(submitted["entrypoint"]).startswith(
        "trap : TERM INT; python -m ray_jobs.nightly --recipe 'my recipe.yaml'; "
    )
    assert submitted["entrypoint_num_cpus"] == 1


def test_it_ends_as_the_command_does_where_ray_has_lost_the_exit_code() -> None:
    head = Head({"status": "FAILED", "message": "failed to get job supervisor"})
    with running(head) as address:
        submit.submit(address, None, ["sh", "-c", "echo one; exit 4"])
        (submitted,) = head.submitted
        ended = subprocess.run(
            str(submitted["entrypoint"]), shell=True, stdout=subprocess.PIPE, text=True, timeout=60, check=False
        )
        assert ended.returncode == 4
        head.looks, head.texts = 0, ["", ended.stdout]
        assert submit.submit(address, None, COMMAND) == 4
        head.looks, head.end = 0, {"status": "STOPPED", "message": "…"}
        assert submit.submit(address, None, COMMAND) == 1


def test_a_stopped_job_leaves_no_process_and_says_how_it_ended() -> None:
    """Ray sends the signal to both, and waits until both are gone."""
    program = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(7)); print('ready', flush=True)"
    entrypoint = submit.ENTRYPOINT.format(command=shlex.join([sys.executable, "-c", f"{program}; time.sleep(60)"]))
    with subprocess.Popen(entrypoint, shell=True, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "ready\n"
        both = [shell.pid, *(child.pid for child in psutil.Process(shell.pid).children(recursive=True))]
        assert len(both) == 2
        for pid in both:
            os.kill(pid, signal.SIGTERM)
        assert shell.wait(60) == 7
        assert not any(map(psutil.pid_exists, both))
        assert shell.stdout.read() == "the command ended with exit code 7\n"


@pytest.mark.slow
def test_it_ends_where_the_machine_of_the_driver_never_answers_again(capsys: pytest.CaptureFixture[str]) -> None:
    with running(Head({"status": "FAILED", "message": "the node has died"}, texts=[])) as address:
        assert submit.submit(address, 1, COMMAND) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "the last lines are missing: the driver's machine does not answer" in err
    assert "job night ended: FAILED, the node has died" in err


def test_a_head_that_is_not_there_is_named_in_a_sentence() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ClusterError, match=rf"^no job can be submitted to http://127.0.0.1:{port}: [^\n]*$"):
        submit.submit(f"http://127.0.0.1:{port}", 1, COMMAND)
