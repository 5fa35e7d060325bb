"""Training data: files and folders of examples in any of the layouts, each found by looking."""

from collections.abc import Iterator

from dpr.corpus.input_files import find_files
from dpr.errors import RecipeError
from dpr.evaluate.text_files import open_bytes
from dpr.train.beir_examples import is_beir, read_beir_examples
from dpr.train.examples import Read
from dpr.train.json_examples import read_json_examples, read_parquet_examples
from dpr.train.train_recipe import TrainingData

_PARQUET = b"PAR1"


def read_examples(data: TrainingData) -> Iterator[Read]:
    """Yield the result of each row of the training data: an example, or the reason why it gives none.

    Raises RecipeError or CorpusError for files that cannot be read at all, and RecipeError for what only BEIR has.
    """
    paths = [data.path] if isinstance(data.path, str) else data.path
    folders = {path for path in paths if is_beir(path)}
    for name, value in (("qrels", data.qrels), ("corpus", data.corpus)):
        if value is not None and not folders:
            raise RecipeError(
                f"{name} {value} has no effect, since {', '.join(paths)} is no BEIR folder, which has queries.jsonl; "
                f"leave {name} out, or name such a folder"
            )
    for path in paths:
        if path in folders:
            yield from read_beir_examples(path, data.qrels, data.corpus)
            continue
        for file in find_files(path, "training data").files:
            yield from (read_parquet_examples if _is_parquet(file.path) else read_json_examples)(file.path)


def _is_parquet(path: str) -> bool:
    with open_bytes(path) as file:
        return file.read(len(_PARQUET)) == _PARQUET
