#!/usr/bin/env bash
# From a file of ratings to predictions, in two commands.
#
#   bash examples/own_ratings.sh RATINGS.csv QUESTIONS.csv
#
# RATINGS.csv has columns such as userId, movieId, rating and timestamp. QUESTIONS.csv
# has users and items, in columns of the same names. Arguments after those two go to the
# run, such as --config.steps=40.
set -euo pipefail
ratings=$1 questions=$2
shift 2

td_jax --config=ratings:data="$ratings" --workdir=runs/ratings "$@"
td_jax predict runs/ratings "$questions" --out=predicted.csv
