"""The command ``mlflow-ui``: MLflow's pages on this machine, opened on the runs of a data set."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from medvq.errors import UserError
from medvq.stages.command import Command, add_artifacts_option, whole_number

_FIRST, _TRIED = 5000, 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the data set, the port, and whether a browser is opened."""
    add_artifacts_option(parser)
    parser.add_argument(
        "--config",
        help="the data set whose runs are shown, a shipped configuration or a path to a yaml file "
        "(default: that of the newest run)",
    )
    parser.add_argument(
        "--port", type=whole_number(1, 65535), help=f"default: the first free one from {_FIRST} on"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, and open no browser"
    )


def run(parsed: argparse.Namespace) -> int:
    """Start the server, print the address of the runs, and serve until Ctrl-C."""
    from medvq.config_file import load_config
    from medvq.storage import mlflow_server

    name = load_config(parsed.config).name if parsed.config else ""
    team = os.environ.get("MLFLOW_TRACKING_URI", "")
    if team.startswith("http"):
        address = mlflow_server.runs_of(team, name)
        _sync(parsed.artifacts)
        _show(address, parsed.no_browser)
        return 0
    port = _free_port(parsed.port)
    parsed.artifacts.mkdir(parents=True, exist_ok=True)
    _sync(parsed.artifacts)
    with mlflow_server.serve(parsed.artifacts, team, port) as server:
        _show(mlflow_server.runs_of(server.address, name), parsed.no_browser)
        print("Ctrl-C ends it", file=sys.stderr)
        try:
            server.wait()
        except KeyboardInterrupt:  # the usual end
            return 0
    raise UserError("MLflow's server has ended; run it again")


def _free_port(wanted: int | None) -> int:
    """Return the port that is wanted, or the first free one.

    Raises
    ------
    UserError
        It is in use.
    """
    from medvq.storage.mlflow_server import is_free

    first = wanted or _FIRST
    free = next((p for p in range(first, min(first + _TRIED, 65536)) if is_free(p)), None)
    if free is None or (wanted and free != wanted):
        other = f"PORT={free} (--port {free}) is free" if free else "take another (PORT=)"
        raise UserError(f"port {first} is in use by another program: {other}")
    return free


def _sync(artifacts: Path) -> None:
    """Send what was kept first; what cannot be sent yet hides none of the rest."""
    from medvq.storage.mlflow_sync import sync

    try:
        sync(artifacts)
    except UserError as error:
        print(f"medvq: {error}", file=sys.stderr)


def _show(address: str, no_browser: bool) -> None:
    """Print an address, and open it where there is a display."""
    import webbrowser

    print(f"open {address}", flush=True)
    has_display = sys.platform in {"darwin", "win32"} or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if has_display and not no_browser:
        webbrowser.open(address)


MLFLOW_UI = Command(
    name="mlflow-ui",
    help="compare runs in the browser, on this machine only",
    add_options=add_options,
    run=run,
    writes=lambda parsed: (parsed.artifacts,),
)
