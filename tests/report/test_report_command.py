"""The command that the report ends with, by which its artifacts are made again."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from factories.artifacts import artifact
from medvq.cli import main
from medvq.report.report_page import _command
from medvq.report.report_words import settings_argument
from medvq.stages.stage import RunOptions


def test_the_command_has_every_setting_that_was_changed(tmp_path: Path) -> None:
    changes = {"settings": {"label_fraction": 0.5}, "overrides": ["pretrain.epochs=3", "seed=1"]}
    command = _command(artifact(tmp_path, "probe", **changes))
    assert command == (
        "make linear-probe DATASET=tiny.yaml LABEL_FRACTION=0.5 SET='pretrain.epochs=3 seed=1'"
    )


def test_overrides_with_spaces_are_quoted() -> None:
    assert settings_argument(["seed=3"]) == " SET=seed=3"
    assert settings_argument(["description=a $b", "pretrain.widths=[8, 8]"]) == (
        " SET='description=\"a $$b\" pretrain.widths=[8, 8]'"
    )
    assert settings_argument(["probe.label_fraction=0.1"]) == ""


def test_a_run_is_told_what_was_changed_on_the_command_line() -> None:
    with mock.patch("medvq.flow.run", side_effect=KeyboardInterrupt) as run:
        main(["ingest", "--config", "phantom", "--settings", "seed=3 pretrain.epochs=2"])
    options = run.call_args.args[2]
    assert isinstance(options, RunOptions)
    assert options.overrides == ("seed=3", "pretrain.epochs=2")
