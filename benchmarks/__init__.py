"""Studies that take longer than a test; their results stand in ``docs/``."""
