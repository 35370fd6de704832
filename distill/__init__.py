"""Distillation: reader -> student -> report."""
