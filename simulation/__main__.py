"""Simulate nights with faults: `python -m simulation --seeds 1000`, or one seed again: `--seed 17 --trace`."""

import argparse
import os
import sys

from simulation.run_seeds import show, simulate


def main() -> None:
    """Simulate what the command line says; exit with 1 if a night broke an invariant."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many nights")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="simulate this seed alone, and say what happened")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every call of the store")
    options = parser.parse_args()
    if options.seed is not None:
        sys.exit(show(options.seed, trace=options.trace))
    sys.exit(simulate(range(options.first, options.first + options.seeds), options.processes))


if __name__ == "__main__":
    main()
