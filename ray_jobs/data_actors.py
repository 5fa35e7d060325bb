"""The two actors that Ray Data shares between all jobs of a cluster.

Ray Data binds them to the machine of the driver that was there first. Once that machine is lost, they can run nowhere,
and the run of another driver ends with Ray's ActorUnschedulableError.
"""

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.data._internal.execution.node_trackers.actor_location import ActorLocationTracker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CALLS_AT_ONCE = 8
"""Calls that the tracker of locations answers at once, as Ray Data has it."""


def start_data_actors() -> None:
    """Start the actors so that they survive their machine, unless they run already.

    Lost with their machine, they start elsewhere, without what they knew: where actors run, and what jobs have
    requested. Ray Data tells them again.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "lifetime": "detached",
        "get_if_exists": True,
        "scheduling_strategy": here,
    }
    ActorLocationTracker.options(
        name="ActorLocationTracker", namespace="ActorLocationTracker", max_concurrency=CALLS_AT_ONCE, **options
    ).remote()
    ray.remote(_AutoscalingCoordinatorActor).options(
        name="AutoscalingCoordinator", namespace="AutoscalingCoordinator", **options
    ).remote()
