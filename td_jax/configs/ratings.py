"""Ratings of your own: users, items and ratings in a CSV or Parquet file.

  python -m td_jax.main --config=configs/ratings.py:data=ratings.csv
  td_jax --config=ratings:data=ratings.csv,details=movies.csv,genre=Drama
  td_jax --config=ratings:data=reviews.parquet --config.data.item=asin

Columns with usual names are found: user, item and rating, and if there are any a
time, and titles and genres of items, which may be in a file of their own. The last
tenth of the ratings is for the test and the last tenth of the rest for validation,
in the order of time, or at random without a time. Rows without a rating are seen
without a label.

Hardware: any; two CPU cores take a few minutes for 100,000 ratings.

Arguments after the colon:
  data: the file.
  details: a further file with the titles and genres of items.
  genre: a student learns the ratings of this genre, from a teacher of all.
  method: scratch, ld, fd, fitnet, hybrid, td, td_ld or teacher.
  runlocal: shortens the run to a few steps, to see it work.
"""

from typing import Any

from td_jax.configs import common
from td_jax.configs import table_common


def get_config(arg: str = '') -> Any:
  """A large teacher of all ratings and 3 small students."""
  args: Any = common.parse(
    arg, data='', details='', genre='', method='td_ld', runlocal=False
  )
  table_common.check_task(args.method, genre=args.genre)
  cfg = table_common.config(args.method, runlocal=args.runlocal)
  cfg.name = 'ratings'
  cfg.data = common.table(args.data, columns='auto', others='ignore')
  cfg.data.kind, cfg.data.details = 'regression', args.details
  if args.genre:
    cfg.data.by, cfg.data.task = 'auto', args.genre
  return cfg
