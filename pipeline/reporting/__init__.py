"""Figures, tables for people, and MLflow."""
