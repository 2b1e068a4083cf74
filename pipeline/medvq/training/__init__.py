"""Train networks: epochs, batches, checkpoints, divergence."""
