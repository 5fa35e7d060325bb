"""Numbers of things in what people read."""


def counted(number: int, noun: str) -> str:
    """Return a number of things whose plural ends in s: 1 row, 2 rows, 1,000 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
