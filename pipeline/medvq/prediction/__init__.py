"""New images without labels, from files to predictions."""
