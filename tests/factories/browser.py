"""Chromium, as people open pages, and servers that only some machines have."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

_POSTGRES = Path("/usr/lib/postgresql")


def need(what: str, where: object) -> None:
    """Skip a test whose tool is missing; where CI demands all of them, it fails."""
    if where:
        return
    if os.environ.get("MEDVQ_REQUIRE_DATA"):
        pytest.fail(f"MEDVQ_REQUIRE_DATA is set, and there is no {what} (apt-get install {what})")
    pytest.skip(f"needs {what}: apt-get install {what}")  # not in CI


@contextmanager
def browser_page() -> Iterator[Page]:
    """Open an empty page in Chromium, wide enough for a table."""
    need("chromium", chromium := shutil.which("chromium"))
    with sync_playwright() as playwright:
        # Its sandbox does not work for root, who runs CI.
        options = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": 2200, "height": 1000})
        page.set_default_timeout(180_000)
        yield page
        browser.close()


@contextmanager
def postgres(port: int) -> Iterator[str]:
    """Run a PostgreSQL server for this machine alone, and return the address of its database."""
    programs = sorted(_POSTGRES.glob("*/bin"))
    need("postgresql", programs)
    prefix = []
    # Not in pytest's folder, which its other runs close to other users.
    folder = Path(tempfile.mkdtemp(prefix="medvq-postgresql-"))
    if os.getuid() == 0:  # it refuses to run as root
        prefix = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")

    def run(program: str, *options: str) -> None:
        command = [*prefix, str(programs[-1] / program), *options]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    data, settings = str(folder / "data"), f"-c fsync=off -p {port} -k {folder}"
    run("initdb", "-D", data, "-A", "trust", "-U", "medvq", "--no-sync")
    run("pg_ctl", "-D", data, "-w", "-o", settings, "-l", str(folder / "log"), "start")
    try:
        yield f"postgresql+pg8000://medvq@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)
