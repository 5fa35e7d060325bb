"""Decide where the steps of a stage run on a Ray: in how many actors, with which shares of CPUs and GPUs."""

from typing import Any, NotRequired, TypedDict

import ray
from ray.data import ActorPoolStrategy

from dpr.engine.executor import Cluster
from dpr.engine.stage import Step
from dpr.index.hardware import Hardware
from dpr.recipe import Resources

MAX_ACTORS = 64
ACTOR_CPUS = 0.5
"""CPUs that Ray counts for one thread of an actor; the actor itself sets how many threads it uses. The number is small,
so that all actors find room on a small machine, and other stages find CPUs while actors load."""
BESIDE_ENCODER_CPUS = 2.5
"""CPUs of a machine that an encoder without a GPU leaves to others: to the driver, a writer, and a tokeniser."""
UNITS_PER_ENCODER = 2
"""Units that an encoder has at once: while it computes one, the next is unpacked and the previous one is packed."""
TOKENIZING_SHARE = 0.75
"""Share of the CPUs of machines with GPUs that tokenise; the others launch kernels, write segments and drive."""
TOKENIZER_THREADS = 2
"""Threads of one tokeniser that feeds GPUs: two finish a unit sooner than one; more would wait for Python's global
lock."""
TOKENIZER_CPUS = 0.25
"""CPUs that Ray counts for such a thread: it waits while scans run, which use its CPU meanwhile."""
CODERS_PER_GPU = 8
"""Processes that read and write while one of them has the GPU: it codes a segment in a fraction of that time."""
ROWS_PER_CODER = 50_000
"""One coder for each of this many rows: it codes them faster than another coder loads, since processes that start CUDA
wait for each other."""
SMALL_SHARE = 1 / CODERS_PER_GPU
LARGE_SHARE = 1 - SMALL_SHARE
"""Share of a GPU that an encoder or a trainer requests, though it uses it alone: processes for later stages load beside
it."""
LOADING_SHARE = SMALL_SHARE / 16
"""Share that each of those processes requests: they compute when the GPU is free."""

WITHOUT_FP8 = ("K80", "P4", "P100", "V100", "T4", "A10G", "A100", "L4", "L40S")
"""GPUs, by Ray's names, that the encoder does not multiply fp8 on (`dpr.encoder.packed_fp8.multiplies_fp8`)."""


class Pool(TypedDict):
    """Arguments of `Dataset.map` that describe the actors of a step."""

    compute: ActorPoolStrategy
    num_cpus: float
    num_gpus: NotRequired[float]


class Placement:
    """Places steps on the connected Ray in its present size, by a recipe's resources."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def is_task(self, step: Step[Any, Any]) -> bool:
        """Return whether a step runs in any worker, and is made again for each unit."""
        return step.on in ("task", "coder", "asker") or (step.on == "trainer" and not self.gpu_share(step))

    def may_load_ahead(self) -> bool:
        """Return whether encoders should load while other stages run.

        A GPU must not wait. Without one, or without a CPU that is left for other stages, loading would delay them. GPUs
        that an autoscaling cluster would have to start are not asked for yet: there may be nothing to embed.
        """
        each = self._gpus_per_encoder()
        return 0 < each <= _cluster_gpus() and self._tokenizing_cpus() >= ACTOR_CPUS

    def encoder_threads(self) -> int:
        """Return how many CPU threads an encoder uses."""
        if self._gpus_per_encoder():
            return 1
        return max(1, _largest_node() // self._resources.encoders)

    def tokenizer_threads(self) -> int:
        """Return how many CPU threads a tokeniser uses."""
        if not self._gpus_per_encoder():
            return 1  # the encoders need the CPUs more
        return max(1, min(TOKENIZER_THREADS, int(TOKENIZING_SHARE * _largest_node()), int(self._tokenizing_cpus())))

    def hardware(self) -> Hardware:
        """Return what a trainer or coder may use.

        A trainer requests one CPU of Ray and uses all: nothing else runs meanwhile, and Ray would never give a whole
        machine of which something else holds a CPU.
        """
        return Hardware("cuda" if _cluster_gpus() else None, _largest_node())

    def emulates_fp8(self) -> bool:
        """Return whether encoders compute on CPUs, or may get a GPU that is known to have no products of fp8."""
        old = {f"accelerator_type:{name}" for name in WITHOUT_FP8}
        return not self._gpus_per_encoder() or not old.isdisjoint(ray.cluster_resources())

    def cluster(self) -> Cluster:
        """Return the resources of the cluster."""
        there, each = ray.cluster_resources(), self._gpus_per_encoder()
        encoders = self._max_encoders()
        if each and there.get("GPU"):  # an autoscaling cluster may have none yet
            encoders = max(1, min(encoders, int(there["GPU"] / each)))
        return Cluster(cpus=int(there.get("CPU", 1)), encoders=encoders, gpus_per_encoder=each, overlap=True)

    def gpu_share(self, step: Step[Any, Any]) -> float:
        """Return how many GPUs a step holds."""
        if step.on == "encoder" and self._resources.gpus_per_encoder is not None:
            return self._resources.gpus_per_encoder
        shares = {"encoder": LARGE_SHARE, "trainer": LARGE_SHARE, "coder": SMALL_SHARE, "asker": SMALL_SHARE}
        return shares.get(step.on, 0.0) if _cluster_gpus() else 0.0

    def loading_share(self) -> float:
        """Return the share of a GPU that a process requests while it loads for a later stage."""
        return LOADING_SHARE if _cluster_gpus() else 0.0

    def coders(self, rows: int) -> int:
        """Return how many coders share the GPUs for this many rows."""
        return min(int(CODERS_PER_GPU * _cluster_gpus()), coders_worth(rows))

    def pool(self, step: Step[Any, Any], units: int) -> Pool:
        """Return the actors of a step that gets at most this many units."""
        if step.on == "actor":
            return self._tokenizers(units)
        return self._encoders(step, units)

    def _tokenizers(self, units: int) -> Pool:
        threads = self.tokenizer_threads()
        # not bounded by the CPUs there are now: an autoscaling cluster may have none yet
        low, high, cpus = 1, MAX_ACTORS, ACTOR_CPUS
        if each := self._gpus_per_encoder():  # the GPUs wait only for these, so all start at once, and stay
            low = min(units, max(1, int(self._tokenizing_cpus()) // threads))
            if _cluster_gpus() >= each * self._max_encoders():  # no GPU will be added, so these are enough
                high, cpus = low, TOKENIZER_CPUS
        compute = ActorPoolStrategy(min_size=low, max_size=max(low, min(units, high)))
        return {"compute": compute, "num_cpus": cpus * threads}

    def _encoders(self, step: Step[Any, Any], units: int) -> Pool:
        low = min(units, self._resources.encoders)
        compute = ActorPoolStrategy(
            min_size=low,
            max_size=max(low, min(units, self._resources.max_encoders or low)),
            max_concurrent_calls_per_actor=UNITS_PER_ENCODER,
            enable_true_multi_threading=True,
        )
        return {"compute": compute, "num_cpus": self._encoder_cpus(), "num_gpus": self.gpu_share(step)}

    def _encoder_cpus(self) -> float:
        """Return how many CPUs Ray counts for an encoder.

        Without a GPU these are most of those that it uses, so that a second one goes to another machine, or makes an
        autoscaling cluster add one. On small machines it is no more than for other actors.
        """
        if self._gpus_per_encoder():
            return ACTOR_CPUS
        threads = min(self._resources.cpus_per_encoder or self.encoder_threads(), _largest_node())
        return max(ACTOR_CPUS, threads - BESIDE_ENCODER_CPUS)

    def _tokenizing_cpus(self) -> float:
        """Return the CPUs that tokenisers may hold beside GPUs: the writer and each encoder must find room, too."""
        cpus = _cluster_cpus()
        return min(TOKENIZING_SHARE * cpus, cpus - 1 - ACTOR_CPUS * self._resources.encoders)

    def _gpus_per_encoder(self) -> float:
        stated = self._resources.gpus_per_encoder
        if stated is None:
            return 1.0 if _cluster_gpus() else 0.0
        return stated

    def _max_encoders(self) -> int:
        return self._resources.max_encoders or self._resources.encoders


def coders_worth(rows: int) -> int:
    """Return how many coders are worth loading on GPUs for this many rows."""
    return max(1, -(-rows // ROWS_PER_CODER))


def _cluster_cpus() -> float:
    return float(ray.cluster_resources().get("CPU", 1))


def _cluster_gpus() -> float:
    return float(ray.cluster_resources().get("GPU", 0))


def _largest_node() -> int:
    """Return how many CPUs the largest machine of the cluster has."""
    return max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
