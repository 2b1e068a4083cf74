"""Where data sets lie and which images, subjects, labels and splits they list."""
