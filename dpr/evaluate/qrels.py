"""Relevance judgements: which passages answer which query, as BEIR and TREC write them."""

import gzip
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from dpr.errors import RecipeError

SPLITS = ("test", "dev", "validation", "val", "train")
"""Of several files, the first of these is taken."""
BEIR_HEADER = ("query-id", "corpus-id", "score")


def find_qrels(folder: Path, named: str | None) -> Path:
    """Return the qrels file that the recipe names, or that lies in the folder that it names, or in a BEIR `folder`.

    Raises RecipeError if there is none.
    """
    if named is not None and not Path(named).is_dir():
        return Path(named)
    if named is not None:
        wanted = [Path(named, f"{split}.tsv") for split in SPLITS]
    else:
        wanted = [folder / place.format(split) for split in SPLITS for place in ("qrels/{}.tsv", "qrels.{}.tsv")]
        wanted.append(folder / "qrels.tsv")
    found = first_file(wanted)
    if found is None:
        raise RecipeError(
            f"{named or folder} has no qrels file ({wanted[0].relative_to(named or folder)}, or the same with another "
            f"of {', '.join(SPLITS[1:])}, plain or .gz); name it as gate.qrels"
        )
    return found


def first_file(paths: Sequence[Path]) -> Path | None:
    """Return the first of these files that is there, plain or gzipped."""
    return next((path for plain in paths for path in (plain, Path(f"{plain}.gz")) if path.is_file()), None)


def read_qrels(path: Path) -> dict[str, list[str]]:
    """Return query id → ids of its relevant passages, in the order of the file.

    A line is `query-id, corpus-id, score` after BEIR's header, or `query 0 passage score` as TREC has it. Raises
    RecipeError with the line for anything else.
    """
    relevant: dict[str, list[str]] = defaultdict(list)
    for number, line in read_lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if number == 1 and tuple(fields[:3]) == BEIR_HEADER:
            continue
        try:
            query, passage, score = fields if len(fields) == 3 else (fields[0], *fields[2:])
            is_relevant = float(score) > 0
        except (IndexError, ValueError) as error:
            raise RecipeError(
                f"{path}, line {number} is not one of a BEIR qrels file (query-id, corpus-id, score) or a TREC one "
                f"(query 0 passage score): {line[:70]!r}"
            ) from error
        if is_relevant:
            relevant[query].append(passage)
    return relevant


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of a text file, plain or .gz, that is not blank; RecipeError if it is none."""
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text and not text.isspace():
                    yield number, text
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise RecipeError(f"gate questions {path} cannot be read: {error}") from error
