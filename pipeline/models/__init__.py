"""Pure torch modules: quantizer and autoencoders."""
