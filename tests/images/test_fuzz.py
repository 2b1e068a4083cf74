"""Mutated files of every kind: read or refused in words, and soon.

``MEDVQ_FUZZ=5000 pytest tests/images/test_fuzz.py`` tries 5,000, without it 200.
"""

import os
import re
from collections import Counter

from factories.mutated import Mutation, check
from medvq.images.workers import WorkerFailure, map_in_processes, processors

NUMBER = int(os.environ.get("MEDVQ_FUZZ") or 200)
LONGEST = 10.0
"""Seconds that any file may take."""


def test_mutated_files_are_read_or_refused_in_words() -> None:
    outcomes: Counter[str] = Counter()
    wrong: list[object] = []
    results = map_in_processes(check, range(NUMBER), processes=processors(), timeout=6 * LONGEST)
    for number, result in enumerate(results):
        if isinstance(result, WorkerFailure):
            # A decoder that crashes ends its process, and the file is set aside.
            outcomes[result.reason] += 1
            if "took longer" in result.reason:
                wrong.append((number, result.reason))
            continue
        assert isinstance(result, Mutation)
        outcomes["read" if result.outcome == "read" else "refused"] += 1
        names_exception = re.search(r"(Error|Exception)\b", result.outcome)
        if names_exception or "\n" in result.outcome or result.seconds > LONGEST:
            wrong.append(result)
    print(dict(outcomes))
    assert wrong == []
    assert outcomes["read"] > 0
    assert outcomes["refused"] > 0
