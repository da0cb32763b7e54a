"""Tries every fault of docs/reliability.md, and writes that page.

  python benchmarks/reliability.py --out=results/reliability.json
  python benchmarks/reliability.py --out=results/reliability.json --render

Each row names a fault, what must happen, and the tests that provoke it. The command runs
those tests and counts their cases: a case is a test with one set of values.
"""

import argparse
import collections
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any
from typing import NamedTuple
import xml.etree.ElementTree as ET

from td_jax import errors
from td_jax.run import command
from td_jax.run import environment
from td_jax.storage import files

_ROOT = pathlib.Path(__file__).parents[1]
PAGE = pathlib.Path('docs', 'reliability.md')  # Relative to the checkout.


class Row(NamedTuple):
  """A fault."""

  fault: str
  must: str
  tests: tuple[str, ...]  # As file::function below tests/.


_CONFIG = 'test_config.py::test_what_cannot_work_is_one_line'
_FILES = 'test_faults.py::test_each_file_damaged'
_SIGNALS = 'test_resume.py::test_a_signal_saves_and_is_answered_by_75'
ROWS = (
  Row(
    'kill -9 at random times, also during a save',
    'the next start resumes; at most the interval at hand and the one whose save was '
    'under way are lost, and the run ends bit for bit as if nothing had happened',
    ('test_resume.py::test_kill_9_at_random_times',),
  ),
  Row(
    'a run is stopped at any step, or crashes',
    'parameters, optimizer, random state and metrics end bit-identical to those of an '
    'uninterrupted run, with dropout and shuffling on',
    (
      'test_resume.py::test_stopped_at_every_point_it_ends_the_same',
      'test_resume.py::test_crashed_it_ends_the_same',
    ),
  ),
  Row(
    'the same, across the end of an epoch',
    'no example is skipped or repeated',
    (
      'test_resume.py::test_the_run_is_a_fair_one',
      'test_host_pipeline.py::test_epochs_skip_and_repeat_nothing',
    ),
  ),
  Row(
    'SIGTERM in the middle of a step',
    'saved, exit code 75 within 10 s',
    (
      'test_main.py::test_sigterm_to_the_command',
      'test_preemption.py::test_a_process_that_is_busy_ends_in_time',
    ),
  ),
  Row(
    'SIGTERM while it reads the config, compiles or writes the results',
    "saved or 'nothing to save', exit code 75; 0 once the results are written",
    (
      'test_preemption.py::test_a_signal_while_the_config_is_read',
      'test_resume.py::test_a_signal_while_compiling',
      'test_preemption.py::test_signals_at_the_end_and_of_a_terminal',
    ),
  ),
  Row(
    'SIGTERM to one of two processes',
    'both save the same step and exit with 75',
    ('test_distributed.py::test_a_signal_to_one_saves_for_both',),
  ),
  Row('SIGTERM twice, SIGINT', 'no torn checkpoint', (_SIGNALS,)),
  Row(
    'kill -9 of one of two processes',
    'the other ends with an error within 15 s',
    ('test_distributed.py::test_if_one_process_dies_the_other_ends',),
  ),
  Row(
    'each file of a checkpoint is truncated',
    'a named error, or the step before it with a warning; 65 if none is sound',
    (_FILES, 'test_faults.py::test_none_is_sound'),
  ),
  Row(
    'one byte of a checkpoint is flipped',
    'the step is passed over, unless the byte is one that nothing reads; a changed '
    'value is never restored',
    (
      'test_faults.py::test_each_flipped_byte_of_the_weights_is_noticed',
      'test_faults.py::test_no_flipped_byte_of_the_record_is_believed',
    ),
  ),
  Row(
    'each file of a checkpoint is deleted',
    'as for a truncated one',
    (_FILES, 'test_faults.py::test_a_damaged_step_is_made_anew'),
  ),
  Row(
    'the disk is full during a save',
    'the same save says so, exit code 74, the last good step is intact and nothing '
    'unfinished stays on the disk',
    ('test_faults.py::test_full_disk_is_told_by_the_same_save',),
  ),
  Row(
    'only the final save fails',
    'the exit code is not 0',
    ('test_faults.py::test_a_run_whose_last_save_fails',),
  ),
  Row(
    'the workdir is read-only, or cannot be made',
    'refused before anything is compiled, 74',
    (
      'test_faults.py::test_no_such_workdir',
      'test_faults.py::test_read_only_workdir',
    ),
  ),
  Row(
    'stored weights of a teacher have another width, depth or patch',
    'the leaf and both shapes are named, 65',
    (
      'test_faults.py::test_teacher_of_another_width',
      'test_pretrained.py::test_the_difference_to_the_expected_network_is_named',
    ),
  ),
  Row(
    'published weights lack a block',
    'an error; blocks are never renumbered in silence',
    ('test_pretrained.py::test_a_missing_block_is_not_renumbered',),
  ),
  Row(
    'a checkpoint of another dtype',
    'refused',
    ('test_faults.py::test_checkpoint_of_another_dtype',),
  ),
  Row(
    'pickled objects in a .npz',
    'refused, and never executed',
    ('test_pretrained.py::test_pickled_objects_are_refused_and_never_run',),
  ),
  Row(
    'zip bombs, truncated archives, wrong checksums',
    'a named error in less than 100 MB',
    (
      'test_pretrained.py::test_zip_bombs_are_refused_in_little_memory',
      'test_pretrained.py::test_truncated_files_are_refused',
      'test_pretrained.py::test_a_flipped_byte_is_detected',
    ),
  ),
  Row(
    'a member of an archive, or a step, is called ../',
    'nothing outside the folder is touched',
    (
      'test_pretrained.py::test_names_that_escape_the_folder_are_harmless',
      'test_faults.py::test_names_that_are_no_steps_are_not_taken_for_one',
    ),
  ),
  Row(
    'a split beyond the layers, a student that does not fit its teacher, or a config '
    'that does not fit published weights',
    'the field, with the valid range or both values, 2, before data are read',
    (
      'test_vit.py::test_invalid_splits_raise_an_error_with_the_valid_range',
      'test_classification.py::test_a_student_that_does_not_fit_its_teacher',
      'test_classification.py::test_a_published_teacher_of_another_shape',
    ),
  ),
  Row('a value out of its range', 'one line, 2', (_CONFIG,)),
  Row(
    'an unknown method, a misspelt key or flag',
    'one line with the nearest name, 2',
    (_CONFIG, 'test_main.py::test_wrong_flags_are_one_line'),
  ),
  Row(
    'code in the strings of a stored config',
    'never executed',
    ('test_faults.py::test_a_stored_config_is_text',),
  ),
  Row(
    'NaN or infinity in the loss, or in gradients only',
    'stops before the update and names step and term, 70; the last checkpoint is '
    'finite',
    (
      'test_faults.py::test_nan_label',
      'test_faults.py::test_nan_in_the_gradient_only',
      'test_faults.py::test_a_leaf_that_is_not_finite_is_not_saved',
    ),
  ),
  Row(
    'a spike of the loss, with `optim.skip_loss_above`',
    'skipped and counted; the state stays as it was',
    (
      'test_optim.py::test_a_spike_changes_nothing_and_is_counted',
      'test_resume.py::test_skipped_steps_are_skipped_again',
    ),
  ),
  Row(
    'the dataset is absent',
    'the exact command that prepares it, 65',
    (
      'test_faults.py::test_no_dataset',
      'test_records.py::test_command_of_absent_dataset_prepares_what_it_names',
    ),
  ),
  Row(
    'a split without rows, a genre without rows',
    'a named error, and never a NaN among the scores',
    (
      'test_faults.py::test_genre_without_rows',
      'test_faults.py::test_empty_split',
    ),
  ),
  Row(
    'one damaged image or record',
    'it is named; with `data.skip_corrupt` it is skipped and counted',
    (
      'test_host_pipeline.py::test_corrupt_image_is_named',
      'test_host_pipeline.py::test_skipped_images_shift_no_others',
      'test_host_pipeline.py::test_damaged_file_is_skipped_record_by_record',
    ),
  ),
  Row(
    'a run continues on another number of devices',
    'the weights are exact and the losses agree',
    ('test_resume.py::test_devices_may_change_on_the_way',),
  ),
  Row(
    'a run continues with another config or other data',
    'refused with the difference, unless it is allowed',
    (
      'test_faults.py::test_changed_config_is_refused_with_the_difference',
      'test_faults.py::test_changed_data_are_refused',
    ),
  ),
  Row(
    'two runs in one workdir',
    'the second is refused',
    ('test_faults.py::test_two_runs_in_one_workdir',),
  ),
  Row(
    'leftovers of a save that was cut off',
    'removed, and never taken for a step',
    ('test_faults.py::test_leftovers_are_neither_taken_nor_kept',),
  ),
  Row(
    'the evaluation set does not divide by the batch',
    'every example is counted once',
    (
      'test_faults.py::test_every_example_is_counted',
      'test_host_pipeline.py::test_evaluation_counts_every_example',
    ),
  ),
)


def run() -> dict[str, dict[str, int]]:
  """{test: {'cases', 'passed', 'skipped'}} of all tests of `ROWS`."""
  tests = sorted({test for row in ROWS for test in row.tests})
  with tempfile.TemporaryDirectory() as folder:
    report = pathlib.Path(folder, 'report.xml')
    subprocess.run(
      [sys.executable, '-m', 'pytest', '-q', f'--junitxml={report}']
      + [f'tests/{test}' for test in tests],
      cwd=_ROOT,
      check=False,  # The report says what failed.
    )
    cases = ET.parse(report).getroot().iter('testcase')
    counts: dict[str, dict[str, int]] = collections.defaultdict(
      lambda: dict.fromkeys(('cases', 'passed', 'skipped'), 0)
    )
    for case in cases:
      file = case.attrib['classname'].rpartition('.')[2]
      found = counts[f'{file}.py::{case.attrib["name"].split("[")[0]}']
      found['cases'] += 1
      kinds = {child.tag for child in case}
      found['skipped'] += 'skipped' in kinds
      found['passed'] += not kinds & {'skipped', 'failure', 'error'}
  return dict(counts)


def page(report: Mapping[str, Any]) -> str:
  """docs/reliability.md, as Markdown."""
  body = []
  for number, row in enumerate(ROWS, 1):
    counts = [report['tests'][test] for test in row.tests]
    passed, cases, skipped = (
      sum(each[name] for each in counts)
      for name in ('passed', 'cases', 'skipped')
    )
    held = f'{passed} of {cases}' + (f', {skipped} skipped' if skipped else '')
    tests = ', '.join(f'`{test}`' for test in row.tests)
    body.append(f'| {number} | {row.fault} | {row.must} | {held} | {tests} |')
  lines = [
    '# Faults that were tried',
    '',
    'Tests provoke each of these faults, with real signals, disks and files. A case is '
    'a test with one set of values; many provoke their fault at several moments or in '
    'several places. [Runs, faults and exit codes](faults.md) says what to do about a fault.',
    '',
    '| Row | Fault | What must happen | Cases passed | Tests in `tests/` |',
    '|---|---|---|---|---|',
    *body,
    '',
    'This page was written by `python benchmarks/reliability.py '
    f'--out=results/reliability.json` at commit {report["environment"]["commit"]}. '
    '`python benchmarks/soak.py` kills runs at random times for hours, and compares '
    'how they end.',
  ]
  return '\n'.join(lines) + '\n'


def absent(tests: Sequence[str]) -> list[str]:
  """Those of `tests` that are not in the files that they name."""
  return [
    test
    for test in tests
    if f'def {test.split("::")[1]}('
    not in (_ROOT / 'tests' / test.split('::')[0]).read_text()
  ]


def main() -> None:
  """Runs the tests, and writes the counts and the page."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--out', type=pathlib.Path, required=True, help='a file of JSON'
  )
  parser.add_argument(
    '--render', action='store_true', help='write the page of --out only'
  )
  args = parser.parse_args()
  if not args.render:
    counts = run()
    report = {'tests': counts, 'environment': environment.environment()}
    files.write_atomically(args.out, json.dumps(report, indent=2) + '\n')
    failed = [
      name
      for name, count in counts.items()
      if count['passed'] + count['skipped'] < count['cases']
    ]
    if failed:
      raise errors.DataError(f'not held: {", ".join(failed)}.')
  files.write_atomically(_ROOT / PAGE, page(json.loads(args.out.read_text())))


if __name__ == '__main__':
  command.run(main)
