"""A BERT that OpenVINO computes, over batches of sequences packed one after another, by several threads at once.

The library computes each batch in one thread, as in `dpr.encoder.encode`. These threads are its own and know nothing of
Python, so none of them waits for Python's lock between two batches.

Shapes: B rows of a batch, T tokens of a batch, H hidden size, D dimensions.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from dpr.encoder.openvino_bert import GROUP, BertWeights, Floats, bert_graph, load_openvino
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec
from dpr.idle_processors import IdleProcessors

STEP_TOKENS = 16
"""Batches are padded to multiples of this many tokens.

For each number of tokens, the library compiles products in 5 to 30 ms. It adds up attention over 8, 24 or 40 tokens in
another order than over multiples of 16, so a question would get another vector alone than with others.
"""
LONE_THREADS = 2
"""Threads that compute a batch alone, while processors are idle."""
BATCHES_AHEAD = 2
"""Batches of one call that are under way or wait, for each thread of the library."""
FAR_BELOW = np.float32(-1e9)


@dataclass(frozen=True)
class _Running:
    """A batch that the library computes in a thread of its own."""

    request: Any
    tokens: TokenBatch
    inputs: Sequence[Floats]
    """They are here, since the library reads them where they lie."""


class OpenVinoBert:
    """The graph, compiled; several threads may call it at once.

    It is compiled more than once, since OpenVINO either computes in the thread that calls, one batch at a time, or in
    threads of its own, which have to be woken: a tenth of what a question takes. So a batch alone is computed in the
    caller's thread, if nothing else is. A second thread helps while a processor is idle. It would not while all are
    busy: each part of a pass would wait until both threads had their turn.
    """

    def __init__(self, tower: TowerSpec, bert: BertWeights, threads: int, *, rounded: bool) -> None:
        graph = bert_graph(bert, rounded=rounded)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP if rounded else 0),
            "ENABLE_CPU_PINNING": "NO",  # otherwise all replicas would take the first processors
        }

        def compiled(streams: int, threads: int) -> Any:
            counts = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(threads)}
            return load_openvino().Core().compile_model(graph, "CPU", settings | counts)

        self._here, self._turn = compiled(0, 1).create_infer_request(), threading.Lock()
        self._streams = compiled(threads, threads) if threads > 1 else None
        self._pair = compiled(1, LONE_THREADS).create_infer_request() if threads >= LONE_THREADS else None
        self._idle_processors = IdleProcessors()
        self._ahead = BATCHES_AHEAD * threads
        self._idle: list[Any] = []
        """Requests of the streams that compute nothing."""
        self._words, self._types, self._places = bert.tables
        self._tower = tower

    def warm_up(self, tokens: TokenBatch) -> None:
        """Compute a batch in every graph, so that the library compiles what it needs; streams share that."""
        with self._turn:
            for request in filter(None, (self._here, self._pair)):
                request.infer(self._inputs(tokens), share_inputs=True)
        if self._streams is not None:
            self._finished(self._started(tokens, self._streams))

    def vectors(self, batches: Sequence[TokenBatch]) -> Sequence[Floats]:
        """Return vectors (B, D) of the rows of each batch, all of which have tokens."""
        if self._streams is None or (len(batches) == 1 and not self._turn.locked()):
            return [self._computed_here(tokens) for tokens in batches]
        running: deque[_Running] = deque()
        found = []
        try:
            for tokens in batches:
                if len(running) == self._ahead:
                    found.append(self._finished(running.popleft()))
                running.append(self._started(tokens, self._streams))
            while running:
                found.append(self._finished(running.popleft()))
        finally:
            for each in running:  # after an error: the library reads their inputs until it has finished
                each.request.wait()
        return found

    def _computed_here(self, tokens: TokenBatch) -> Floats:
        with self._turn:
            inputs = self._inputs(tokens)
            request = self._here
            if self._pair is not None and self._idle_processors.are_there(LONE_THREADS - 1):
                request = self._pair
            return self._finish(tokens, request.infer(inputs, share_inputs=True, share_outputs=True)[0])

    def _started(self, tokens: TokenBatch, streams: Any) -> _Running:
        inputs = self._inputs(tokens)
        try:
            request = self._idle.pop()
        except IndexError:
            request = streams.create_infer_request()
        request.start_async(inputs, share_inputs=True)
        return _Running(request, tokens, inputs)

    def _finished(self, running: _Running) -> Floats:
        running.request.wait()
        vectors_BD = self._finish(running.tokens, running.request.get_output_tensor(0).data)
        self._idle.append(running.request)
        return vectors_BD

    def _inputs(self, tokens: TokenBatch) -> Sequence[Floats]:
        """Return summed embeddings (T, H), and the mask between rows (1, 1, T, T), both with padding."""
        count = len(tokens.ids_T)
        size = computed_tokens(count)
        summed_TH = np.zeros((size, self._words.shape[1]), np.float32)
        summed_TH[:count] = self._words[tokens.ids_T] + self._types[tokens.types_T]
        mask_TT = np.full((size, size), FAR_BELOW)
        for first, end in pairwise([*tokens.offsets.tolist(), size]):
            mask_TT[first:end, first:end] = 0
            if first < count:
                summed_TH[first:end] += self._places[: end - first]
        return summed_TH, mask_TT[np.newaxis, np.newaxis]

    def _finish(self, tokens: TokenBatch, hidden_TH: Floats) -> Floats:
        """Return the vectors (B, D) of what the graph gives."""
        pooled_BH = self._pooled(hidden_TH[: len(tokens.ids_T)], tokens.offsets[:-1], tokens.lengths())
        vectors_BD: Floats = pooled_BH[:, : self._tower.dim]
        if self._tower.normalize:
            lengths_B1 = np.maximum(np.linalg.norm(vectors_BD, axis=1, keepdims=True), np.float32(1e-12))
            vectors_BD = np.divide(vectors_BD, lengths_B1, dtype=np.float32)
        return vectors_BD

    def _pooled(self, hidden_TH: Floats, firsts_B: npt.NDArray[np.int64], lengths_B: npt.NDArray[np.int64]) -> Floats:
        if self._tower.pooling == "cls":
            return hidden_TH[firsts_B]
        if self._tower.pooling == "max":
            return np.maximum.reduceat(hidden_TH, firsts_B, axis=0)
        means_BH: Floats = np.add.reduceat(hidden_TH, firsts_B, axis=0)
        means_BH /= lengths_B[:, np.newaxis].astype(np.float32)
        return means_BH


def computed_tokens(tokens: int) -> int:
    """Return how many tokens are computed for so many."""
    return -(-tokens // STEP_TOKENS) * STEP_TOKENS
