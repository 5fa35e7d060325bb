"""The server that one writes by hand: FastAPI, sentence-transformers and FAISS in one process.

    python benchmarks/serve_peer.py PORT MODEL SEGMENTS

SEGMENTS is a folder of the store: its Parquet files hold texts and vectors. Vectors are compared exactly, in float32.
"""

import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Question(BaseModel):
    """A request; what else is sent, such as the mode, is ignored."""

    query: str
    k: int = 10


def make_app(model: SentenceTransformer, passages: list[dict[str, str]], index: faiss.Index) -> FastAPI:
    """Return the application."""
    app = FastAPI()

    @app.post("/v1/search")
    def search(question: Question) -> dict[str, object]:
        scores, rows = index.search(model.encode([question.query]), question.k)
        found = zip(scores[0].tolist(), rows[0].tolist(), strict=True)
        return {"query": question.query, "hits": [{"score": score, **passages[row]} for score, row in found]}

    return app


def main() -> None:
    """Load everything, and serve."""
    port, model, segments = sys.argv[1:]
    files = sorted(Path(segments).glob("*.parquet"))
    table = pa.concat_tables(pq.read_table(file, columns=["id", "title", "text", "embedding"]) for file in files)
    vectors_ND = np.stack(table["embedding"].to_numpy()).astype(np.float32)
    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(vectors_ND)
    app = make_app(SentenceTransformer(model, device="cpu"), table.drop_columns("embedding").to_pylist(), index)
    del table, vectors_ND
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
