"""Random values of random keys end in one line, if at all."""

import pytest

from benchmarks import fuzz_config

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.


@pytest.mark.usefixtures('small_movielens')
@pytest.mark.filterwarnings('ignore:the load_module')
def test_no_value_ends_in_a_traceback(tmp_path, capsys):
  ends = fuzz_config.run(30, tmp_path)
  assert not ends['tracebacks'], capsys.readouterr().out
  # Else nothing was tried, or nothing was checked.
  assert ends['accepted'] and ends['refused']
