"""The retriever for LangChain: LangChain's own tests of retrievers, and a chain, against a real service."""

import asyncio
from typing import Any

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests

from dpr.client import AsyncClient, Client
from dpr.client.langchain import DprRetriever
from dpr.errors import RefusedError
from tests.client.conftest import Service


@pytest.mark.anyio
class TestDprRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _service(self, service: Service) -> Any:
        with Client(service.url, service.search_key) as self.client:
            yield

    @property
    def retriever_constructor(self) -> type[DprRetriever]:
        return DprRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"client": self.client}

    @property
    def retriever_query_example(self) -> str:
        return "w1 w2 w3"


def test_documents_have_all_of_a_hit(service: Service) -> None:
    german = {"lang": "de"}

    async def documents_of_ainvoke() -> Any:
        async with AsyncClient(service.url, service.admin_key) as async_client:
            retriever = DprRetriever(client=client, async_client=async_client, mode="hybrid", filter=german)
            return await retriever.ainvoke("w1 w2", k=4)

    with Client(service.url, service.admin_key) as client:
        expected = client.search("w1 w2", k=4, mode="hybrid", filter=german)
        retriever = DprRetriever(client=client, k=4, mode="hybrid", exact=True, filter=german)
        for documents in (retriever.invoke("w1 w2"), asyncio.run(documents_of_ainvoke())):
            assert [(one.id, one.page_content) for one in documents] == [(hit.id, hit.text) for hit in expected.hits]
            assert [one.metadata["rank"] for one in documents] == [1, 2, 3, 4]
            for one, hit in zip(documents, expected.hits, strict=True):
                assert one.metadata["extra"] == hit.extra
                assert one.metadata["score"] == pytest.approx(hit.score, abs=1e-6)
                assert (one.metadata["snapshot"], one.metadata["title"]) == (1, "")
        with pytest.raises(RefusedError, match="field k is 0"):
            retriever.invoke("w1", k=0)


def test_a_chain_gets_its_context_from_the_service(service: Service) -> None:
    with Client(service.url, service.search_key) as client:
        retriever = DprRetriever(client=client, k=2, mode="bm25")
        texts = RunnableLambda(lambda documents: "\n".join(one.page_content for one in documents))
        prompt = ChatPromptTemplate.from_template("{context}\n\nQ: {question}")
        chain = {"context": retriever | texts, "question": RunnablePassthrough()} | prompt
        expected = "\n".join(hit.text for hit in client.search("w1 w2", k=2, mode="bm25").hits)
        assert chain.invoke("w1 w2").to_messages()[0].content == f"{expected}\n\nQ: w1 w2"
