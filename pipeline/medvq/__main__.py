"""``python -m medvq``, and the command ``medvq``."""

import gc
import os
import signal


def main() -> int:
    """Run one command; until it can be interrupted, SIGINT ends the process without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Figures are files here; a backend that is meant for a notebook may not be installed.
    os.environ["MPLBACKEND"] = "agg"
    # Imports make a million objects, which all live to the end. To look for cycles among them every
    # 700 objects, and once more at the end, took a quarter of the time of a short command.
    gc.set_threshold(10_000, 10, 10)
    from medvq.cli import main as run

    try:
        return run()
    finally:
        gc.freeze()


if __name__ == "__main__":
    raise SystemExit(main())
