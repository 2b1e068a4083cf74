"""From a trained model to the feature store, and encodings of its codes."""
