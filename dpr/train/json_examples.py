"""Examples from JSON objects and rows of Parquet, in the layouts of the field, each found by its names.

- DPR: `question`, `answers`, `positive_ctxs`, `hard_negative_ctxs`, `negative_ctxs` (used where no hard ones are).
- Tevatron: `query`, `positive_passages`, `negative_passages`. FlagEmbedding: `query`, `pos`, `neg`.
- Pairs and triplets as sentence-transformers takes them: `anchor`, `positive`, `negative`, `negative_1`, …; also
  `question`/`query` with `passage`, or with `answer` where that is one text.

A passage is a text, or an object with `text` and perhaps `title` and an id. One passage or a list of them may stand
wherever the other may.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpr.corpus.json_values import iter_values
from dpr.corpus.lines import iter_lines
from dpr.corpus.signatures import UTF8_BOM
from dpr.errors import RecipeError
from dpr.evaluate.text_files import open_bytes
from dpr.json_kinds import kind_of
from dpr.train.examples import Place, Read, TrainingExample, TrainingPassage, UnusableExampleError, checked, unusable

MAX_VALUE_BYTES = 64 << 20
"""Largest object: DPR's files have a hundred passages with each question."""
_QUESTIONS = ("question", "query", "anchor", "sentence1")
_POSITIVES = ("positive_ctxs", "positive_passages", "positives", "positive", "pos", "passage", "answer", "sentence2")
_NEGATIVES = ("hard_negative_ctxs", "negative_passages", "negatives", "negative", "neg", "negative_ctxs")
_IDS = ("passage_id", "psg_id", "docid", "id", "_id")
_BATCH_ROWS = 1024
_SAMPLE_LINES = 10


def read_json_examples(path: str) -> Iterator[Read]:
    """Yield the result of each object of a JSON or JSONL file, plain or compressed, in bounded memory.

    A line of a JSONL file that is broken affects no other line. Raises RecipeError if a document ends within a value:
    then nobody knows how many examples are missing.
    """
    with open_bytes(path) as file:
        is_lines = _is_lines(file)
    with open_bytes(path) as file:
        values = iter_lines(file, 0, None, MAX_VALUE_BYTES) if is_lines else iter_values(file, MAX_VALUE_BYTES)
        for offset, data, is_cut in values:
            place = (path, offset)
            if is_cut:
                yield unusable(place, f"longer than {MAX_VALUE_BYTES:,} bytes", data)
                continue
            try:
                document = json.loads(data if offset else data.removeprefix(UTF8_BOM))
            except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
                if not is_lines and file.tell() == offset + len(data):
                    raise _unfinished(path, offset, data) from None
                yield unusable(place, "broken JSON", data)
                continue
            yield _read(place, document, data)


def _is_lines(file: IO[bytes]) -> bool:
    """Return whether a file has an example a line: one of its first lines is a whole object with a question.

    Objects that are printed over several lines, and arrays, are not read by lines.
    """
    for number, (_, line, _) in enumerate(islice(iter_lines(file, 0, None, MAX_VALUE_BYTES), _SAMPLE_LINES)):
        text = line.removeprefix(UTF8_BOM).strip()
        if number == 0 and not text.startswith(b"{"):
            return False
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) and _first(document, _QUESTIONS) is not None:
            return True
    return False


def _unfinished(path: str, offset: int, data: bytes) -> RecipeError:
    return RecipeError(
        f"training data {path} end within the JSON value that begins at byte {offset:,}, {data[:60]!r}: the file was "
        "cut off, or a bracket or a quotation mark is missing there; fetch it again, or mend that value"
    )


def read_parquet_examples(path: str) -> Iterator[Read]:
    """Yield the result of each row of a Parquet file. Raises RecipeError if the file is damaged."""
    try:
        with open_bytes(path) as file:
            batches = pq.ParquetFile(file, pre_buffer=False).iter_batches(_BATCH_ROWS)
            for position, row in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches)):
                yield _read((path, position), row, json.dumps(row, ensure_ascii=False, default=str).encode())
    except pa.ArrowException as error:
        raise RecipeError(
            f"training data {path} is not Parquet or is damaged ({' '.join(str(error).split())}); fetch it again"
        ) from error


def _read(place: Place, document: object, raw: bytes) -> Read:
    try:
        if not isinstance(document, dict):
            raise UnusableExampleError(f"{kind_of(document)} instead of a JSON object")
        return example_of(document)
    except UnusableExampleError as error:
        return unusable(place, str(error), raw)


def example_of(document: Mapping[str, Any]) -> TrainingExample:
    """Return the example that an object of any of the layouts gives. Raises UnusableExampleError if it gives none."""
    negatives = _passages(_first(document, _NEGATIVES))
    for name in sorted(document):
        if name.startswith("negative_") and name.removeprefix("negative_").isdigit():
            negatives += _passages(document[name])
    answers = document.get("answers")
    return checked(
        _first(document, _QUESTIONS),
        _passages(_first(document, _POSITIVES)),
        negatives,
        tuple(map(str, answers)) if isinstance(answers, list) else (),
    )


def _first(document: Mapping[str, Any], names: tuple[str, ...]) -> object:
    """Return the first of these fields that holds something; empty lists do not count."""
    return next((document[name] for name in names if document.get(name) not in (None, [])), None)


def _passages(value: object) -> list[TrainingPassage]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [_passage(each) for each in values]


def _passage(value: object) -> TrainingPassage:
    if isinstance(value, str):
        return TrainingPassage(value)
    if not isinstance(value, dict):
        raise UnusableExampleError(f"a passage is {kind_of(value)}, not a string or an object")
    text, title, name = value.get("text") or "", value.get("title") or "", _first(value, _IDS)
    if not isinstance(text, str) or not isinstance(title, str):
        raise UnusableExampleError("the text or the title of a passage is not a string")
    return TrainingPassage(text, title, None if name is None else str(name))
