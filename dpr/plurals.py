"""Numbers of things in what people read."""

from collections.abc import Mapping


def counted(number: int, noun: str) -> str:
    """Return a number of things whose plural ends in s: 1 row, 2 rows, 1,000 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def by_reason(counts: Mapping[str, int], noun: str = "row") -> str:
    """Return how many things there are, and for which reasons, the commonest first: 3 rows: 2 for 'no id', 1 for …"""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{number:,} for {reason!r}" for reason, number in ordered)
    return f"{counted(sum(counts.values()), noun)}: {reasons}"
