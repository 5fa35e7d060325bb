"""Training data: files and folders of examples in any of the layouts, each found by looking."""

from collections.abc import Iterator

from dpr.corpus.input_files import find_files
from dpr.evaluate.text_files import open_bytes
from dpr.train.beir_examples import is_beir, read_beir_examples
from dpr.train.examples import Read
from dpr.train.json_examples import read_json_examples, read_parquet_examples
from dpr.train.train_recipe import TrainingData

_PARQUET = b"PAR1"


def read_examples(data: TrainingData) -> Iterator[Read]:
    """Yield the result of each row of the training data: an example, or the reason why it gives none.

    Raises RecipeError or CorpusError for files that cannot be read at all.
    """
    for path in [data.path] if isinstance(data.path, str) else data.path:
        if is_beir(path):
            yield from read_beir_examples(path, data.qrels, data.corpus)
            continue
        for file in find_files(path, "training data").files:
            yield from (read_parquet_examples if _is_parquet(file.path) else read_json_examples)(file.path)


def _is_parquet(path: str) -> bool:
    with open_bytes(path) as file:
        return file.read(len(_PARQUET)) == _PARQUET
