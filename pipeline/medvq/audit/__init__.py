"""Examine a data set before training: shortcuts, duplicates, acquisition, outliers."""
