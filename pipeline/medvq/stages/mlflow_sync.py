"""The command ``mlflow-sync``: send to MLflow what could not be sent when it was reported."""

from __future__ import annotations

import argparse
import sys

from medvq.errors import UserError
from medvq.stages.command import Command, add_artifacts_option
from medvq.wording import counted


def run(parsed: argparse.Namespace) -> int:
    """Send the events that journals in the folder of artifacts hold."""
    from medvq.storage.mlflow_sync import sync

    if not parsed.artifacts.is_dir():
        raise UserError(
            f"there is no folder {parsed.artifacts}; name that of the runs (ARTIFACTS=)"
        )
    journals, events = sync(parsed.artifacts)
    print(
        f"sent {counted(events, 'event')} of {counted(journals, 'run')} that were kept",
        file=sys.stderr,
    )
    return 0


MLFLOW_SYNC = Command(
    name="mlflow-sync",
    help="send to MLflow what could not be sent when it was reported",
    add_options=add_artifacts_option,
    run=run,
    writes=lambda parsed: (parsed.artifacts,),
)
