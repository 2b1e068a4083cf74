"""AUROC against the minutes that it takes, for MedVQ and what people would use instead."""
