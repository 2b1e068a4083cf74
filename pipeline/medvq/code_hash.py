"""A hash of the code that a stage runs, for its fingerprint.

The code of a stage is the import closure of its module inside the package. Every module is hashed
by its syntax tree without docstrings and without the text of messages, so that comments, formatting
and wording invalidate nothing. Left out is what cannot change what a stage computes: the settings
(their values are hashed themselves), figures, tables, tracking, and how stages are called.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
_NAME = "medvq"
_NOT_COMPUTING = (
    "medvq.cli", "medvq.flow", "medvq.config", "medvq.config_file", "medvq.errors",
    "medvq.summaries", "medvq.report", "medvq.stages", "medvq.storage.artifacts",
    "medvq.storage.publication", "medvq.storage.tracking", "medvq.storage.journal",
    "medvq.storage.mlflow_sender", "medvq.storage.checksums", "medvq.storage.verification",
    "medvq.modes", "medvq.outputs", "medvq.tracked_runs", "medvq.code_hash",
)  # fmt: skip
_SAYING = frozenset({"print", "warn", "write", "tqdm", "UserError", "UnreadableImage", "Notice"})


def code_of(module: str, package: Path = PACKAGE) -> dict[str, str]:
    """Return a hash for every module that ``module`` runs, itself among them, by name.

    Parameters
    ----------
    module : dotted name, such as ``medvq.stages.pretrain``.
    package : the folder of the package; another copy of it in tests.
    """
    hashes: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in hashes or (name != module and _is_left_out(name)):
            continue
        file = _file(name, package)
        hashes[name], imported = _read(file, name, file.stat().st_mtime_ns)
        waiting += [found for one in imported if (found := _module(one, package))]
    return dict(sorted(hashes.items()))


def changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return the modules whose hash differs, or that only one of the two has."""
    return sorted(
        name.removeprefix(f"{_NAME}.")
        for name in before.keys() | now.keys()
        if before.get(name) != now.get(name)
    )


def _is_left_out(name: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in _NOT_COMPUTING)


@cache
def _read(file: Path, name: str, modified: int) -> tuple[str, tuple[str, ...]]:
    """Return the hash of a module and the dotted names that it imports from the package."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    inside = tuple(one for one in imported if one.split(".")[0] == _NAME and one != _NAME)
    plain = ast.dump(_WithoutText().visit(tree))
    return hashlib.sha256(plain.encode()).hexdigest()[:16], inside


def _file(name: str, package: Path) -> Path:
    path = package.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _module(name: str, package: Path) -> str | None:
    """Return ``name`` where it is a module, None where it is something in one."""
    return name if _file(name, package).is_file() else None


class _WithoutText(ast.NodeTransformer):
    """Takes docstrings and the text of messages out of a syntax tree."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in _SAYING:
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    part.value = ""
        return self.generic_visit(node)
