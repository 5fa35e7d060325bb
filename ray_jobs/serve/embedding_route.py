"""POST /v1/embeddings: the vectors of texts, in the form of OpenAI's embeddings."""

import base64
import time
from functools import partial

import numpy as np
from fastapi import FastAPI, Response

from dpr.answers.answered import StepTimings
from dpr.answers.embedding_answer import Embedding, EmbeddingAnswer, Usage
from dpr.index.truth import Scores
from dpr.operations.follow import Follower
from dpr.search.embeddings import Embedded
from ray_jobs.serve.api_examples import EMBEDDED, answers
from ray_jobs.serve.batch import Batcher
from ray_jobs.serve.embedding_messages import EmbeddingRequest
from ray_jobs.serve.messages import milliseconds
from ray_jobs.serve.refusals import ERRORS

TEXTS_AT_ONCE = 16
"""Texts that are encoded at a time; between two such calls, waiting questions are answered."""


def add_embeddings(app: FastAPI, follower: Follower, batcher: Batcher) -> None:
    """Add the route."""

    @app.post("/v1/embeddings", response_model=EmbeddingAnswer, responses=ERRORS | answers(EMBEDDED))
    async def embeddings(request: EmbeddingRequest) -> Response:
        """Turn texts into vectors, by the tower for questions or by that for passages."""
        started, texts = time.perf_counter(), request.texts()
        parts: list[Embedded] = []
        work_seconds = 0.0
        with follower.snapshot() as retriever:
            for first in range(0, len(texts), TEXTS_AT_ONCE):
                some = texts[first : first + TEXTS_AT_ONCE]
                embed = partial(retriever.embedder.embed, some, request.model, request.dimensions)
                part, seconds = await batcher.run(embed)
                parts.append(part)
                work_seconds += seconds
            snapshot, encoder_id = retriever.number, retriever.body.encoder_id
        tokens = sum(part.tokens for part in parts)
        vectors = (vector_d for part in parts for vector_d in part.vectors_Nd)
        response = EmbeddingAnswer(
            data=[
                Embedding(index=index, embedding=_form(vector_d, request.encoding_format == "base64"))
                for index, vector_d in enumerate(vectors)
            ],
            model=request.model,
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens, lost_tokens=sum(part.lost_tokens for part in parts)),
            snapshot=snapshot,
            encoder_id=encoder_id,
            timings_ms=StepTimings(work=milliseconds(work_seconds), total=milliseconds(time.perf_counter() - started)),
        )
        return Response(response.model_dump_json(), media_type="application/json")


def _form(vector_d: Scores, is_base64: bool) -> list[float] | str:
    if is_base64:
        return base64.b64encode(vector_d.astype("<f4").tobytes()).decode()
    components: list[float] = np.asarray(vector_d, np.float32).tolist()
    return components
