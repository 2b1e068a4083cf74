"""Studies that take longer than a test; their results stand in ``docs/``."""

import importlib

# Before torch: says how its threads wait.
importlib.import_module("medvq")
