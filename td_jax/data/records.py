"""Opens a dataset of encoded images by its name."""

from td_jax.data import dataset
from td_jax.data import image_folder
from td_jax.data import tfds_records


def load(
  name: str, data_dir: str = '', *, labelled: bool = True
) -> dataset.Dataset:
  """Opens a folder of images, or a dataset that TFDS has prepared.

  Args:
    name: 'image_folder', or an image classification dataset of TFDS: 'cifar10',
      'imagenet2012_subset/10pct', 'cifar10:3.0.2'.
    data_dir: For 'image_folder' the folder that contains the splits; else the
      data folder of TFDS, local or gs://, where '' is TFDS's own default.
    labelled: Whether folders of images have a folder for each class; otherwise
      the images may lie at any depth, see `image_folder.load_unlabelled`.

  Raises:
    errors.ConfigError: The name has the wrong form.
    errors.DataError: The data are absent (the message names the command that
      prepares them), damaged, or not for image classification.
  """
  if name == image_folder.NAME:
    if labelled:
      return image_folder.load(data_dir)
    return image_folder.load_unlabelled(data_dir)
  return tfds_records.load(name, data_dir)
