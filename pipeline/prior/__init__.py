"""The model of the codes: its training, samples from it, and what it finds unlikely."""
