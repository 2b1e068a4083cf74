"""Models of the codes: likelihood, samples, typicality, restoration."""

NO_CODES = (
    "there are no codes, since an encoder of another kind was used alone: set "
    "encoder.with_vqvae=true to train a VQ-VAE beside it"
)
"""The line for what reads codes where there are none."""
