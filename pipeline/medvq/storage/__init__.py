"""Artifacts, the feature store, weights and experiment tracking."""
