"""Texts that are longer than an encoder's token limit: how many there are, and how many tokens they lose."""

from collections.abc import Iterable

from dpr.formats.records import Document


class CutTexts(Document):
    """What passages or questions lost to the token limit of their encoder."""

    texts: int = 0
    """Texts that lost tokens."""
    lost_tokens: int = 0
    """Tokens that they lost."""
    tokens: int = 0
    """Tokens of all texts, cut or not, before any was cut; special tokens and prefixes included."""

    @classmethod
    def total(cls, counts: Iterable["CutTexts"]) -> "CutTexts":
        """Return the sum of several counts."""
        counts = list(counts)
        return cls(
            texts=sum(count.texts for count in counts),
            lost_tokens=sum(count.lost_tokens for count in counts),
            tokens=sum(count.tokens for count in counts),
        )

    @property
    def lost_share(self) -> float:
        """Share of all tokens that were lost."""
        return self.lost_tokens / self.tokens if self.tokens else 0.0

    def describe(self, what: str, texts: int) -> str:
        """Return a sentence on `texts` texts, which `what` names in the plural, such as `passages`."""
        are, them = ("is", "it") if self.texts == 1 else ("are", "them")
        return (
            f"{self.texts:,} of {texts:,} {what} {are} longer than the encoder's token limit; cutting {them} loses "
            f"{self.lost_tokens:,} of {self.tokens:,} tokens ({self.lost_share:.1%})"
        )
