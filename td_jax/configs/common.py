"""Blocks that several configs share. Every key is declared and commented here.

The package has no defaults of its own: it reads every key, and stops if one is
missing.
"""

from collections.abc import Sequence
import difflib
from typing import Any

import ml_collections

from td_jax import types


def parse(arg: str | None, **defaults: bool | int | str) -> types.Config:
  """Parses the text after a config's colon.

  Args:
    arg: Such as 'genre=War,runlocal'. A bare name means True.
    **defaults: The known names. A value is converted to its default's type.

  Raises:
    ValueError: A name is not among `defaults`.
  """
  parsed: Any = ml_collections.ConfigDict(defaults)
  for item in filter(None, (arg or '').split(',')):
    name, _, value = item.partition('=')
    if name not in parsed:
      near = difflib.get_close_matches(name, list(defaults), n=1)
      hint = f' Did you mean {near[0]!r}?' if near else ''
      raise ValueError(
        f'config argument {item!r}: there is no {name!r}; choose from '
        f'{", ".join(sorted(defaults))}.{hint}'
      )
    # bool('False') is True, so booleans are read by hand.
    if isinstance(defaults[name], bool):
      if value not in ('', 'True', 'False'):
        raise ValueError(
          f'config argument {item!r}: write {name}, {name}=True or {name}=False'
        )
      parsed[name] = value != 'False'
    else:
      kind = type(defaults[name])
      try:
        parsed[name] = kind(value)
      except ValueError as e:
        raise ValueError(
          f'config argument {item!r}: {name} takes a value of type '
          f'{kind.__name__}, such as {defaults[name]!r}'
        ) from e
  return parsed


def anything(value: Any) -> Any:
  """A field that takes a number, or the knots of a schedule."""
  # ml_collections would otherwise refuse a tuple where a float was declared.
  return ml_collections.FieldReference(value, field_type=object)


def mlp(
  *, hidden: Sequence[int], dropout: float, unknown_rate: float
) -> types.Config:
  """A recommender: embeddings of user and movie, then ReLU layers."""
  cfg: Any = ml_collections.ConfigDict()
  cfg.name = 'mlp'  # The kind of network.
  cfg.hidden = hidden  # Widths of the ReLU layers.
  cfg.split = (1, 2)  # (l, h): the low state follows layer l, the high one h.
  cfg.dropout = dropout  # After each ReLU layer.
  cfg.unknown_rate = unknown_rate  # Rate at which training hides an id.
  return cfg


def vit(*, depth: int, split: tuple[int, int], **settings: Any) -> types.Config:
  """The ViT-B/32 of google-research/vision_transformer, with `settings`."""
  cfg: Any = ml_collections.ConfigDict()
  cfg.name = 'vit'  # The kind of network.
  cfg.width = 768  # Of a token.
  cfg.depth = depth  # Number of blocks.
  cfg.heads = 12  # Of attention.
  cfg.mlp_width = 3072  # Of the hidden layer of an MLP.
  cfg.patch = 32  # Side of a patch, in pixels.
  cfg.split = split  # (l, h): the low state follows block l, the high one h.
  # Where the class token joins: before or after the positions are added; or
  # none, for a network without a class token.
  cfg.class_token = 'before'
  cfg.registers = 0  # Further learned tokens, without positions.
  cfg.position = 'learned'  # learned, sincos2d or rope (rotary, as in DINOv3).
  cfg.pre_norm = False  # LayerNorm of the embeddings, as in CLIP.
  cfg.pooling = 'token'  # token, mean, token_and_mean or map.
  cfg.pre_logits_width = 0  # 0: the head follows the pooled token directly.
  cfg.layer_scale = 0.0  # Initial scale of residual branches; 0: no LayerScale.
  cfg.mlp = 'gelu'  # gelu or swiglu, whose first layer has a gate.
  cfg.gelu = 'tanh'  # tanh (an approximation), exact or quick (CLIP's).
  cfg.eps = 1e-6  # Epsilon of every LayerNorm.
  cfg.dropout = 0.0  # On embeddings, inside MLPs and on residual branches.
  cfg.dtype = 'bfloat16'  # Blocks compute in it; choose float32 on CPUs.
  cfg.remat = True  # Recompute blocks in the backward pass, to save memory.
  cfg.scan = False  # Compile one block and stack the parameters of all.
  cfg.update(settings)
  return cfg


def published(checkpoint: str, model: types.Config) -> types.Config:
  """A teacher with published weights."""
  cfg: Any = ml_collections.ConfigDict()
  cfg.checkpoint = checkpoint  # A .npz file, or a folder from Hugging Face.
  cfg.update(own_teacher())
  cfg.model = model  # The architecture of the weights, and its split.
  # Take the architecture of teacher and student, except for their splits and the
  # student's depth and pooling, and the mean and std of images from the weights.
  cfg.as_stored = False
  # probe: a linear head, fitted to the frozen teacher's features; stored: the
  # head of the checkpoint; none: zeros, for methods that ignore its outputs.
  cfg.head = 'probe'
  cfg.cache = False  # Compute the teacher's states once, before training.
  # Folder for the teacher's head, scores and, with `cache`, states, which all
  # runs share. '' keeps only the head, in the run's own folder.
  cfg.cache_dir = ''
  return cfg


def own_teacher() -> types.Config:
  """Teachers that td_jax neither trains nor has a class for; see docs/teachers.md."""
  cfg: Any = ml_collections.ConfigDict()
  cfg.states = ''  # A .npz of outputs and states that were computed elsewhere.
  # package.module:function or FILE.py:function, which returns a td_jax.Frozen.
  cfg.build = ''
  return cfg


def images(
  dataset: str,
  splits: tuple[str, str, str],
  *,
  classes: int,
  size: int,
  memory: str,
) -> types.Config:
  """An image classification dataset, and how its images are prepared."""
  cfg: Any = ml_collections.ConfigDict()
  cfg.dataset = dataset  # Name in TFDS, or image_folder.
  # Where TFDS keeps its data, may be gs://; '': its default. For image_folder
  # the folder of the images.
  cfg.dir = ''
  cfg.train, cfg.validation, cfg.test = splits  # In the notation of TFDS.
  # Number of classes of the dataset. image_folder finds it by itself if it is 0,
  # as it does with splits that are ''.
  cfg.classes = classes
  cfg.limit = 0  # Number of training images, classes balanced; 0: all.
  # device: all images stay in the device's memory; stream: the host reads them
  # while the devices train.
  cfg.memory = memory
  cfg.size = size  # Side in pixels, after crop and resize; 0: 8 patches.
  cfg.augment = 'inception'  # inception (random crop and flip) or none.
  cfg.area = (0.05, 1.0)  # Smallest and largest share of an image in a crop.
  # stream, or images of several sizes: before the central crop of an evaluation,
  # resize the smaller side to this many pixels; 0: stretch the whole image.
  cfg.smaller_side = 0
  cfg.skip_corrupt = False  # stream only: skip and count damaged images.
  cfg.fixed_crops = 0  # Fixed random crops per image; 0: a new one each time.
  cfg.mean = (127.5, 127.5, 127.5)  # Networks see (grey level - mean) / std.
  cfg.std = (127.5, 127.5, 127.5)  # Networks see (grey level - mean) / std.
  cfg.update(few_labels('images'))
  return cfg


def table(path: str, *, columns: str, others: str) -> types.Config:
  """A table of your own: a CSV file, or a Parquet file (.parquet).

  Args:
    path: The file.
    columns: The default of the keys that name a column: '', or 'auto'.
    others: What becomes of columns that no key names: 'use' or 'ignore'.
  """
  cfg: Any = ml_collections.ConfigDict()
  cfg.csv = path  # The file.
  cfg.delimiter = ','  # Between the values of a CSV file.
  # The next keys name a column each. '': there is none; auto: the column with a
  # usual name, such as user_id, if there is one.
  cfg.target = columns  # What is predicted; may be empty in some rows.
  cfg.user, cfg.item = columns, columns  # Ids.
  # A number, or a date such as 2024-05-31 17:00.
  cfg.time = columns
  cfg.title = columns  # Text about an item, read as a bag of words.
  cfg.genres = columns  # Words about an item, such as Drama|War.
  # A further file with the columns item, title and genres; '': none.
  cfg.details = ''
  cfg.categories, cfg.numbers = (), ()  # Further columns, which describe a row.
  # Columns that no key names: ignore, or use as categories and numbers.
  cfg.others = others
  cfg.kind = 'auto'  # regression, classification, or auto: by the values.
  # Rows are ordered by time or at random, and the last are for the test; auto: by
  # time if there is such a column.
  cfg.order = 'auto'
  cfg.order_seed = 0  # Of the random order.
  cfg.test_share = 0.1  # Of the rows with a target.
  cfg.validation_share = 0.1  # Of what is left.
  # The column that says which task a row belongs to; '': rows have no tasks; auto:
  # the genres.
  cfg.by = ''
  # Students learn the rows of this task; '': all rows. Teachers of our own learn all
  # rows.
  cfg.task = ''
  cfg.update(few_labels('table'))
  # auto: rest if rows of the task have no target, or else none.
  cfg.unlabelled.source = 'auto'
  return cfg


def few_labels(domain: str) -> types.Config:
  """Which labels of a dataset are hidden, and what is seen without a label.

  These keys join the `data` block of a domain; the defaults keep all labels.
  """
  cfg: Any = ml_collections.ConfigDict()
  cfg.labels = ml_collections.ConfigDict()
  # Share of the training examples that keep their label. A smaller share is a
  # subset of a larger one; for images the classes are balanced.
  cfg.labels.share = 1.0
  # Seed of the choice of labels, the same for all students.
  cfg.labels.draw = 0
  cfg.unlabelled = ml_collections.ConfigDict()
  # none, rest (the examples whose labels are hidden or absent), for ratings pairs
  # (random pairs of a user and a movie), or for images dataset (the keys below) or
  # mixtures (of two labelled images each).
  cfg.unlabelled.source = 'none'
  cfg.unlabelled.share = 0.5  # Share of a batch without labels.
  if domain in ('movielens', 'table'):
    if domain == 'movielens':
      # The genre whose labels `share` hides; '': that of the run.
      cfg.labels.genre = ''
    else:
      # The task whose labels `share` hides; '': that of the run.
      cfg.labels.task = ''
    cfg.unlabelled.pairs = 0  # Number of random pairs; 0: one for each row.
  elif domain == 'images':
    # Number of labels kept in each class, in place of a share; 0: by `share`.
    cfg.labels.per_class = 0
    # Number of mixtures; 0: ten for each labelled image.
    cfg.unlabelled.mixtures = 0
    # Name of the dataset without labels; '': `data.dataset`, of which another
    # split is taken.
    cfg.unlabelled.dataset = ''
    cfg.unlabelled.split = ''  # Its split, in the notation of TFDS.
    # Its folder, as in `data.dir`; '': `data.dir`, or TFDS's default if only one of
    # the two datasets is image_folder.
    cfg.unlabelled.dir = ''
  return cfg


def learner(
  model: types.Config,
  *,
  steps: int,
  batch_size: int,
  optimizer_name: str,
  learning_rate: float,
  weight_decay: float,
  clip: float,
) -> types.Config:
  """A network that is trained, student or teacher, and its recipe."""
  cfg: Any = ml_collections.ConfigDict()
  cfg.steps = steps  # Number of updates.
  cfg.batch_size = batch_size  # Global; the devices must divide it.
  cfg.steps_per_dispatch = 50  # Steps per call of the compiled program.
  cfg.log_every = 50  # Steps between rows of metrics.jsonl.
  cfg.eval_every = 100  # Steps between validations, which also save.

  cfg.model = model

  cfg.optim = optimizer()
  cfg.optim.name = optimizer_name
  cfg.optim.learning_rate = learning_rate
  cfg.optim.weight_decay = weight_decay
  cfg.optim.clip = clip
  return cfg


def optimizer() -> types.Config:
  """An optimizer; also completes the stored configs of older runs."""
  cfg: Any = ml_collections.ConfigDict()
  cfg.name = 'adamw'  # adamw or sgd.
  cfg.learning_rate = 1e-3  # The peak.
  # The peak for a method's own parameters, such as encoders and decoders, which
  # start at random; 0: as above.
  cfg.method_learning_rate = 0.0
  cfg.warmup = 100  # Steps of linear warm-up.
  cfg.decay = 'cosine'  # cosine or constant, after the warm-up.
  cfg.weight_decay = 0.0  # On matrices and embedding tables only.
  cfg.momentum = 0.9  # For sgd.
  cfg.clip = 0.0  # Largest global norm of the gradient; 0 does not clip.
  # Skip a step whose loss exceeds its running mean by this factor; 0 skips none.
  cfg.skip_loss_above = 0.0
  return cfg


def distill(**weights: Any) -> types.Config:
  """The settings of all methods; `weights` replaces default weights of 1."""
  cfg: Any = ml_collections.ConfigDict()
  cfg.weights = ml_collections.ConfigDict()
  # Each weight is a number, or knots such as ((0, 1.0), (500, 0.0)).
  cfg.weights.logit = anything(1.0)  # LD, Hybrid, TD + LD, mixing, asking.
  cfg.weights.dkd = anything(1.0)  # DKD.
  cfg.weights.feature = anything(1.0)  # FD, Hybrid.
  cfg.weights.hint = anything(1.0)  # FitNet.
  cfg.weights.interact = anything(1.0)  # TD: L_interact.
  cfg.weights.message = anything(1.0)  # TD: L_MC.
  cfg.weights.state = anything(1.0)  # TD: L_SC.
  cfg.weights.mix = anything(1.0)  # Mixing.
  cfg.weights.ask = anything(1.0)  # Asking.
  # The authors' weights, since these terms differ by orders of magnitude.
  cfg.weights.logit_std = anything(9.0)  # Standardised logits.
  cfg.weights.dist = anything(1.0)  # DIST.
  cfg.weights.bd_kd = anything(1.0)  # BD-KD.
  cfg.weights.rkd = anything(1.0)  # RKD.
  cfg.weights.sp = anything(3000.0)  # SP.
  cfg.weights.pkt = anything(30000.0)  # PKT.
  cfg.weights.at = anything(1000.0)  # AT.
  cfg.weights.vkd = anything(1.0)  # VkD.
  cfg.weights.srrl = anything(1.0)  # SRRL.
  cfg.weights.update(weights)
  cfg.hidden = 256  # Width of the ReLU layer of encoders and decoders.
  cfg.message = 128  # Width of a message.
  cfg.dropout = 0.0  # Rate inside encoders and decoders.
  cfg.distance = 'l2'  # Between states or messages: l2, cosine, pearson or kl.
  cfg.logit_distance = 'l2'  # Between outputs; ratings allow l2 only.
  cfg.temperature = 1.0  # T of the distance kl, DKD, DIST, BD-KD and logit_std.
  cfg.dkd_alpha = 1.0  # DKD: weight of the target class (TCKD).
  cfg.dkd_beta = 8.0  # DKD: weight of the other classes (NCKD).
  cfg.dist_beta = 1.0  # DIST: weight of the classes of an example.
  cfg.dist_gamma = 1.0  # DIST: weight of the examples of a class.
  cfg.bd_nu = 2.0  # BD-KD: weight of the divergence that counts more.
  cfg.rkd_distance = 1.0  # RKD: weight of distances.
  cfg.rkd_angle = 2.0  # RKD: weight of angles.
  cfg.at_power = 2  # AT: the power of activations.
  cfg.srrl_classifier = 1.0  # SRRL: weight of the teacher's outputs.
  # TD: what L_interact compares iteration i > 0 with. chained: the states that
  # the student just interpreted (Algorithm 1); original: its states on the
  # input (section 3.3).
  cfg.interact_target = 'chained'
  # TD: what L_interact trains. both: the student and, through the answer, the
  # encoders and decoders; student: the student alone, the answer is held constant.
  cfg.interact_teaches = 'both'
  # FD, FitNet, TD: compare states as they are (raw), or in units of the spread of
  # each dimension, as measured at the start (standardised).
  cfg.states = 'raw'
  # Asking: about states between two inputs (between), or the inputs' own (inputs).
  cfg.questions = 'between'
  cfg.student_encodes = 'low_and_high'  # TD: or low, for one-sided messages.
  # TD: noise on the state that the teacher interprets, in units of its RMS. Our
  # ablation has 0.1; the paper prints no number.
  cfg.noise = 0.0
  # FD: both encoders learn (both), or the teacher's stays as it is initialised
  # (teacher).
  cfg.feature_target = 'both'
  # FitNet: decode the teacher's states into the student's (paper, section 3.2),
  # or the student's into the teacher's (original, Romero et al.).
  cfg.hint_direction = 'paper'
  cfg.remat = False  # TD: recompute iterations in the backward pass.
  cfg.unroll = True  # TD: compile all iterations into one straight program.
  return cfg


def run() -> types.Config:
  """The keys that every config has, whatever its dataset and networks."""
  cfg: Any = ml_collections.ConfigDict()
  cfg.name = ''  # What results call the config.
  cfg.domain = ''  # The kind of data.
  # How students learn; teacher: no student, only the teacher is trained.
  cfg.method = ''
  cfg.seed = 0  # The first of `seeds` consecutive seeds.
  cfg.seeds = 1  # Number of students, trained side by side in one program.
  cfg.k = 1  # Rounds of the conversation; 0: no interaction.
  # Steps that train the student alone, then steps that train encoders and
  # decoders alone, before both train together.
  cfg.stages = (0, 0)
  # random; for ViTs also first_n or uniform, which copy blocks of the teacher.
  cfg.student_init = 'random'
  # zeros, or probe: with the copied blocks frozen, a linear head is fitted to the
  # labels first.
  cfg.student_head = 'zeros'
  cfg.distill = distill()
  cfg.parallel = parallel()
  # Train on training and validation data together, for the test score.
  cfg.refit_on_validation = False
  # Before a refit, train without validation data, for the validation score.
  cfg.score_before_refit = True
  cfg.test = True  # Score the test split; set False while tuning.
  cfg.eval_batch = 2048  # Examples per device; does not affect scores.
  cfg.checkpoint = ''  # --mode=eval: folder of the run; '': the workdir.
  cfg.allow_changed_config = False  # Resume although the config has changed.
  cfg.wandb = ''  # A project of Weights & Biases that gets the metrics, too.
  return cfg


def parallel() -> types.Config:
  """How a run uses the devices."""
  cfg: Any = ml_collections.ConfigDict()
  # single, pmap, or mesh (jit over a sharded batch, also on several hosts).
  # auto chooses single or pmap by the number of devices.
  cfg.kind = 'auto'
  cfg.devices = 0  # Number of devices; 0: all.
  cfg.fsdp = 1  # mesh only: shards of the state and of the teacher.
  return cfg
