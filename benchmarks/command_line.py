"""What every study is told: the configuration, and where data and artifacts are."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

from pipeline.cli import config_file
from pipeline.config import Config, load_config
from pipeline.flow import Options, commit


def arguments(description: str) -> tuple[argparse.Namespace, Options]:
    """Parse ``--config``, ``--device`` and ``--set``; folders come from the environment, as make
    gives them.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", default="kermany")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parsed = parser.parse_args()
    options = Options(
        data_root=Path(os.environ.get("DATA_ROOT") or "data"),
        data_mirror=os.environ.get("DATA_MIRROR") or None,
        artifacts=Path(os.environ.get("ARTIFACTS") or "artifacts"),
        device=parsed.device,
    )
    return parsed, options


def configuration(parsed: argparse.Namespace, *overrides: str) -> Config:
    """The configuration that was asked for, with a study's own overrides on top."""
    return load_config(config_file(parsed.config), (*parsed.set, *overrides))


def provenance(config: Config) -> str:
    """One line on machine, commit and data, to stand under every table."""
    return (
        f"`{config.name}`, seed {config.seed}; {platform.machine()}, {os.cpu_count()} processors, "
        f"Python {platform.python_version()}; commit `{commit()}`."
    )
