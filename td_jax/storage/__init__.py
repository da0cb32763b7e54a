"""Files: paths, atomic writes, caches, checkpoints and logs of results."""
