"""Finding the project's own error within what Ray says: Ray quotes it, with its traceback, in messages of its own."""

import re

from dpr import errors
from dpr.errors import DprError

_QUOTED = re.compile(r"dpr\.errors\.(\w+): (.+)")


def quoted_error(message: str) -> DprError | None:
    """The last error of `dpr.errors` that a message of Ray quotes, as it was raised; None if there is none."""
    quoted = _QUOTED.findall(message)
    if not quoted:
        return None
    name, sentence = quoted[-1]
    kind = getattr(errors, name, DprError)
    return kind(sentence) if isinstance(kind, type) and issubclass(kind, DprError) else DprError(sentence)
