"""What is kept up to a bound of bytes, compared with a list that is searched from its end."""

import random

from dpr.search.recently_used import RecentlyUsed


def test_the_least_recently_used_values_are_dropped_first() -> None:
    kept, drawn = RecentlyUsed[int, str](20, len), random.Random(3)
    used: list[int] = []
    """Keys in the order of their last use; the value of a key is a text of as many letters."""
    for _ in range(2000):
        key = drawn.randint(1, 12)
        read: list[int] = []

        def make(key: int = key, read: list[int] = read) -> str:
            read.append(key)
            return "x" * key

        assert kept.take(key, make) == "x" * key
        assert read == ([] if key in used else [key])
        used = [other for other in used if other != key] + [key]
        while sum(used) > 20:
            del used[0]


def test_one_value_is_kept_however_large_it_is_and_others_are_dropped_by_their_keys() -> None:
    kept, reads = RecentlyUsed[str, str](3, len), list[str]()

    def take(key: str, value: str) -> None:
        kept.take(key, lambda: reads.append(key) or value)  # type: ignore[func-returns-value]

    take("a", "x" * 99)
    take("a", "x" * 99)
    take("b1", "y")
    take("b2", "y")
    kept.drop(lambda key: key == "b1")
    take("b1", "y")
    take("b2", "y")
    assert reads == ["a", "b1", "b2", "b1"]
