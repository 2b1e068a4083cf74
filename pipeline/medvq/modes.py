"""Who may read what is written: artifacts hold images, codes and predictions of patients.

``ARTIFACTS_MODE`` says it, whatever the umask is: ``private`` (the default: the owner alone),
``group`` (members of the folder's group may read) or ``all`` (everybody may read).
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvq.errors import Notice, UserError

VARIABLE = "ARTIFACTS_MODE"
_FOLDER_MODES = {"private": 0o700, "group": 0o750, "all": 0o755}


def folder_mode() -> int:
    """Return the permission bits of folders of artifacts; files have the same but ``x``.

    Raises
    ------
    UserError
        ``ARTIFACTS_MODE`` has another value than those that there are.
    """
    name = os.environ.get(VARIABLE) or "private"
    if name not in _FOLDER_MODES:
        raise UserError(f"{VARIABLE}={name!r} is none of: {', '.join(_FOLDER_MODES)}")
    return _FOLDER_MODES[name]


@contextmanager
def artifact_modes() -> Iterator[None]:
    """Let the process, and those that it starts, make files and folders of these modes."""
    before = os.umask(0o777 & ~folder_mode())
    try:
        yield
    finally:
        os.umask(before)


def set_mode(path: Path) -> None:
    """Give a file or folder its mode: some libraries make files that the owner alone may read."""
    now = stat.S_IMODE(path.stat().st_mode)
    mode = folder_mode() if path.is_dir() else folder_mode() & 0o666
    if now == mode:
        return
    try:
        path.chmod(mode)
    except PermissionError:
        warnings.warn(
            Notice(f"the file system of {path.parent} takes no modes: {oct(now)} stays"),
            stacklevel=2,
        )
