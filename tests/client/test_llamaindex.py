"""The retriever for LlamaIndex, alone and in LlamaIndex's own query engine, against a real service.

LlamaIndex has no test suite for retrievers. It is imported within tests: it takes more than a second.
"""

import asyncio
from typing import Any

import pytest

from dpr.client import AsyncClient, Client
from dpr.errors import RefusedError
from tests.client.conftest import Service


def test_nodes_have_all_of_a_hit(service: Service) -> None:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.schema import MetadataMode

    from dpr.client.llamaindex import DprRetriever

    async def found_by(async_client: AsyncClient | None) -> Any:
        return await DprRetriever(client, async_client, k=3, filter={"lang": "de"}).aretrieve("w1 w2")

    async def with_an_async_client() -> Any:
        async with AsyncClient(service.url, service.search_key) as async_client:
            return await found_by(async_client)

    with Client(service.url, service.search_key) as client:
        expected = client.search("w1 w2", k=3, filter={"lang": "de"})
        retriever: BaseRetriever = DprRetriever(client, k=3, filter={"lang": "de"})
        for nodes in (
            retriever.retrieve("w1 w2"),
            asyncio.run(found_by(None)),
            asyncio.run(with_an_async_client()),
        ):
            assert [(one.node_id, one.text) for one in nodes] == [(hit.id, hit.text) for hit in expected.hits]
            for one, hit in zip(nodes, expected.hits, strict=True):
                assert one.score == pytest.approx(hit.score, abs=1e-6)
                assert (one.metadata["extra"], one.metadata["rank"]) == (hit.extra, hit.rank)
                shown = one.node.get_content(MetadataMode.LLM)
                assert "extra: {'lang': 'de'" in shown
                assert "encoder_id" not in shown
        with pytest.raises(RefusedError, match="field k is 0"):
            DprRetriever(client, k=0).retrieve("w1")


def test_a_query_engine_reads_what_the_service_found(service: Service) -> None:
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine

    from dpr.client.llamaindex import DprRetriever

    with Client(service.url, service.search_key) as client:
        engine = RetrieverQueryEngine.from_args(DprRetriever(client, k=2, mode="bm25"), llm=MockLLM())
        answer = engine.query("w1 w2")
        hits = client.search("w1 w2", k=2, mode="bm25").hits
    assert [one.node_id for one in answer.source_nodes] == [hit.id for hit in hits]
    assert all(hit.text in str(answer) for hit in hits)  # this language model repeats its input
