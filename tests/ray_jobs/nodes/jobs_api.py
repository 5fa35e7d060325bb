"""A job on the cluster, by the API of Ray Jobs."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.process_tree import title
from tests.ray_jobs.nodes.waiting import wait_until

if TYPE_CHECKING:
    from tests.ray_jobs.nodes.machines import Machine, Machines


LOG_SECONDS = 20.0


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    cluster: "Machines"
    number: str

    @property
    def state(self) -> str:
        return str(self._details()["status"])

    @property
    def log(self) -> str:
        """What the job has printed, if the machine of its driver answers."""
        try:
            return str(self.cluster.send(f"jobs/{self.number}/logs", seconds=LOG_SECONDS)["logs"])
        except OSError as error:
            return f"{error}"

    @property
    def machine(self) -> "Machine":
        """The machine that its driver runs on."""
        wait_until(lambda: bool(self._details().get("driver_node_id")), "the driver runs", lambda: self.log)
        return self.cluster.machine_of(self._details()["driver_node_id"])

    def driver(self) -> int:
        """Return the process of the driver, once there is one."""
        found: list[int] = []

        def look() -> bool:
            pids = self.machine.place.pids()
            found[:] = [pid for pid in pids if " -m ray_jobs." in (text := title(pid)) and "sh -c" not in text]
            return bool(found)

        wait_until(look, "the driver runs", lambda: self.log)
        return found[-1]

    @property
    def has_ended(self) -> bool:
        return self.state in ("SUCCEEDED", "FAILED", "STOPPED")

    def end(self) -> str:
        """Wait until it has ended, and return how."""
        wait_until(lambda: self.has_ended, "the job ends", lambda: self.log)
        print(f"{time.strftime('%X')} {self.number} ended:\n{self.log}")  # shown if the test fails
        return self.state

    def stop(self) -> None:
        """End it."""
        self.cluster.ask(f"jobs/{self.number}/stop", {})
        self.end()

    def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = self.cluster.ask(f"jobs/{self.number}")
        return details
