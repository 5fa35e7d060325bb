"""Submit a job to a cluster, show its output, and end with its exit code.

`python -m ray_jobs.submit --address http://HEAD:8265 --entrypoint-num-cpus 1 -- python -m ray_jobs.nightly --recipe R`

`ray job submit` does the same, but waits forever if the driver's machine is lost without closing its connections: it
has no time limit. This program asks the head for the job's state every few seconds, and reads the output separately.
"""

import re
import shlex
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeVar

import typer
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from dpr.errors import ClusterError
from ray_jobs.command_line import call
from ray_jobs.leaving import run_and_exit
from ray_jobs.output import console

LOOK_SECONDS = 5.0
HEAD_SECONDS = 300.0
"""How long the head may give no answer, for example while it restarts."""
ENTRYPOINT = 'trap : TERM INT; {command}; code=$?; echo "the command ended with exit code $code"; exit $code'
"""The log holds the exit code, since Ray forgets it if the command ends while Ray looks for the job's actor.

A job is stopped by a signal to the shell and to the command. The shell outlives it (`trap`) and waits for the command,
which would otherwise stay a zombie where nothing else waits for it, and Ray would wait for the zombie.
"""
STOP_SECONDS = 30
"""Within so long a job that is stopped has to end by itself; then Ray kills it. Ray's own 3 seconds are too few to
release the store."""
LAST_LINES_SECONDS = 20.0
"""How long to wait for the last lines: they come from the driver's machine, which may be lost."""
REQUEST_SECONDS = 60.0
Answer = TypeVar("Answer")


class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types
    """Ray's client with a time limit on requests. Its own requests wait forever for a machine that was lost."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, **({"timeout": REQUEST_SECONDS} | options))


class Output:
    """Prints the output of a job, in a thread that may hang if the driver's machine is lost."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client, self._job_id, self._text = client, job_id, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show_on, name="output of the job", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Print the last lines, if they arrive."""
        self._over.set()
        self._thread.join(LAST_LINES_SECONDS)
        if self._thread.is_alive():
            console(stderr=True).print("the last lines are missing: the driver's machine does not answer")

    def exit_code(self) -> int | None:
        """Return the exit code that the entrypoint has printed, or None if that line is missing."""
        codes = re.findall(r"^the command ended with exit code (\d+)$", self._text, re.MULTILINE)
        return int(codes[-1]) if codes else None

    def _show_on(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._over.wait(LOOK_SECONDS)
            try:
                text = self._client.get_job_logs(self._job_id)
            except (RuntimeError, OSError, RayError):  # the next request may succeed, or the job's own error says more
                continue
            sys.stdout.write(text[len(self._text) :])
            sys.stdout.flush()
            self._text = max(self._text, text, key=len)


def submit(address: str, cpus: float | None, command: list[str]) -> int:
    """Submit a command, follow it to its end, and return its exit code; 1 if it was lost or stopped."""
    try:
        client = Client(address)
        job_id = client.submit_job(
            entrypoint=ENTRYPOINT.format(command=shlex.join(command)),
            entrypoint_num_cpus=cpus,
            runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}},
        )
    except (RuntimeError, OSError, RayError) as error:
        raise ClusterError(f"no job can be submitted to {address}: {_one_line(error)}") from error
    how = f"ray job stop --address={address} {job_id}"
    console(stderr=True).print(f"submitted {job_id}; to stop it: {how}", highlight=False)
    output = Output(client, job_id)
    try:
        details = _wait_for_end(client, job_id)
    except KeyboardInterrupt:
        console(stderr=True).print(f"job {job_id} goes on without this command", highlight=False)
        raise
    output.finish()
    if details.status == "SUCCEEDED":
        return 0
    console(stderr=True).print(f"job {job_id} ended: {details.status}, {details.message}", highlight=False)
    if details.status == "FAILED":
        return details.driver_exit_code or output.exit_code() or 1
    return 1


def _wait_for_end(client: Client, job_id: str) -> JobDetails:
    """Return how a job ended."""
    while not (details := _from_head(lambda: client.get_job_info(job_id))).status.is_terminal():
        time.sleep(LOOK_SECONDS)
    return details


def _from_head(ask: Callable[[], Answer]) -> Answer:
    """Return the head's answer; a request without an answer is repeated for a while."""
    give_up = time.monotonic() + HEAD_SECONDS
    while True:
        try:
            return ask()
        except (RuntimeError, OSError, RayError) as error:
            if time.monotonic() > give_up:
                raise ClusterError(
                    f"the head has given no answer for {HEAD_SECONDS:.0f} s: {_one_line(error)}; the job may go on, so "
                    "look at it before you submit it again"
                ) from error
            time.sleep(LOOK_SECONDS)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"ignore_unknown_options": True}, help="Submit a job and follow it to its end.")
def job(
    command: Annotated[list[str], typer.Argument(help="The command, after --.")],
    address: Annotated[str, typer.Option(help="Dashboard of the cluster's head.")] = "http://127.0.0.1:8265",
    entrypoint_num_cpus: Annotated[float | None, typer.Option(help="CPUs that Ray counts for the driver.")] = None,
) -> None:
    """Submit a job and follow it to its end."""
    raise typer.Exit(submit(address, entrypoint_num_cpus, command))


if __name__ == "__main__":
    run_and_exit(partial(call, app))
