"""Checkpoints of a run. No other file imports orbax.

A checkpoint consists of items, each a tree of arrays, and a JSON record. The
record holds its own SHA-256, the SHA-256 of every item, and the shape and dtype
of every leaf, because orbax restores a flipped byte without an error.
"""

from collections.abc import Callable
from collections.abc import Mapping
import logging
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from td_jax import errors
from td_jax import types
from td_jax.storage import files
from td_jax.storage import paths

_RECORD = 'record'
_CAUSE_LENGTH = 200  # Characters of orbax's error in a message of ours.
_UNFINISHED = '.orbax-checkpoint-tmp'  # In the name of what is being written.
_PATTERN = '*?[]\\'  # Characters of a path that orbax does not take literally.

Leaves = Mapping[str, Any]  # {path: array or shape}, as `_flatten` returns.
Check = Callable[[dict[str, Any]], None]  # Raises an error for a bad record.


def check_path(path: types.Path) -> None:
  """Raises a ConfigError if orbax cannot save below `path`."""
  # orbax finds the parts of a checkpoint by a pattern that contains the path.
  where = paths.absolute(str(path))
  wrong = sorted(set(where) & set(_PATTERN))
  if wrong:
    raise errors.ConfigError(
      f'--workdir={path} is {where!r}, where no checkpoint can be saved: the '
      f'path must not contain {" or ".join(wrong)}. Choose another folder.'
    )


class Checkpoints:
  """The checkpoints of one run; the two latest remain on disk."""

  def __init__(self, directory: types.Path, *, read_only: bool = False):
    """Opens the directory. Only the run that owns it may open it for writing.

    Args:
      directory: Created if absent.
      read_only: For every process that does not belong to the run.
    """
    self._directory = directory
    self._has_saved = False
    self._manager = ocp.CheckpointManager(
      paths.absolute(str(directory)),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=2,
        # A temporary directory is the leftover of a crash, unless another
        # process is writing it: a reader must leave it alone.
        cleanup_tmp_directories=not read_only,
        create=not read_only,
      ),
    )

  def save(
    self, step: int, items: Mapping[str, types.PyTree], record: dict[str, Any]
  ) -> None:
    """Starts to save; `wait` or the next `save` raises if that fails.

    The first save of a process is waited for and read back. With several
    processes every one of them must call this.

    Args:
      step: Checkpoints of this and later steps are replaced.
      items: {name: tree of numpy arrays}. All must be finite, except in 'best'.
      record: JSON values that are stored beside the items.

    Raises:
      errors.IOFailedError: The previous save failed.
      errors.NonFiniteError: A leaf is not finite; nothing is written.
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
        # 'best' holds scores too, which are infinite before the first one.
        if name != 'best' and not np.all(np.isfinite(value)):
          raise errors.NonFiniteError(
            f'{leaf} is not finite at step {step}; it was not saved. '
            f'{self._last_good()}.'
          )
    # Flat mappings, so that leaves have the same names in orbax's files as in
    # the record.
    arguments: dict[str, Any] = {
      name: ocp.args.StandardSave(leaves) for name, leaves in flat.items()
    }
    arguments[_RECORD] = ocp.args.JsonSave(
      record | {'sha256': files.sha256(record)}
    )
    try:
      for later in self._manager.all_steps():
        # `restore` skipped these as damaged. If they stayed, orbax would
        # silently refuse to save a step that is not the latest.
        if later >= step:
          self._manager.delete(later)
      self._manager.save(step, args=ocp.args.Composite(**arguments))
      if not self._has_saved:
        self._read_back(step)
        self._has_saved = True
    except Exception as error:  # As in `wait`.
      raise self._save_error(error) from error

  def latest(self) -> int | None:
    """The step of the latest save, if there is one; waits as `wait` does."""
    self.wait()
    return self._manager.latest_step()

  def wait(self) -> None:
    """Returns once the last save is on disk; raises IOFailedError otherwise."""
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:  # orbax re-raises any error of its threads.
      raise self._save_error(error) from error

  def restore(
    self,
    templates: Mapping[str, types.PyTree],
    *,
    check: Check = lambda record: None,
  ) -> tuple[dict[str, types.PyTree], dict[str, Any]] | None:
    """Restores the latest intact checkpoint.

    Args:
      templates: {name of an item: tree of arrays or shapes}. Items that are not
        named are not read.
      check: Receives the record before any item is read.

    Returns:
      (items, record), or None if there is no checkpoint. The items have the
      structure of their templates, with numpy arrays as leaves.

    Raises:
      errors.DataError: A leaf has another shape than its template, or every
        checkpoint is damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        return self._restore(step, templates, check)
      except errors.DataError:
        # The config does not fit: an older checkpoint would not fit either.
        raise
      except Exception as error:  # orbax has no common type for damaged files.
        logging.warning(
          'checkpoint %s/%d is damaged and passed over: %s',
          self._directory,
          step,
          errors.one_line(error),
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
    except Exception as error:
      # Raised here, it would hide the error that ends the run.
      logging.warning('%s', self._save_error(error))

  def _restore(
    self, step: int, templates: Mapping[str, types.PyTree], check: Check
  ) -> tuple[dict[str, types.PyTree], dict[str, Any]]:
    record = self._manager.restore(
      step, args=ocp.args.Composite(**{_RECORD: ocp.args.JsonRestore()})
    )[_RECORD]
    # The records of early versions have no digest of their own.
    if record.pop('sha256', None) not in (None, files.sha256(record)):
      raise ValueError('the record does not match its SHA-256')
    check(record)  # Other data have other shapes too; say so first.
    expected = {name: _flatten(tree) for name, tree in templates.items()}
    for name, leaves in expected.items():
      self._check_leaves(
        step, record['items'][name]['leaves'], _describe(leaves)
      )
    abstract = {
      name: ocp.args.StandardRestore(
        {
          leaf: np.zeros(value.shape, value.dtype)
          for leaf, value in leaves.items()
        }
      )
      for name, leaves in expected.items()
    }
    restored = self._manager.restore(step, args=ocp.args.Composite(**abstract))
    items = {}
    for name, template in templates.items():
      # The digest depends on the order of the leaves: take the template's.
      leaves = {
        leaf: np.asarray(restored[name][leaf]) for leaf in expected[name]
      }
      if _digest(leaves) != record['items'][name]['sha256']:
        raise ValueError(f'the contents of {name} do not match their SHA-256')
      items[name] = jax.tree.unflatten(
        jax.tree.structure(template), list(leaves.values())
      )
    return items, record

  def _check_leaves(
    self, step: int, stored: Mapping[str, str], expected: Mapping[str, str]
  ) -> None:
    """Raises a DataError unless both have the same leaves and shapes."""
    for leaf in sorted(stored.keys() | expected.keys()):
      if stored.get(leaf) != expected.get(leaf):
        raise errors.DataError(
          f'checkpoint {self._directory}/{step}: leaf {leaf} is stored as '
          f'{stored.get(leaf, "nothing")} and expected as '
          f'{expected.get(leaf, "nothing")}; the config describes another '
          'network than the one that was saved.'
        )

  def _save_error(self, cause: Exception) -> errors.IOFailedError:
    # tensorstore names the operations first and the reason ('No space left on
    # device') last, followed by its settings in brackets. Cut at the front.
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    reason = errors.one_line(lines[0].split(' [')[0][-_CAUSE_LENGTH:])
    self._remove_unfinished()
    return errors.IOFailedError(
      f'could not save to {self._directory}: {reason}. Free some '
      'space or fix the permissions, then start again with the same '
      f'--workdir. {self._last_good()}.'
    )

  def _read_back(self, step: int) -> None:
    """Raises an error if the save of `step` has no readable manifest."""
    # Otherwise a run would learn that only when it resumes.
    self._manager.wait_until_finished()
    try:
      self._manager.item_metadata(step)
    except Exception:
      self._manager.delete(step)
      raise

  def _last_good(self) -> str:
    step = self._manager.latest_step()
    if step is None:
      return 'There is no checkpoint yet'
    return f'The last good step is {step}'

  def _remove_unfinished(self) -> None:
    """Removes what a failed save has left, for it fills the disk."""
    if paths.is_remote(self._directory) or jax.process_index() != 0:
      return
    for entry in self._directory.glob(f'*{_UNFINISHED}*'):
      shutil.rmtree(entry, ignore_errors=True)


def _flatten(tree: types.PyTree) -> dict[str, Any]:
  """Returns {path: leaf} in the order of `jax.tree.leaves`."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _describe(leaves: Leaves) -> dict[str, str]:
  """Returns {path: dtype and shape}, such as 'float32[2, 13]'."""
  return {
    name: f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
    for name, leaf in leaves.items()
  }


def _digest(leaves: Leaves) -> str:
  return files.sha256(
    *(
      part for name, leaf in leaves.items() for part in (name, np.asarray(leaf))
    )
  )
