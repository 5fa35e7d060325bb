"""How fast an index is built and searched on a CPU, beside FAISS alone, autofaiss, ScaNN, hnswlib and usearch.

    python benchmarks/index.py --data DATA --cache CACHE [--part b|c|d] [--rows N] [--peer-python PATH …]

DATA holds SQuAD and MedQuAD in BEIR layout; CACHE, outside the project, keeps vectors, indexes and measurements, so
that a part that was measured is only printed again (delete CACHE/results for new measurements). Peers are looked for in
the Pythons named; those that none of them has are left out, with a line that says so. Parts: (b) building, time and
memory; (c) recall against queries a second on one thread; (d) what compression costs in accuracy. Part (a), 21 million
vectors on a GPU, is benchmarks/index_gpu.py. Writes benchmarks/results/index_HARDWARE_DATE.md and a picture.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import index_data
import index_search
import numpy as np
from index_data import Vectors
from index_report import write_report
from index_watch import watched

HERE = Path(__file__).resolve().parent
PEERS = ("scann", "hnswlib", "usearch", "autofaiss")
AUTOFAISS_BYTES = 112
"""Memory that autofaiss may use for a vector: what our IVF-PQ takes, centroids included."""


@dataclass(frozen=True)
class Bench:
    """Where everything lies."""

    data: Path
    cache: Path
    rows: int
    pythons: Sequence[str]
    only: Sequence[str] = ()
    """Contenders of part (c); none: all."""

    @property
    def folder(self) -> Path:
        return self.cache / f"b-{self.rows}"

    @property
    def passages(self) -> Path:
        return self.cache / f"vectors-{self.rows}" / "passages.npy"

    @property
    def segments(self) -> Path:
        return self.folder / "store"

    @property
    def built(self) -> Path:
        return self.folder / "built" / "store"

    def vectors(self) -> Vectors:
        return index_data.load(self.data, self.cache, self.rows)

    def result(self, name: str) -> Path:
        folder = self.cache / "results" / str(self.rows)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.json"

    def among(self, contenders: Iterable[str]) -> list[str]:
        """The contenders to measure."""
        return [name for name in contenders if not self.only or name in self.only]

    def python_of(self, peer: str) -> str | None:
        """The Python that has a peer."""
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({peer!r}) is None)"
        runs = (python for python in self.pythons if not subprocess.run([python, "-c", code], check=False).returncode)
        return next(runs, None)


def our_process(bench: Bench, name: str, factory: str = "auto") -> dict[str, Any]:
    """One contender of index_build.py; kept."""
    file = bench.result(name)
    if not file.exists():
        command = [sys.executable, str(HERE / "index_build.py"), name, "--factory", factory]
        paths = {"--passages": bench.passages, "--segments": bench.segments, "--built": bench.built}
        found, peaks = watched([*command, *(str(word) for pair in paths.items() for word in pair)])
        file.write_text(json.dumps({**found, "peaks": vars(peaks)}), encoding="utf-8")
        print(name, file.read_text(), flush=True)
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return kept


def peer_process(bench: Bench, peer: str, *, build_only: bool = False) -> dict[str, Any] | None:
    """One peer of index_peers.py; kept. None if no Python has it."""
    file = bench.result(f"{peer}-build" if build_only else peer)
    if not file.exists():
        python = bench.python_of(peer)
        if python is None:
            return None
        vectors = bench.vectors()
        questions = bench.cache / "test-questions.npy"
        np.save(questions, vectors.questions_QD[vectors.test])
        paths = {"--passages": bench.passages, "--questions": questions, "--folder": bench.folder / peer}
        command = [python, str(HERE / "index_peers.py"), peer, *(str(word) for pair in paths.items() for word in pair)]
        if peer == "autofaiss":
            command += ["--memory", f"{bench.rows * AUTOFAISS_BYTES // 2**20}MB"]
        found, peaks = watched([*command, *(["--build-only"] if build_only else [])], **_environment(build_only))
        points = index_search.peer_points(peer, found.get("settings", []), bench.folder / peer, vectors)
        found["points"] = [vars(point) for point in points]
        file.write_text(json.dumps({**found, "peaks": vars(peaks)}), encoding="utf-8")
        print(peer, found["seconds"], flush=True)
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return kept


def _environment(building: bool) -> dict[str, str]:
    one = {} if building else dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **one}


def building(bench: Bench) -> None:
    """Part (b). Stops the benchmark if a merge held more than it promises."""
    bench.vectors()
    our_process(bench, "segments")
    our_process(bench, "ours")
    merged = our_process(bench, "merging")
    if merged["held"] > merged["limit"]:
        raise SystemExit(
            f"merging held {merged['held']:,} bytes; largest part, buffer and spare are {merged['limit']:,}"
        )
    factory = json.loads((bench.built.parent / "built.json").read_text())["codebook"]["factory"]
    our_process(bench, "single", f"{factory}np" if factory.split(",")[-1].startswith("PQ") else factory)
    peer_process(bench, "autofaiss", build_only=True)
    peer_process(bench, "autofaiss")


def searching(bench: Bench, *, build_only: bool = False) -> None:
    """Part (c)."""
    vectors = bench.vectors()
    our_process(bench, "segments")
    for peer in bench.among(PEERS):
        peer_process(bench, peer, build_only=True)
        if not build_only:
            peer_process(bench, peer)
    kinds = bench.among(index_search.factories(bench.rows))
    for name in kinds:
        index_search.built(index_search.factories(bench.rows)[name], vectors, bench.segments)
    faiss.omp_set_num_threads(1)
    for name in () if build_only else kinds:
        file = bench.result(f"points-{name}")
        if not file.exists():
            index_search.write_points(list(index_search.kind_points(name, vectors, bench.segments)), file)


def compressing(bench: Bench) -> None:
    """Part (d)."""
    bench.vectors()
    our_process(bench, "segments")
    if not bench.result("accuracy").exists():
        factory, rows = index_search.compression(bench.vectors(), bench.segments)
        found = {"factory": factory, "rows": [vars(row) for row in rows]}
        bench.result("accuracy").write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--cache"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--part", choices=["b", "c", "d"])
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors of parts b and c")
    parser.add_argument("--peer-python", action="append", default=[], help="a Python that has peers installed")
    parser.add_argument("--only", action="append", default=[], help="part c: a contender to measure; else all")
    parser.add_argument("--build-only", action="store_true", help="part c: make the indexes, measure nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    pythons = [sys.executable, *given.peer_python]
    bench = Bench(given.data, given.cache, given.rows, pythons, given.only)
    if given.part in (None, "b"):
        building(bench)
    if given.part in (None, "c"):
        searching(bench, build_only=given.build_only)
    if given.part in (None, "d"):
        compressing(Bench(given.data, given.cache, 0, pythons))
    if not given.build_only:
        write_report(given.cache / "results", given.out)


if __name__ == "__main__":
    main()
