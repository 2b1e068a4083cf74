"""Sources, formats, manifest, alignment, preprocessing, swaps."""
