"""Read a recipe's YAML into plain values, as strictly as a file needs that decides what a night does.

It is YAML with JSON's view of values: dates stay strings, pairs of surrogates that JSON writers escape become one
character, and a field that occurs twice is refused.
"""

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from dpr.errors import RecipeError

MAX_VALUES = 10_000
"""Most values in a recipe, with aliases expanded: nine short lines of aliases can mean a billion values."""
_BAD_VALUES = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)
"""Errors of PyYAML for a value that does not match its tag, such as `!!int x`."""


class _Loader(yaml.SafeLoader):
    """YAML's safe values; raises ConstructorError for a repeated field and for text that no file name can hold."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, f"field {key.value} occurs twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Return a string, in which the two halves of a character that JSON escaped are one again."""
        text = self.construct_scalar(node)
        try:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ConstructorError(None, None, f"{text!a} holds half of a surrogate pair", node.start_mark) from None
        if "\0" in text:
            raise ConstructorError(None, None, f"{text!a} holds a NUL character", node.start_mark)
        return text

    def construct_number(self, node: yaml.ScalarNode) -> int:
        """Return an integer of 64 bits."""
        number = self.construct_yaml_int(node)
        if not -(2**63) <= number < 2**63:
            raise ConstructorError(None, None, "the integer is too large", node.start_mark)
        return number


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> object:
    """Return what a YAML file (UTF-8, or UTF-16 with its mark) holds; None for an empty one.

    Raises RecipeError, with the line if there is one.
    """
    try:
        loader = _Loader(path.read_bytes())
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise RecipeError(f"recipe {path} cannot be used: its values are nested too deep") from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"recipe {path} is not YAML{_place(error)}: {_reason(error)}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise RecipeError(
            f"recipe {path} cannot be read: {error.strerror or error}; give the path of a YAML file"
        ) from error
    except _BAD_VALUES as error:
        raise RecipeError(f"recipe {path} holds a value that does not match its tag: {error}") from error


def _check_size(root: yaml.Node) -> None:
    """Raise ConstructorError if a document means too many values; aliases count as often as they are used."""
    left, waiting = MAX_VALUES, [root]
    while waiting:
        node = waiting.pop()
        left -= 1
        if left < 0:
            raise ConstructorError(None, None, f"it means more than {MAX_VALUES:,} values", root.start_mark)
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _reason(error: yaml.MarkedYAMLError) -> str:
    return ", ".join(part for part in (error.context, error.problem, error.note) if part)
