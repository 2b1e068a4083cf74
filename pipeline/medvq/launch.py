"""torchrun, whose end is that of the processes: ``python -m medvq.launch`` and its arguments.

torchrun ends in a traceback of its own whatever ended a process: a wrong setting, which the process
has said in one line, or an interruption.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from medvq.distributed import PEER_LOST, TOLD

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> int:
    """Run torchrun; return the exit status of the process that failed first."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while torch is imported
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup, which torchrun would undo
        os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL + 1)
    with TemporaryDirectory(prefix="medvq-") as folder:
        told = Path(folder) / "told"
        told.touch()
        os.environ[TOLD] = str(told)
        try:
            torchrun()
        except ChildFailedError as error:
            return _status(error)
        except SignalException as error:
            return 128 + error.sigval
    return 0


def _status(error: ChildFailedError) -> int:
    """Return the exit status of the process that failed first, and say if a signal ended it."""
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    causes = [(rank, f.exitcode) for rank, f in failures if f.exitcode != PEER_LOST]
    # Timestamps are whole seconds, and torchrun ends by SIGTERM what one failure leaves.
    causes.sort(key=lambda cause: cause[1] in (-signal.SIGTERM, 128 + signal.SIGTERM))
    rank, code = causes[0] if causes else (0, PEER_LOST)
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    print(
        f"medvq: process {rank} was ended by {name} (out of memory?); "
        "run the same command again: what was finished is kept",
        file=sys.stderr,
    )
    return 128 - code


if __name__ == "__main__":
    raise SystemExit(main())
