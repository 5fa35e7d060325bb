"""Sections of a recipe on answering questions: re-ranking, and the service."""

from typing import Annotated, Literal

from pydantic import Field

from dpr.recipe_section import Name, Processors, Section

MAX_RERANKED = 1000
"""Passages that a cross-encoder reads for one question, at most: each costs a forward pass."""


class RerankConfig(Section):
    """A cross-encoder that re-ranks: it reads a question together with each of the best passages."""

    model: Name
    """Local folder, `package:NAME/folder`, `s3://…` folder, or hub id of a cross-encoder."""
    revision: str | None = None
    """Hub revision (commit, tag); null: the newest, whose commit `dpr serve` gives to all replicas."""
    top: Annotated[int, Field(ge=1, le=MAX_RERANKED)] = 50
    """How many of the best passages are read; no more hits than these can be requested."""
    label: Annotated[int, Field(ge=0)] | None = None
    """Which of several labels means that a passage answers; null: the model has one label only."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic on a GPU; on a CPU it is always fp32."""


Topology = Literal["single", "sharded"]
"""How a service is divided into processes."""


class ServeConfig(Section):
    """The search service."""

    host: str = "127.0.0.1"
    """Address it binds to."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    """Port it binds to."""
    replicas: Processors = 1
    """Processes that each hold encoder and index."""
    topology: Topology = "single"
    """`sharded`: the replicas hold no index; other processes hold its files, each some of them, and all are asked."""
    shards: Processors = 2
    """Number of these processes, with `topology: sharded`; the index must have as many files (`index.shards`)."""
    shard_deadline_seconds: Annotated[float, Field(gt=0.0)] = 1.0
    """Seconds in which they must answer; an answer without some of them is partial, and names the missing ones."""
    poll_seconds: Annotated[float, Field(gt=0.0)] = 5.0
    """Seconds between two looks for a newer snapshot."""
    keys_file: Name | None = None
    """File with the hashed keys, as `dpr key` writes it; null: those of the environment variable DPR_SERVE_KEYS, and
    without it no key is needed."""
    access_log: Name | None = None
    """File to which each request adds a line of JSON; null: none."""
    cache_mb: Annotated[float, Field(ge=0.0)] = 32.0
    """Memory for a replica's answer cache, which is emptied when the snapshot changes, in 10⁶ bytes; 0: no cache."""
    tls_cert: Name | None = None
    """PEM file of the certificate that the service shows, with those that vouch for it; null: HTTP without TLS."""
    tls_key: Name | None = None
    """PEM file of the certificate's key, not encrypted."""
    shadow_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """Share of the questions that are drawn to be compared with exact search."""
