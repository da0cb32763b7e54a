"""Training and evaluation steps, compiled: no files, no flags."""
