"""A table of your own, of numbers and categories: regression or classification.

  python -m td_jax.main --config=configs/table.py:data=houses.csv,target=price
  td_jax --config=table:data=customers.parquet,target=churned,method=td_ld

The file is CSV with names in its first line, or Parquet. All columns but the target
describe a row: columns of numbers as numbers, others as categories. Rows without a
target are seen without a label. A tenth of the other rows is for the test and a
tenth of the rest for validation, at random, or the latest with --config.data.time.

Hardware: any; two CPU cores take a minute or two for 100,000 rows.

Arguments after the colon:
  data: the file.
  target: the column that is predicted.
  method: scratch, ld, fd, fitnet, hybrid, td, td_ld, teacher or another of
    docs/methods.md.
  by, task: a student learns the rows whose column `by` is `task`, from a teacher of
    all rows.
  runlocal: shortens the run to a few steps, to see it work.
"""

from typing import Any

from td_jax.configs import common
from td_jax.configs import table_common


def get_config(arg: str = '') -> Any:
  """A large teacher of all rows and 3 small students."""
  args: Any = common.parse(
    arg, data='', target='', method='td_ld', by='', task='', runlocal=False
  )
  table_common.check_task(args.method, task=args.task)
  cfg = table_common.config(args.method, runlocal=args.runlocal)
  cfg.name = 'table'
  cfg.data = common.table(args.data, columns='', others='use')
  cfg.data.target, cfg.data.by = args.target, args.by
  cfg.data.task = args.task
  return cfg
