"""What the build of the documentation adds to MkDocs: equations, and our docstrings as Markdown.

MkDocs calls :func:`on_page_content`; mkdocstrings loads the extension of Griffe.
"""

from __future__ import annotations

import html
import re
from typing import Any

import griffe
from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_CITATION = re.compile(r"\[(\d+)\]_")
_REFERENCE = re.compile(r"^( *)\.\. \[(\d+)\] ", re.MULTILINE)
_EXAMPLE = re.compile(r"^>>> .+(?:\n.+)*", re.MULTILINE)
_RETURNS = re.compile(r"^Returns\n-------\n", re.MULTILINE)
_FIELD = re.compile(r"^( *)(\w+(?:, \w+)*) : (.+)$")


def on_page_content(content: str, **_: Any) -> str:
    """Replace LaTeX by MathML, which browsers show without any script."""

    def mathml(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return str(convert(html.unescape(match[2]), display=display))

    return _EQUATION.sub(mathml, content)


class MarkdownDocstrings(griffe.Extension):
    """Turns Sphinx's roles and citations into Markdown.

    Of a parameter ``name : meaning``, and of what is returned, mkdocstrings would take the meaning
    for the type, which stands in the signature.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of ``obj``."""
        if obj.docstring is None:
            return
        text = _ROLE.sub(r"`\1`", obj.docstring.value)
        text = _CITATION.sub(r"[\1]", text)
        text = _REFERENCE.sub(r"\n\1[\2] ", text)
        if obj.is_module:
            text = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)
        text = _RETURNS.sub("**Returns:** ", text)
        obj.docstring.value = "\n".join(_fields(text.splitlines()))


def _fields(lines: list[str]) -> list[str]:
    """Put the meaning of a parameter into the line below its name."""
    result: list[str] = []
    in_fields = False
    for number, line in enumerate(lines):
        underlined = number + 1 < len(lines) and set(lines[number + 1].strip()) == {"-"}
        if underlined:
            in_fields = line.strip() in ("Parameters", "Attributes")
        match = _FIELD.match(line) if in_fields else None
        if match:
            result += [match[1] + match[2], f"{match[1]}    {match[3]}"]
        else:
            result.append(line)
    return result
