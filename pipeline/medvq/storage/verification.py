"""Inputs of a stage, verified while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from medvq.errors import UserError
from medvq.storage.artifacts import Artifact, compare, find, verify
from medvq.storage.checksums import checksum

_LARGE = 1 << 26
"""Bytes of a file that are verified before the stage begins; hashing them takes 0.05 s. Larger ones
are verified in the background: what was made of a damaged one is never published."""


class Verification:
    """The inputs of a stage as a context, within which it reads them.

    Raises
    ------
    UserError
        A file is missing, was changed or damaged, or the artifact was made anew meanwhile: at the
        beginning, from :meth:`check`, or at the end, also in place of any error that it caused.
    """

    def __init__(self, inputs: Iterable[Artifact]) -> None:
        self.inputs = tuple(inputs)
        self._stop = Event()
        self._threads = ThreadPoolExecutor(1, "verification")
        self._sums: list[tuple[Artifact, Path, Future[str]]] = []

    def __enter__(self) -> Self:
        for artifact in self.inputs:
            files = {name: artifact.folder / name for name in artifact.record.files}
            large = [name for name, file in files.items() if _size(file) > _LARGE]
            if small := files.keys() - large:
                verify(artifact, *sorted(small))
            for name in large:
                future = self._threads.submit(checksum, files[name], self._stop)
                self._sums.append((artifact, files[name], future))
        return self

    def check(self) -> None:
        """Raise what was found so far."""
        self._compare(item for item in self._sums if item[2].done())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        if interrupted:
            self._stop.set()
        self._threads.shutdown(cancel_futures=interrupted)
        if interrupted:
            return
        self._compare(self._sums)
        for artifact in self.inputs:
            now = find(artifact.folder)
            # The same bytes matter only where an error may come from the moment of the renaming.
            if (
                now is None
                or now.record.files != artifact.record.files
                or (error is not None and now.record != artifact.record)
            ):
                raise UserError(
                    f"{artifact.folder} was made anew while this run read it; run again"
                )

    def _compare(self, sums: Iterable[tuple[Artifact, Path, Future[str]]]) -> None:
        for artifact, file, future in sums:
            compare(artifact, file, future)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
