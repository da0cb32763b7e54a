"""The command `td_jax`, also as python -m td_jax."""

from td_jax.run import process


def run() -> None:
  """The entry point; hears signals before the imports that take time."""
  process.watch()
  from td_jax import main

  main.run()


if __name__ == '__main__':
  run()
