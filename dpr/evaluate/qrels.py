"""Relevance judgements: which passages answer which query, as BEIR and TREC write them."""

from collections import defaultdict

from dpr.errors import RecipeError
from dpr.evaluate.text_files import first_file, is_folder, read_lines

SPLITS = ("test", "dev", "validation", "val", "train")
"""The order in which splits are looked for; the first that exists is used."""
BEIR_HEADER = ("query-id", "corpus-id", "score")
Qrels = dict[str, dict[str, int]]
"""Query id → id of a relevant passage → how relevant it is, from 1; empty for a query without any."""


def find_qrels(folder: str, named: str | None) -> str:
    """Return the qrels file that is named, or that lies in the folder that is named, or in a BEIR `folder`.

    Raises RecipeError if there is none.
    """
    if named is not None and not is_folder(named):
        return named
    if named is not None:
        wanted = [f"{split}.tsv" for split in SPLITS]
    else:
        wanted = [place.format(split) for split in SPLITS for place in ("qrels/{}.tsv", "qrels.{}.tsv")]
        wanted.append("qrels.tsv")
    where = named or folder
    found = first_file([f"{where.rstrip('/')}/{name}" for name in wanted])
    if found is None:
        raise RecipeError(
            f"folder {where} has no qrels file ({wanted[0]}, or the same with another of {', '.join(SPLITS[1:])}, "
            "plain or .gz); name it as gate.qrels, or with --qrels"
        )
    return found


def read_qrels(path: str) -> Qrels:
    """Return the relevant passages of each query, in the order of the file.

    A line is `query-id, corpus-id, score` after BEIR's header, or `query 0 passage score` as TREC has it. A pair that
    occurs twice has its higher score. Raises RecipeError with the line for anything else.
    """
    relevant: Qrels = defaultdict(dict)
    for number, line in read_lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if number == 1 and tuple(fields[:3]) == BEIR_HEADER:
            continue
        try:
            query, passage, score = fields if len(fields) == 3 else (fields[0], *fields[2:])
            grade = int(score)
        except (IndexError, ValueError) as error:
            raise RecipeError(
                f"{path}, line {number} is not one of a BEIR qrels file (query-id, corpus-id, score) or a TREC one "
                f"(query 0 passage score), whose score is a whole number: {line[:70]!r}"
            ) from error
        passages = relevant[query]
        if grade > 0:
            passages[passage] = max(grade, passages.get(passage, 0))
    return dict(relevant)
