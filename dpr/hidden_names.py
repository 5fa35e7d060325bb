"""Which files and folders are no part of a corpus by their names alone."""


def is_hidden_name(name: str) -> bool:
    """Return whether a file or folder of this name is hidden: it begins with `_` or `.`, and is no `key=value`."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)
