"""YAML as people write it: text in, plain values out, or one line that says where it is wrong."""

from __future__ import annotations

import re
from typing import Any

import yaml

from medvq.errors import UserError

# Characters of a file, values after aliases are expanded, and digits of a number: far more than a
# configuration has. A few lines of aliases can stand for billions of values.
_MOST_CHARACTERS, _MOST_VALUES, _MOST_DIGITS = 2**20, 10_000, 300

# What is mistaken most often, in the words of PyYAML.
_MENDS = {
    r"'\t' that cannot start": ": indent with spaces, not with tabs",
    "mapping values are not allowed": ": put text that has a colon in quotes",
}

_LARGEST_WHOLE = 2.0**53  # that a float holds exactly


class _Loader(yaml.SafeLoader):
    """Plain YAML in which ``1e-5`` and ``010`` are decimal numbers, as in YAML 1.2."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct the value of a node; an error of a number or a date gets its place."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            reason = "a number or a date that cannot be read; put text in quotes"
            raise _error(reason, node) from error

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = node.value.replace("_", "")
        if len(text) > _MOST_DIGITS:
            raise _error(f"a number of more than {_MOST_DIGITS} digits", node)
        if ":" in text:  # which YAML 1.1 reads as minutes and seconds
            raise _error("a time is no number; put text in quotes", node)
        if re.fullmatch(r"[-+]?[0-9]+", text):
            return int(text)
        return int(super().construct_yaml_int(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> int | float:
        """Construct a number; ``1e3``, without a point, is a whole one."""
        number = super().construct_yaml_float(node)
        is_whole = "." not in node.value and abs(number) < _LARGEST_WHOLE and number.is_integer()
        return int(number) if is_whole else number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Return the value of one YAML document.

    Raises
    ------
    UserError
        It is no plain YAML; the message begins with line and column where they are known.
    """
    if len(text) > _MOST_CHARACTERS:
        raise UserError("more text than any configuration has")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = " ".join(filter(None, (error.context, error.problem)))
        mend = next((mend for part, mend in _MENDS.items() if part in reason), "")
        raise UserError(f"{place}{reason}{mend}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise UserError(
            f"line {line}, column {column}: a character that YAML does not allow"
        ) from error
    except RecursionError as error:
        raise UserError("lists or mappings nested too deeply") from error


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count the values of a node with all aliases expanded; refuse what is no plain tree.

    Parameters
    ----------
    counts : by the identity of nodes; 0 while a node is being counted.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in counts:
        if counts[id(node)] == 0:
            raise _error("a value that contains itself", node)
        return counts[id(node)]
    counts[id(node)] = 0
    children = node.value
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, _ in children:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise _error(f"the key '{key.value}' for the second time", key)
                keys.add(key.value)
        children = [part for pair in children for part in pair]
    total = 1 + sum(_count(child, counts) for child in children)
    if total > _MOST_VALUES:
        raise _error(
            "more values, or aliases that stand for more, than any configuration has", node
        )
    counts[id(node)] = total
    return total


def _error(reason: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
