"""A retriever for LlamaIndex: `pip install dpr[llamaindex]`."""

from typing import Unpack

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from dpr.answers.search_answer import SearchAnswer, SearchHit
from dpr.client.async_client import AsyncClient
from dpr.client.blocking_client import Client
from dpr.client.calls import SearchOptions

SHOWN = ("title", "extra")
"""Of a node's metadata, these are shown to a language model; the others are about the search."""


class DprRetriever(BaseRetriever):
    """Retrieves from a service, all questions with the same options.

    A node's id is that of the passage. Its metadata are title, rank, score, extra columns, snapshot and encoder.
    """

    def __init__(
        self, client: Client, async_client: AsyncClient | None = None, **options: Unpack[SearchOptions]
    ) -> None:
        """Retrieve by `client`; `aretrieve` by `async_client`, if there is one, in one event loop."""
        super().__init__()
        self._client, self._async_client, self._options = client, async_client, options

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _nodes(self._client.search(query_bundle.query_str, **self._options))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self._async_client is None:
            return await super()._aretrieve(query_bundle)
        return _nodes(await self._async_client.search(query_bundle.query_str, **self._options))


def _nodes(answer: SearchAnswer) -> list[NodeWithScore]:
    return [NodeWithScore(node=_node(answer, hit), score=hit.score) for hit in answer.hits]


def _node(answer: SearchAnswer, hit: SearchHit) -> TextNode:
    about = answer.about(hit)
    hidden = [name for name in about if name not in SHOWN]
    return TextNode(
        id_=hit.id,
        text=hit.text,
        metadata=about,
        excluded_llm_metadata_keys=hidden,
        excluded_embed_metadata_keys=hidden,
    )
