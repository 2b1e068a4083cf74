"""Models of the codes: likelihood, samples, typicality, restoration."""
