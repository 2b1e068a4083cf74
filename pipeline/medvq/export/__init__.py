"""Encoders and probes for those who have only ONNX Runtime, or only MONAI."""
