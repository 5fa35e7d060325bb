"""One peer of benchmarks/index.py, run by the Python it is installed in; knows neither dpr nor FAISS's other version.

    PEER-PYTHON benchmarks/index_peers.py NAME --passages P.npy --questions Q.npy --folder CACHE --threads N

Builds the peer's index in CACHE unless it is there, asks all questions one at a time on one thread with each of its
settings, and writes for each a file SETTING.npz: ids (Q, K) and seconds of CPU time (Q,). The last line of output is
JSON.

Shapes: N passages, Q questions, K neighbours, D dimensions.
"""

import argparse
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

K = 20
WARM_UP = 50
EF = (20, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
LINKS, EF_CONSTRUCTION = 32, 100
Ask = Callable[[np.ndarray], Any]
"""One question (D,) to ids (K,)."""


def hnswlib_peer(vectors_ND: np.ndarray, folder: Path) -> Iterator[tuple[str, Ask]]:
    import hnswlib

    index, file = hnswlib.Index("ip", vectors_ND.shape[1]), folder / "index.bin"
    if file.exists():
        index.load_index(str(file))
    else:
        index.init_index(len(vectors_ND), M=LINKS // 2, ef_construction=EF_CONSTRUCTION, random_seed=0)
        index.add_items(vectors_ND)
        index.save_index(str(file))
    index.set_num_threads(1)
    for ef in EF:
        index.set_ef(ef)
        yield f"ef {ef}", lambda q: index.knn_query(q, K)[0][0]


def usearch_peer(vectors_ND: np.ndarray, folder: Path) -> Iterator[tuple[str, Ask]]:
    from usearch.index import Index

    file = folder / "index.usearch"
    index = Index(
        ndim=vectors_ND.shape[1],
        metric="ip",
        dtype="f16",
        connectivity=LINKS // 2,
        expansion_add=EF_CONSTRUCTION,
    )
    if file.exists():
        index.load(str(file))
    else:
        index.add(np.arange(len(vectors_ND)), vectors_ND, threads=os.cpu_count())
        index.save(str(file))
    for ef in EF:
        index.expansion_search = ef
        yield f"ef {ef}", lambda q: index.search(q, K, threads=1).keys


def scann_peer(vectors_ND: np.ndarray, folder: Path) -> Iterator[tuple[str, Ask]]:
    import scann

    saved = folder / "scann"
    if saved.exists():
        searcher = scann.scann_ops_pybind.load_searcher(str(saved))
    else:
        # as its documentation advises: lists near the square root of N, two dimensions to a code, threshold 0.2
        leaves = int(2 * len(vectors_ND) ** 0.5)
        searcher = (
            scann.scann_ops_pybind.builder(vectors_ND, K, "dot_product")
            .tree(
                num_leaves=leaves, num_leaves_to_search=leaves // 20, training_sample_size=min(len(vectors_ND), 250_000)
            )
            .score_ah(2, anisotropic_quantization_threshold=0.2)
            .reorder(100)
            .set_n_training_threads(os.cpu_count() or 1)
            .build()
        )
        saved.mkdir()
        searcher.serialize(str(saved))
    for leaves in (4, 8, 16, 32, 64, 128, 256, 512):
        for reordered in (40, 100, 200):

            def ask(q: np.ndarray, leaves: int = leaves, reordered: int = reordered) -> Any:
                found = searcher.search(q, leaves_to_search=leaves, pre_reorder_num_neighbors=reordered)[0]
                return np.pad(found, (0, K - len(found)), constant_values=-1)

            yield f"leaves {leaves}, reordered {reordered}", ask


def autofaiss_peer(vectors_ND: np.ndarray, folder: Path, memory: str) -> Iterator[tuple[str, Ask]]:
    import faiss

    file = folder / "index.faiss"
    if not file.exists():
        autofaiss_build(vectors_ND, folder, memory)
    index = faiss.read_index(str(file))
    infos = json.loads((folder / "infos.json").read_text())
    faiss.omp_set_num_threads(1)
    parameters = faiss.ParameterSpace()
    chosen = infos["index_param"]
    yield f"its own: {infos['index_key']}, {chosen}", lambda q: index.search(q[None], K)[1][0]
    for nprobe in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if "nprobe" in chosen else ():
        wider = ",".join([f"nprobe={nprobe}", *(p for p in chosen.split(",") if not p.startswith("nprobe"))])
        parameters.set_index_parameters(index, wider)
        yield f"{infos['index_key']}, {wider}", lambda q: index.search(q[None], K)[1][0]


def autofaiss_build(vectors_ND: np.ndarray, folder: Path, memory: str) -> None:
    import autofaiss

    _, infos = autofaiss.build_index(
        vectors_ND,
        index_path=str(folder / "index.faiss"),
        index_infos_path=str(folder / "its_infos.json"),
        max_index_memory_usage=memory,
        current_memory_available="8GB",
        metric_type="ip",
        nb_cores=os.cpu_count(),
        verbose=40,  # errors
    )
    kept = {key: str(infos[key]) for key in ("index_key", "index_param")}
    (folder / "infos.json").write_text(json.dumps(kept))


def measure(settings: Iterator[tuple[str, Ask]], questions_QD: np.ndarray, folder: Path) -> list[str]:
    """Ask with every setting; returns their names."""
    names: list[str] = []
    for name, ask in settings:
        for question in questions_QD[:WARM_UP]:
            ask(question)
        ids_QK, seconds_Q = np.empty((len(questions_QD), K), np.int64), np.empty(len(questions_QD))
        for row, question in enumerate(questions_QD):
            started = time.thread_time()  # all peers answer in the thread that asks
            ids_QK[row] = ask(question)
            seconds_Q[row] = time.thread_time() - started
        np.savez(folder / f"asked-{len(names)}.npz", ids=ids_QK, seconds=seconds_Q)
        names.append(name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["hnswlib", "usearch", "scann", "autofaiss"])
    for name in ("--passages", "--questions", "--folder"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--memory", default="")
    parser.add_argument("--build-only", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    vectors_ND = np.load(given.passages).astype(np.float32)
    found: dict[str, Any] = {"version": importlib.metadata.version(given.name)}
    started = time.perf_counter()
    peer = {"hnswlib": hnswlib_peer, "usearch": usearch_peer, "scann": scann_peer}.get(given.name)
    settings = peer(vectors_ND, given.folder) if peer else autofaiss_peer(vectors_ND, given.folder, given.memory)
    if given.build_only:
        next(settings)
    else:
        found["settings"] = measure(settings, np.load(given.questions), given.folder)
    found["seconds"] = time.perf_counter() - started
    files = [file for file in given.folder.rglob("*") if file.is_file() and "asked-" not in file.name]
    found["bytes"] = sum(file.stat().st_size for file in files)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
