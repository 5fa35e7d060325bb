"""A stage of Ray Data on a cluster that loses the machine on which the first driver had started Ray Data's own actors.

    python -m tests.ray_jobs.nodes.first_machine ours|theirs

`ours`: as `ray_jobs.data_actors` starts them; `theirs`: as Ray Data does. Prints the rows that came, or the error.
"""

import os
import sys
import threading
import time

import ray
import ray.data
from ray.cluster_utils import Cluster
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.data._internal.execution.node_trackers.actor_location import get_or_create_actor_location_tracker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.data_actors import start_data_actors

ROWS, ROW_SECONDS, LOST_AFTER_SECONDS = 24, 1.0, 6.0


class Slow:
    """Takes a second for each row."""

    def __call__(self, row: dict[str, int]) -> dict[str, int]:
        time.sleep(ROW_SECONDS)
        return row


def start_theirs() -> None:
    """Start the actors as Ray Data does at the start of a stage."""
    get_or_create_autoscaling_coordinator()
    get_or_create_actor_location_tracker()


def main() -> None:
    """Start a cluster, the actors on one of its machines, and a stage on the others; lose the machine meanwhile."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    first = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    there = NodeAffinitySchedulingStrategy(first.node_id, soft=False)
    start = start_data_actors if sys.argv[1] == "ours" else start_theirs
    ray.get(ray.remote(start).options(num_cpus=1, scheduling_strategy=there).remote())
    actors = ray.data.ActorPoolStrategy(min_size=1, max_size=2)
    lives = {"max_restarts": 10, "max_task_retries": -1}
    dataset = ray.data.range(ROWS, override_num_blocks=ROWS).map(Slow, compute=actors, num_cpus=0.5, **lives)
    threading.Timer(LOST_AFTER_SECONDS, lambda: cluster.remove_node(first, allow_graceful=False)).start()
    try:
        print(len(dataset.take_all()), "rows", flush=True)
    except Exception as error:  # whatever Ray raises
        print(type(error.__cause__ or error).__name__, error, flush=True)
    ray.shutdown()
    cluster.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
