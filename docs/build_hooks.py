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

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package that has been read."""
        self._rewrite(pkg)

    def _rewrite(self, obj: griffe.Object) -> None:
        if obj.docstring:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            text = _CITATION.sub(r"[\1]", text)
            text = _REFERENCE.sub(r"\n\1[\2] ", text)
            if obj.is_module:
                text = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)
            obj.docstring.value = "\n".join(_fields(text.splitlines()))
        for member in obj.members.values():
            if isinstance(member, griffe.Object):
                self._rewrite(member)


def _fields(lines: list[str]) -> list[str]:
    """Put the meaning of a parameter below its name, and that of what is returned below a colon."""
    result: list[str] = []
    section = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following and set(following) == {"-"}:
            section = line
        elif section in ("Parameters", "Attributes") and (match := _FIELD.match(line)):
            result.append(match[1] + match[2])
            line = f"{match[1]}    {match[3]}"
        elif section == "Returns" and line:
            line = line if set(line) == {"-"} else f"    {line}"
        result.append(line)
        if section == "Returns" and line and set(line) == {"-"}:
            result.append(":")
    return result
