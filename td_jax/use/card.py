"""The model card of an exported student."""

import textwrap
from typing import Any

import jax

import td_jax
from td_jax import types
from td_jax.data import image_folder
from td_jax.use import cost
from td_jax.use import inspect
from td_jax.use import student as student_lib

_HOW = {
  'safetensors': """
    `model.safetensors` has the parameters, named as in the Flax module, and
    `config.json` the module's settings.

    ```python
    from safetensors.numpy import load_file

    params = load_file('model.safetensors')
    ```
    """,
  'hf': """
    ```python
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained('.')
    processor = AutoImageProcessor.from_pretrained('.')
    ```

    For equal pixels the logits are those of td_jax. When they shrink an image, the
    processor and td_jax weigh its pixels differently, so that the results differ a
    little.
    """,
  'stablehlo': """
    The program takes any batch size and runs on CPUs, NVIDIA GPUs and TPUs.

    ```python
    import jax, pathlib

    data = pathlib.Path('model.stablehlo').read_bytes()
    output = jax.export.deserialize(bytearray(data)).call({ARGUMENTS})
    ```
    """,
  'savedmodel': """
    ```python
    import tensorflow as tf

    serve = tf.saved_model.load('.').signatures['serving_default']
    output = serve(**{ARGUMENTS})['output']
    ```
    """,
  'onnx': """
    ```python
    import onnxruntime

    session = onnxruntime.InferenceSession('model.onnx')
    (output,) = session.run(None, {ARGUMENTS})
    ```
    """,
}
_IMAGES = """
    `image` is float32 [b, SIZE, SIZE, 3] of grey levels from 0 to 255, in the order
    red, green, blue. The output has logits [b, CLASSES].
    """


def text(student: student_lib.Student, form: str) -> str:
  """The card of a student that is exported in a format of `export.FORMATS`."""
  config, results = student.config, student.results
  lines = [
    f'# A student of {results["task"]}',
    '',
    f'Made by td_jax {td_jax.__version__} with the method `{results["label"]}`, '
    f'seed {student.seed}, {results["steps"]} steps of {results["batch_size"]} '
    'examples.',
    '',
    *_data(student),
    '',
    '## Scores',
    '',
    *_table(_scores(student)),
    '',
    'All students: the mean over seeds, ± the standard error.',
    '',
    '## Cost',
    '',
    *_table(cost.table(inspect.of_run(student))),
    '',
    f'Measured on {jax.devices()[0].device_kind}.',
    '',
    '## Use',
    '',
    _filled(_HOW[form], config, student),
  ]
  if form not in ('safetensors', 'hf'):
    if config.domain == 'images':
      lines += ['', _filled(_IMAGES, config, student)]
    else:
      lines += ['', *_of_table(student)]
  if student.class_names:
    names = ', '.join(map(str, student.class_names))
    lines += ['', f'Classes, in the order of the logits: {names}.']
  return '\n'.join(lines) + '\n'


def _data(student: student_lib.Student) -> list[str]:
  data, results = student.config.data, student.results
  source = data.csv if 'csv' in data else data.dataset
  if source == image_folder.NAME:
    source = data.dir
  labels = results.get('labels', results.get('train_examples'))
  unlabelled = results.get('unlabelled', 0)
  teachers = [
    f'the teacher `{_name(teacher["folder"])}`'
    for teacher in results['teachers'].values()
  ]
  return [
    f'It learnt from {labels:,} labelled and {unlabelled:,} unlabelled examples of '
    f'`{_name(source)}`, and from {" and ".join(teachers) or "no teacher"}.'
  ]


def _name(path: str) -> str:
  """The last part of a path: where it lay on one machine helps nobody."""
  return path.rstrip('/').rpartition('/')[2]


def _of_table(student: student_lib.Student) -> list[str]:
  """What the arguments of a program are."""
  encoder = student.preprocess
  lines = [f'- `{name}`: `{column}`' for name, column in encoder.ids.items()]
  lines = [
    *lines,
    'Each is int32 [b]: `numbers.json` has the number of each value; one that is '
    'not there has number 0.',
  ]
  if encoder.numbers:
    lines.append(
      f'`numbers` is float32 [b, {len(encoder.numbers)}], of '
      f'{", ".join(encoder.numbers)}; NaN where one is missing.'
    )
  shape = '[b]'
  if student.class_names:
    shape = f'logits [b, {len(student.class_names)}]'
  return [*lines, '', f'The output is `{encoder.target}`, {shape}.']


def _scores(student: student_lib.Student) -> list[list[str]]:
  results = student.results
  splits = [name for name in ('validation', 'test') if name in results]
  head = ['', *(f'{results["metric"]} on {split}' for split in splits)]
  index = results['seeds'].index(student.seed)
  rows = [['this student'], ['all students']]
  for split in splits:
    found = results[split]
    rows[0].append(f'{found["per_seed"][index]:.4f}')
    error = found['standard_error']
    spread = '' if error is None else f' ± {error:.4f}'
    rows[1].append(f'{found["mean"]:.4f}{spread}')
  for name, teacher in results['teachers'].items():
    rows.append([name, *(f'{teacher[split]:.4f}' for split in splits)])
  return [head, *rows]


def _filled(
  text: str, config: types.Config, student: student_lib.Student
) -> str:
  """`text` with the facts of this run, and without its indentation."""
  encoder = student.preprocess
  names = encoder.arrays([encoder.blank])
  arguments = ', '.join(f'{name!r}: {name}' for name in names)
  facts = {
    '{ARGUMENTS}': f'{{{arguments}}}',
    'SIZE': config.data.get('size', ''),
    'CLASSES': len(student.class_names),
  }
  for name, value in facts.items():
    text = text.replace(name, str(value))
  return textwrap.dedent(text).strip()


def _table(rows: list[list[Any]]) -> list[str]:
  """Rows as a table in Markdown; the first is its header."""
  head, *body = (f'| {" | ".join(row)} |' for row in rows)
  return [head, '|' + '---|' * len(rows[0]), *body]
