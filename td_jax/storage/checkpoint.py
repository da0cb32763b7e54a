"""Saving and restoring: the only file that names orbax.

A checkpoint holds items, each a tree of arrays, and a record of JSON. The
record carries the SHA-256 of every item and its own, and the shape of every
leaf: orbax alone restores a flipped byte without a word.
"""

from collections.abc import Mapping
import itertools
import logging
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from td_jax import errors
from td_jax import types
from td_jax.storage import digest
from td_jax.storage import paths

_RECORD = 'record'


class Checkpoints:
  """The checkpoints of one run: the two latest are kept."""

  def __init__(self, directory: types.Path, *, read_only: bool = False):
    """Opens them; only their own run may do so but `read_only`."""
    self._directory = directory
    self._manager = ocp.CheckpointManager(
      paths.absolute(str(directory)),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=2,
        # What is left over by a crash, or else is being written.
        cleanup_tmp_directories=not read_only,
        create=not read_only,
      ),
    )

  def save(
    self, step: int, items: Mapping[str, types.PyTree], record: dict[str, Any]
  ) -> None:
    """Starts to save; `wait` or the next `save` tells how that ended.

    The leaves of `items` are numpy arrays; of several processes all must call.

    Raises:
      errors.IOFailedError: the previous save failed.
      errors.NonFiniteError: a leaf is not finite; nothing is written.
    """
    self.wait()
    flat = {name: _flatten(tree) for name, tree in items.items()}
    record = record | {
      'items': {
        name: {'sha256': _digest(leaves), 'leaves': _describe(leaves)}
        for name, leaves in flat.items()
      }
    }
    for name, leaves in flat.items():
      for leaf, value in leaves.items():
        if name != 'best' and not np.all(np.isfinite(value)):
          raise errors.NonFiniteError(
            f'{leaf} is not finite at step {step}; it was not saved. The '
            f'last good checkpoint is step {self._manager.latest_step()}.'
          )
    arguments: dict[str, Any] = {
      name: ocp.args.StandardSave(leaves) for name, leaves in flat.items()
    }
    arguments[_RECORD] = ocp.args.JsonSave(
      record | {'sha256': digest.sha256(record)}
    )
    try:
      for later in self._manager.all_steps():
        # A damaged one, which `restore` passed over; orbax would keep it and
        # not save this one, without a word.
        if later >= step:
          self._manager.delete(later)
      self._manager.save(step, args=ocp.args.Composite(**arguments))
    except Exception as e:  # As in `wait`.
      raise self._failed(e) from e

  def wait(self) -> None:
    """Returns when what was saved is on disk, or raises IOFailedError."""
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as e:  # orbax re-raises whatever its threads met.
      raise self._failed(e) from e

  def restore(
    self, templates: Mapping[str, types.PyTree]
  ) -> tuple[dict[str, types.PyTree], dict[str, Any]] | None:
    """The latest sound checkpoint's items, and its record.

    Args:
      templates: For each item that is wanted a tree of arrays or shapes; what
        is restored takes its structure, as numpy arrays.

    Returns:
      (items, record), or None where nothing has been saved.

    Raises:
      errors.DataError: a leaf has another shape than its template, or no
        checkpoint of those present is sound.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        return self._restore(step, templates)
      except errors.DataError:
        raise
      except Exception as e:  # Whatever a damaged file makes of orbax.
        reason = str(e).strip().splitlines() or [type(e).__name__]
        logging.warning(
          'checkpoint %s/%d is damaged and passed over: %s',
          self._directory,
          step,
          reason[0][:200],
        )
    if steps:
      raise errors.DataError(
        f'none of the checkpoints {steps} in {self._directory} can be read; '
        'remove that folder to start afresh.'
      )
    return None

  def close(self) -> None:
    try:
      self._manager.close()
    except Exception as e:  # Raised, it would hide why the run ends.
      logging.warning('%s', self._failed(e))

  def _restore(self, step, templates):
    record = self._manager.restore(
      step, args=ocp.args.Composite(**{_RECORD: ocp.args.JsonRestore()})
    )[_RECORD]
    # Early records do not have one.
    if record.pop('sha256', None) not in (None, digest.sha256(record)):
      raise ValueError('the record does not match its SHA-256')
    wanted = {name: _flatten(tree) for name, tree in templates.items()}
    for name, leaves in wanted.items():
      self._compare(step, record['items'][name]['leaves'], _describe(leaves))
    abstract = {
      name: ocp.args.StandardRestore(
        {
          leaf: np.zeros(value.shape, value.dtype)
          for leaf, value in leaves.items()
        }
      )
      for name, leaves in wanted.items()
    }
    found = self._manager.restore(step, args=ocp.args.Composite(**abstract))
    items = {}
    for name, template in templates.items():
      leaves = {leaf: np.asarray(found[name][leaf]) for leaf in wanted[name]}
      if _digest(leaves) != record['items'][name]['sha256']:
        raise ValueError(f'the contents of {name} do not match their SHA-256')
      items[name] = jax.tree.unflatten(
        jax.tree.structure(template), list(leaves.values())
      )
    return items, record

  def _compare(self, step, stored, expected):
    for leaf in sorted(stored.keys() | expected.keys()):
      if stored.get(leaf) != expected.get(leaf):
        raise errors.DataError(
          f'checkpoint {self._directory}/{step}: leaf {leaf} is stored as '
          f'{stored.get(leaf, "nothing")} and expected as '
          f'{expected.get(leaf, "nothing")}; the config describes another '
          'network than the one that was saved.'
        )

  def _failed(self, cause):
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    # tensorstore says what happened last, before its settings in brackets.
    reason = reason.split(' [')[0][-200:]
    return errors.IOFailedError(
      f'could not save to {self._directory}: {reason}. Free some '
      'space or mend the permissions, then start again with the same '
      f'--workdir; the last good step is {self._manager.latest_step()}.'
    )


def _flatten(tree):
  """{path: leaf} in the order of `jax.tree.leaves`."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _describe(leaves):
  return {
    name: f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
    for name, leaf in leaves.items()
  }


def _digest(leaves: Mapping[str, np.ndarray]) -> str:
  return digest.sha256(*itertools.chain.from_iterable(leaves.items()))
