"""Talking-model Distillation in JAX (arXiv 2310.03188)."""

__version__ = '0.1.0'
