"""Examples from a BEIR folder: queries, the passages that qrels judge relevant for them, and the corpus."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

from dpr.corpus.reading import read_slice
from dpr.corpus.slices import plan_slices
from dpr.evaluate.qrels import Qrels, find_qrels, read_qrels
from dpr.evaluate.question_formats import FileQuestion, read_file_questions
from dpr.evaluate.text_files import first_file, is_folder
from dpr.recipe import CorpusConfig
from dpr.train.examples import Read, TrainingPassage, UnusableExampleError, checked, unusable


def is_beir(path: str) -> bool:
    """Return whether a path is a folder with `queries.jsonl`."""
    return is_folder(path) and first_file([f"{path.rstrip('/')}/queries.jsonl"]) is not None


def read_beir_examples(path: str, qrels: str | None, corpus: str | None) -> Iterator[Read]:
    """Yield an example for each judged query of the folder `path`, in the order of its file.

    `qrels`: a file or a folder of them; None: `qrels/train.tsv` or `qrels.train.tsv`. `corpus`: where the passages are;
    None: in the folder. Only judged queries and passages are held in memory.
    """
    judged = read_qrels(_qrels_file(path, qrels))
    queries = first_file([f"{path.rstrip('/')}/queries.jsonl"]) or path
    questions = [each for each in read_file_questions(queries) if each.id in judged]
    passages = _passages(CorpusConfig(path=corpus or path), judged)
    for number, each in enumerate(questions):
        yield _example(number, each, judged[each.id], passages, queries)
    seen = {each.id for each in questions}
    for number, name in enumerate(judged):
        if name not in seen:
            yield unusable((queries, number), "no query of this id is in the file", name.encode())


def _qrels_file(path: str, qrels: str | None) -> str:
    if qrels is None:
        folder = path.rstrip("/")
        found = first_file([f"{folder}/qrels/train.tsv", f"{folder}/qrels.train.tsv"])
        if found is not None:
            return found
    return find_qrels(path, qrels)


def _passages(corpus: CorpusConfig, judged: Qrels) -> dict[str, TrainingPassage]:
    """Return the judged passages by id."""
    wanted = {passage for passages in judged.values() for passage in passages}
    found: dict[str, TrainingPassage] = {}
    for slice_ in plan_slices(corpus).slices:
        for row in read_slice(slice_, corpus):
            if row.passage is not None and row.passage.id in wanted:
                found[row.passage.id] = TrainingPassage(row.passage.text, row.passage.title, row.passage.id)
    return found


def _example(
    number: int, question: FileQuestion, judged: Mapping[str, int], passages: Mapping[str, TrainingPassage], source: str
) -> Read:
    positives = [passages[name] for name in judged if name in passages]
    try:
        if not judged:
            raise UnusableExampleError("no passage is judged relevant (score above 0)")
        if not positives:
            raise UnusableExampleError("none of its judged passages is in the corpus")
        example = checked(question.text, positives, (), question.answers)
        return replace(example, absent=len(judged) - len(positives))
    except UnusableExampleError as error:
        raw = json.dumps({"_id": question.id, "text": question.text, "judged": list(judged)}, ensure_ascii=False)
        return unusable((source, number), str(error), raw.encode())
