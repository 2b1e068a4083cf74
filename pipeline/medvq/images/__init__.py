"""Image files to arrays: formats, reading in worker processes, cache, resizing, equalisation."""
