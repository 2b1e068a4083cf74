"""``python -m medvq``, and the command ``medvq``."""

import os
import signal


def main() -> int:
    """Run one command; until it can be interrupted, SIGINT ends the process without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Figures are files here; a backend that is meant for a notebook may not be installed.
    os.environ["MPLBACKEND"] = "agg"
    from medvq.cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
