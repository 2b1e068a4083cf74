"""What a result has cost."""

import subprocess
import sys

from medvq.storage.lineage import peak_memory


def test_peak_memory_is_that_of_the_process_itself() -> None:
    """Neither of the one that started it, nor less than it holds."""
    held = bytearray(300 * 2**20)
    script = (
        "import sys\n"
        "from medvq.storage.lineage import peak_memory\n"
        "before = peak_memory()\n"
        "held = bytearray(2**26)\n"
        "held[::4096] = bytes([1]) * len(held[::4096])\n"
        "print(before, peak_memory())\n"
    )
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, capture_output=True, check=True).stdout
    before, after = map(int, shown.split())
    assert peak_memory() > len(held) > after > before
    assert after - before > 2**25
