"""The method, from pixels to probability: pure functions and modules over tensors and arrays."""
