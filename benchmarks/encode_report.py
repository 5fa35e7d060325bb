"""The table of an encoding benchmark, written again after each step: a run that is cut off leaves what it measured."""

import os
import platform
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "ray", "pyarrow", "numpy")


@dataclass
class Report:
    """Rows of the table, and the sentences before and after it."""

    path: Path
    title: str
    mean_tokens: float
    """Of a passage."""
    limit: float = 0.0
    """Passages a second that the matrix products of one device allow."""
    alone: float = 0.0
    """Passages a second of the encoder alone on one device."""
    head: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, rate: float, devices: int = 1) -> None:
        """Add a way to encode, and its passages a second on so many devices."""
        of_alone = f"{rate / devices / self.alone:.3f}" if self.alone else ""
        tokens, of_limit = rate * self.mean_tokens / 1e6, rate / devices / self.limit
        self.rows.append(f"| {what} | {rate:,.0f} | {tokens:.3f} | {of_limit:.3f} | {of_alone} |")
        print(self.rows[-1], flush=True)
        self.save()

    def note(self, sentence: str) -> None:
        """Add a sentence after the table."""
        self.notes.append(f"- {sentence}")
        print(self.notes[-1], flush=True)
        self.save()

    def save(self) -> None:
        """Write all that was added so far."""
        arguments = " ".join(x if ":" in x else os.path.basename(x.rstrip("/")) for x in sys.argv[1:])
        lines = [
            f"# {self.title}",
            "",
            f"    python benchmarks/encode.py {arguments}",
            "",
            f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES) + ".",
            *self.head,
            "",
            "| way | passages/s | million tokens/s | share of the limit | of the encoder alone |",
            "|---|---:|---:|---:|---:|",
            *self.rows,
            "",
            *self.notes,
            "",
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(lines), encoding="utf-8")
