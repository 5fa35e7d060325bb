"""Fill the object store of a node and keep it full, until the process is ended: `… filling NODE_ID BYTES`."""

import signal
import sys

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PIECE_BYTES = 4_000_000


class Filling:
    """An actor that uses values without a copy, so that the store can neither drop them nor move them to a disk."""

    def fill(self, size_bytes: int) -> None:
        """Take this many bytes of the store."""
        references = [ray.put(np.zeros(PIECE_BYTES, np.uint8)) for _ in range(size_bytes // PIECE_BYTES)]
        self.held = [ray.get(reference) for reference in references]


def main(node_id: str, size_bytes: str) -> None:
    """Fill the store, print that, and wait for the end."""
    ray.init(log_to_driver=False)
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    filling = ray.remote(Filling).options(num_cpus=0, scheduling_strategy=there).remote()
    ray.get(filling.fill.remote(int(size_bytes)))
    print("full", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
