"""Label draws, the linear probe, and honest metrics."""
