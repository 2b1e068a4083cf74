"""Pages, and how studies end."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from medvq.summaries import Interval

from benchmarks.page import Section, demand, interval, table, write_page


def test_a_page_says_what_made_it_and_holds_its_tables(tmp_path: Path) -> None:
    file = tmp_path / "docs" / "page.md"
    sections = [
        Section("First", table(("a", "b"), [(1, "x & y"), (2, "<z>")]), "Words."),
        Section("Second", table(("c",), [("d",)])),
    ]
    write_page(file, "Title", "make it", "abc", "Introduction.", sections, "picture.png")
    heading, made, *lines = (line for line in file.read_text().splitlines() if line)
    assert heading == "# Title"
    assert made.startswith("Made by `make it` at commit `abc` (")
    assert lines == [
        "Introduction.",
        "![Title](picture.png)",
        "## First",
        "Words.",
        "| a | b |",
        "| --- | --- |",
        "| 1 | x & y |",
        "| 2 | <z> |",
        "## Second",
        "| c |",
        "| --- |",
        "| d |",
    ]
    # Markdown tables need an empty line before them.
    assert "Words.\n\n| a |" in file.read_text()
    assert "| 2 | <z> |\n\n## Second\n\n| c |" in file.read_text()


def test_figures_in_words() -> None:
    assert interval(Interval(0.1, 0.0, (-0.05, 0.25)), "+") == "+0.100 [-0.050, +0.250]"
    assert demand(0.8, lower_is_better=False) == "at least 0.8"
    assert demand(40, lower_is_better=True) == "at most 40"
    assert demand(None, lower_is_better=True) == ""


@pytest.mark.parametrize("name", ["ablation", "label_efficiency", "prior", "supervised"])
def test_what_a_user_can_mend_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--config", "kermany", "--set", "probe.repeat=3"])
    module = f"benchmarks.{name}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medvq: ")
    assert "probe.repeat" in line
