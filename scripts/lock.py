"""Pin every package, with the hashes of its files, into requirements.lock; `make lock` calls it.

Usage: python scripts/lock.py UV [OPTION...]

uv resolves for every Python and platform at once, and keeps pins that still do; its option
--upgrade takes the newest versions. To the hashes of torch's files on PyPI come those of its builds
for the CPU, which are on an index of their own. Where that is not reached, those of the same
version are kept.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"
CPU_BUILDS = "https://download.pytorch.org/whl/cpu/torch/"
TORCH = re.compile(r"^torch==(\S+) \\\n(?:    --hash=\S+(?: \\)?\n)+", re.MULTILINE)


def compile_lock(uv: str, *more: str) -> None:
    """Let uv write the lock; ``more`` are options of its own."""
    options = "--universal --python-version 3.11 --generate-hashes"
    extras = "--extra dev --extra docs --extra imagenet --extra similar --extra dicom-output"
    extras += " --extra onnx"
    quiet = "--quiet --no-header --no-annotate"
    words = f"{options} {extras} {quiet}".split()
    command = [uv, "pip", "compile", *words, "-o", str(LOCK), *more]
    subprocess.run([*command, "pyproject.toml"], cwd=ROOT, check=True)


def torch_hashes(lock: str) -> tuple[str, set[str]]:
    """Return the version of torch and the hashes of its files."""
    found = TORCH.search(lock)
    return (found[1], set(re.findall(r"sha256:\w+", found[0]))) if found else ("", set())


def cpu_hashes(version: str) -> set[str]:
    """Return the hashes of the builds for the CPU on Linux, of the Pythons that we support."""
    with urlopen(CPU_BUILDS, timeout=15) as page:
        text = page.read().decode()
    name = rf"torch-{re.escape(version)}(?:%2B|\+)cpu-cp31[123]-cp31[123]-[\w.]*linux[\w.]*\.whl"
    return {f"sha256:{one}" for one in re.findall(rf"{name}#sha256=(\w+)", text)}


def main(uv: str, *more: str) -> str | None:
    """Write the lock; return what is wrong, if anything, and then leave it as it was."""
    old = LOCK.read_text()
    version_before, before = torch_hashes(old)
    # uv keeps hashes where there are any, and is to find those of torch's files on PyPI.
    LOCK.write_text(TORCH.sub(f"torch=={version_before}\n", old))
    compile_lock(uv, *more)
    lock = LOCK.read_text()
    version, hashes = torch_hashes(lock)
    try:
        hashes |= cpu_hashes(version)
    except (URLError, TimeoutError):
        if version != version_before:
            LOCK.write_text(old)
            return f"{CPU_BUILDS} is not reached, which lists the CPU builds of torch {version}"
        hashes |= before
    block = "".join(f" \\\n    --hash={one}" for one in sorted(hashes))
    LOCK.write_text(TORCH.sub(lambda _: f"torch=={version}{block}\n", lock))
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
