"""python -m td_jax --config=movielens"""

from td_jax import main

main.run()
