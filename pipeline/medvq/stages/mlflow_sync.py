"""The command ``mlflow-sync``: send to MLflow what could not be sent when it was reported."""

from __future__ import annotations

import argparse
import sys

from medvq.errors import UserError
from medvq.stages.command import Command, add_artifacts_option


def run(parsed: argparse.Namespace) -> int:
    """Send the events that journals in the folder of artifacts hold."""
    from medvq.storage.mlflow_sender import sync

    try:
        journals, events = sync(parsed.artifacts)
    except Exception as error:  # MLflow raises types of every library that it uses
        raise UserError(
            f"MLflow does not take what is kept in {parsed.artifacts} ({type(error).__name__}); "
            "nothing is lost: try again when it does"
        ) from error
    print(f"sent {events} events of {journals} runs that were kept", file=sys.stderr)
    return 0


MLFLOW_SYNC = Command(
    name="mlflow-sync",
    help="send to MLflow what could not be sent when it was reported",
    add_options=add_artifacts_option,
    run=run,
    writes=lambda parsed: (parsed.artifacts,),
)
