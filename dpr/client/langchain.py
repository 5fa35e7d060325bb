"""A retriever for LangChain: `pip install dpr[langchain]`."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Literal, Unpack

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from dpr.answers.search_answer import SearchAnswer
from dpr.client.async_client import AsyncClient
from dpr.client.blocking_client import Client
from dpr.client.calls import SearchOptions


class DprRetriever(BaseRetriever):
    """Retrieves from a service; the options of its searches are fields, and `invoke` takes them, too.

    A document's id is that of the passage. Its metadata are title, rank, score, extra columns, snapshot and encoder.
    """

    client: Client
    async_client: AsyncClient | None = None
    """For `ainvoke` in one event loop; without it, `client` asks from a thread."""
    k: int = 10
    mode: Literal["dense", "bm25", "hybrid"] | None = None
    exact: bool = False
    rerank: bool = False
    filter: Mapping[str, object] | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Unpack[SearchOptions]
    ) -> list[Document]:
        del run_manager  # a search has no steps to report
        return _documents(self.client.search(query, **self._options(options)))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Unpack[SearchOptions]
    ) -> list[Document]:
        del run_manager
        if self.async_client is None:
            search = partial(self.client.search, query, **self._options(options))
            return _documents(await asyncio.to_thread(search))
        return _documents(await self.async_client.search(query, **self._options(options)))

    def _options(self, given: SearchOptions) -> SearchOptions:
        own = SearchOptions(k=self.k, mode=self.mode, exact=self.exact, rerank=self.rerank, filter=self.filter)
        return {**own, **given}


def _documents(answer: SearchAnswer) -> list[Document]:
    return [Document(page_content=hit.text, id=hit.id, metadata=answer.about(hit)) for hit in answer.hits]
