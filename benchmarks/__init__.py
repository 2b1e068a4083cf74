"""Studies that take longer than a test; their results stand in ``docs/``."""

# Before torch: says how its threads wait.
import pipeline  # noqa: F401  # for what its import sets
