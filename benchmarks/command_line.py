"""What every study is told, the configuration and where data and artifacts are, and how it ends."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from medvq.cli import status
from medvq.config import Config
from medvq.config_file import config_file, load_config
from medvq.flow import Options, commit


def run_study(main: Callable[[], None]) -> NoReturn:
    """Run a study and end as the pipeline's commands do: what the user can mend is one line."""

    def command() -> int:
        main()
        return 0

    sys.exit(status(command, _artifacts()))


def _artifacts() -> Path:
    return Path(os.environ.get("ARTIFACTS") or "artifacts")


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
        artifacts=_artifacts(),
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
