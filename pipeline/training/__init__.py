"""Pretraining without labels on MONAI engines."""
