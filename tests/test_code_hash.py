"""The hash of the code that a stage runs: edits of a copy of the package."""

import ast
import shutil
from pathlib import Path

import pytest
from medvq.code_hash import PACKAGE, changed, code_of
from medvq.images import reading
from medvq.stages import STAGES

PRETRAIN = "medvq.stages.pretrain"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that a test may edit."""
    return Path(
        shutil.copytree(PACKAGE, tmp_path / "medvq", ignore=shutil.ignore_patterns("*.pyc"))
    )


def edit(package: Path, module: str, before: str, after: str) -> None:
    file = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


def test_the_closure_holds_what_a_stage_runs_and_nothing_else(package: Path) -> None:
    code = code_of(PRETRAIN, package)
    assert code == code_of(PRETRAIN)
    assert {PRETRAIN, "medvq.method.loss", "medvq.method.quantizer", "medvq.training.loop"} < set(
        code
    )
    outside = ("medvq.report", "medvq.cli", "medvq.flow", "medvq.config", "medvq.storage.tracking")
    assert not [name for name in code if name.startswith(outside)]
    assert not {"medvq.stages.ingest", "medvq.method.probe", "medvq.datasets.phantom"} & set(code)
    for name in STAGES:
        assert f"medvq.stages.{name}" in code_of(f"medvq.stages.{name}")


def test_a_changed_loss_changes_training_and_names_its_module(package: Path) -> None:
    edit(
        package,
        "medvq.method.loss",
        "self.config.reconstruction *",
        "1000 * self.config.reconstruction *",
    )
    assert changed(code_of(PRETRAIN), code_of(PRETRAIN, package)) == ["method.loss"]
    assert code_of("medvq.stages.ingest") == code_of("medvq.stages.ingest", package)


def test_comments_docstrings_and_formatting_count_for_nothing(package: Path) -> None:
    for file in package.rglob("*.py"):
        # Written anew from its syntax tree a module has neither comments nor its own formatting.
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                node.body[0] = ast.Expr(ast.Constant("Another docstring."))
        file.write_text("# Another comment.\n" + ast.unparse(tree))
    for name in STAGES:
        assert (
            changed(code_of(f"medvq.stages.{name}"), code_of(f"medvq.stages.{name}", package)) == []
        )


def test_messages_and_figures_count_for_nothing(package: Path) -> None:
    edit(package, "medvq.training.divergence", "training diverged", "training went wrong")
    for file in (package / "report").glob("*.py"):
        file.write_text(file.read_text() + "\nMORE = 1\n")
    assert code_of(PRETRAIN, package) == code_of(PRETRAIN)


def test_a_new_import_is_followed(package: Path) -> None:
    (package / "method" / "extra.py").write_text("FACTOR = 2\n")
    edit(
        package,
        "medvq.method.loss",
        "import torch\n",
        "import torch\nfrom medvq.method import extra\n",
    )
    before = code_of(PRETRAIN, package)
    assert "medvq.method.extra" in before
    edit(package, "medvq.method.extra", "2", "3")
    assert changed(before, code_of(PRETRAIN, package)) == ["method.extra"]


@pytest.mark.parametrize("module", ["formats.nifti", "formats.greys", "resizing", "reading"])
def test_what_was_read_by_other_code_is_read_again(package: Path, module: str) -> None:
    before = reading._code(package)
    assert before == reading._code()
    reading._code.cache_clear()
    edit(package, f"medvq.images.{module}", "import numpy as np", "import numpy as np; np.e")
    assert reading._code(package) != before


def test_what_was_read_is_kept_where_only_the_way_to_the_readers_changes(package: Path) -> None:
    before = reading._code(package)
    reading._code.cache_clear()
    edit(package, "medvq.images.workers", "import os", "import os; os.name")
    edit(package, "medvq.images.formats.nifti", "which is no image", "which is none")
    assert reading._code(package) == before
