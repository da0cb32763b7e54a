"""results/diagnosis.md: the tables of the diagnosis, in Markdown."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from td_jax.paper import diagnosis

# The last columns of the tables that compare methods on a changed task.
_COMPARED = ('student learns from', 'RMSE', 'minus scratch')


def page(rows: diagnosis.Rows) -> str:
  """The tables, each under its heading."""
  sections = (
    _weights,
    _messages,
    _iterations,
    _shares,
    _unknown,
    _widths,
    _answers,
    _stops,
  )
  return '\n'.join(line for section in sections for line in section(rows))


def _weights(rows: diagnosis.Rows) -> Iterator[str]:
  yield from (
    '## Which term moves the score',
    '',
    'Validation RMSE minus that of scratch, mean ± standard error over seeds, '
    f'paired by seed; k = 1; below 0 is better. {rows.source("weight")}',
    '',
    *_by_weight(rows, 'weight', diagnosis.SCRATCH),
    '![RMSE by weight](diagnosis_weight.png)',
    '',
  )


def _messages(rows: diagnosis.Rows) -> Iterator[str]:
  yield from (
    '## What the messages carry',
    '',
    'Measured after training, on the first 1,000 validation ratings. `g` is '
    'the student, `h` the teacher, `m` a message. `rank` is the participation '
    'ratio of a covariance, at most 128. `cka` is linear and debiased. '
    '`missed low_h` is the share of the variance of the low state of the '
    'teacher that is missing from what it decodes from the message of the '
    'student, and `missed high_h` is the same for what its frozen layers make '
    'of the decoded state; above 1, the mean alone would be nearer. `rmse` is '
    'that of the teacher with its own low state, and with the decoded one.',
    '',
  )
  keys = [key for key in rows.of('weight') if rows['weight', *key]['talk']]
  if not keys:
    return
  # All rows have the same measurements, in the order of `measure_messages`.
  heads = list(rows['weight', *keys[0]]['talk'])
  yield from _table(
    ['genre', 'student learns from', 'weight', *heads],
    (
      [genre, diagnosis.full_name(name), f'{x:g}']
      + [f'{rows["weight", genre, name, x]["talk"][h]:.3g}' for h in heads]
      for genre, name, x in keys
    ),
  )


def _iterations(rows: diagnosis.Rows) -> Iterator[str]:
  yield from (
    '## L_interact, by iteration',
    '',
    'Drama, k = 3, all three terms at weight 1. With `chained`, the target of '
    'an iteration is the state that the student interpreted just before; with '
    f'`original`, it is the state on x. {rows.source("iteration")}',
    '',
    '![L_interact by iteration](diagnosis_iteration.png)',
    '',
    *_table(
      ['target', 'iteration', 'first 50 steps', 'last 50 steps', 'RMSE'],
      (
        [
          name,
          series.removeprefix('talk/interact_'),
          f'{values[0]:.4g}',
          f'{values[-1]:.4g}',
          f'{rows["iteration", genre, name, x]["validation"]["mean"]:.4f}',
        ]
        for genre, name, x in rows.of('iteration')
        for series, values in sorted(
          rows['iteration', genre, name, x]['interact'].items()
        )
      ),
    ),
  )


def _shares(rows: diagnosis.Rows) -> Iterator[str]:
  yield from (
    '## Fewer ratings',
    '',
    'The student has a random share of the training ratings of Drama, and the '
    'teacher has all of them. All weights are 1. The last column is the RMSE '
    f'minus that of scratch on the same share. {rows.source("share")}',
    '',
    *_table(
      ['genre', 'share', *_COMPARED],
      _by_x(rows, 'share', lambda x: f'{x:.0%}'),
    ),
  )


def _unknown(rows: diagnosis.Rows) -> Iterator[str]:
  yield from (
    '## Without unknown-id rows in training',
    '',
    'With `unknown_rate` 0 the embeddings of unknown ids are not trained. All '
    f'weights are 1. {rows.source("unknown")}',
    '',
    *_table(
      ['genre', 'rate', *_COMPARED],
      _by_x(rows, 'unknown', lambda x: f'{x:g}'),
    ),
  )


def _widths(rows: diagnosis.Rows) -> Iterator[str]:
  yield from (
    '## Narrower students',
    '',
    'The layers of 128 and 64 are cut to a fraction. All weights are 1. '
    + rows.source('width'),
    '',
    *_table(
      ['genre', 'width', *_COMPARED],
      _by_x(rows, 'width', lambda x: f'1/{1 / x:g}'),
    ),
  )


def _answers(rows: diagnosis.Rows) -> Iterator[str]:
  yield from (
    '## Answers, beside agreement on messages and states',
    '',
    f'Validation RMSE minus that of {diagnosis.SILENT}, which has no '
    'L_interact, by the weight of L_interact. The other weights are those of '
    'table 3, where the weight of L_interact is 0.03 and k = 1. '
    + rows.source('answers'),
    '',
    *_by_weight(rows, 'answers', diagnosis.SILENT),
  )


def _stops(rows: diagnosis.Rows) -> Iterator[str]:
  yield from (
    '## At the best step, and at the last',
    '',
    'With the weights of table 3. Validation RMSE of each seed at its best '
    'step, by which settings were chosen, and at the last step, which table 3 '
    f'scores on test. {rows.source("stop")}',
    '',
    *_table(
      [
        'genre',
        'method',
        'best step',
        'RMSE there',
        'minus scratch',
        'RMSE at the last',
        'minus scratch',
      ],
      _stop_lines(rows),
    ),
  )


def _stop_lines(rows: diagnosis.Rows) -> Iterator[list[str]]:
  for key in rows.of('stop'):
    row = rows['stop', *key]
    texts = [*key[:2], f'{row["best_step"]:.0f}']
    for score in ('validation', 'last'):
      gap = None
      if key[1] != diagnosis.SCRATCH:
        gap = rows.gap('stop', *key, score=score)
      texts += [f'{row[score]["mean"]:.4f}', _gap_text(gap)]
    yield texts


def _by_weight(rows: diagnosis.Rows, part: str, base: str) -> Iterator[str]:
  """A table of gaps to the run `base`, with a column for each weight."""
  # The base has one run for all weights, at x = 0.
  keys = [key for key in rows.of(part) if key[1] != base]
  weights = sorted({x for _, _, x in keys})
  return _table(
    ['genre', 'student learns from', *(f'weight {w:g}' for w in weights)],
    (
      [genre, diagnosis.full_name(name)]
      + [
        _gap_text(rows.gap(part, genre, name, x, against=(base, 0.0)))
        for x in weights
      ]
      for genre, name in dict.fromkeys(key[:2] for key in keys)
    ),
  )


def _by_x(
  rows: diagnosis.Rows, part: str, text_of: Callable[[float], str]
) -> Iterator[list[str]]:
  """A line for each run of a part: scores, and gaps to scratch."""
  for genre, name, x in rows.of(part):
    score = rows[part, genre, name, x]['validation']
    # Scratch minus itself would only be a distracting zero.
    gap = None
    if name != diagnosis.SCRATCH:
      gap = rows.gap(part, genre, name, x)
    yield [
      genre,
      text_of(x),
      diagnosis.full_name(name),
      f'{score["mean"]:.4f}',
      _gap_text(gap),
    ]


def _gap_text(gap: dict[str, Any] | None) -> str:
  if gap is None:
    return ''
  # A single seed has no standard error.
  return f'{gap["mean"]:+.4f} ± {gap["standard_error"] or 0:.4f}'


def _table(
  heads: Sequence[str], lines: Iterable[Sequence[str]]
) -> Iterator[str]:
  yield '| ' + ' | '.join(heads) + ' |'
  yield '|---' * len(heads) + '|'
  for line in lines:
    yield '| ' + ' | '.join(line) + ' |'
  yield ''
