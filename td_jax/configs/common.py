"""Blocks that configs share: every key is declared and commented here."""

import ml_collections


def parse(arg, **defaults):
  """'genre=War,runlocal' -> ConfigDict; a bare name means True.

  Raises:
    ValueError: a name that is not among `defaults`.
  """
  parsed = ml_collections.ConfigDict(defaults)
  for item in filter(None, (arg or '').split(',')):
    name, _, value = item.partition('=')
    if name not in parsed:
      raise ValueError(
        f'config argument {item!r}: there is no {name!r}; choose from '
        f'{", ".join(sorted(defaults))}'
      )
    if isinstance(defaults[name], bool):
      if value not in ('', 'True', 'False'):
        raise ValueError(f'config argument {item!r}: write {name}')
      parsed[name] = value != 'False'
    else:
      parsed[name] = type(defaults[name])(value)
  return parsed


def anything(value):
  """A field that takes a number, or knots of a schedule."""
  return ml_collections.FieldReference(value, field_type=object)


def mlp(*, hidden, dropout, unknown_rate):
  """The recommender."""
  cfg = ml_collections.ConfigDict()
  cfg.name = 'mlp'
  cfg.hidden = hidden  # Widths of the ReLU layers.
  cfg.split = (1, 2)  # low after layer l, high after layer h.
  cfg.dropout = dropout
  cfg.unknown_rate = unknown_rate  # Chance to hide an id, in training.
  return cfg


def vit(*, depth, split, **settings):
  """A ViT-B/32 as google-research/vision_transformer has it, or as said."""
  cfg = ml_collections.ConfigDict()
  cfg.name = 'vit'
  cfg.width = 768
  cfg.depth = depth  # Blocks.
  cfg.heads = 12
  cfg.mlp_width = 3072
  cfg.patch = 32  # Side, in pixels.
  cfg.split = split  # low after block l, high after block h.
  cfg.class_token = 'before'  # none, or joins before or after the positions.
  cfg.position = 'learned'  # Or sincos2d.
  cfg.pooling = 'token'  # mean, token_and_mean or map.
  cfg.pre_logits_width = 0  # 0: the head follows the pooled token.
  cfg.layer_scale = 0.0  # 0: none.
  cfg.gelu = 'tanh'  # Or exact.
  cfg.eps = 1e-6  # Of LayerNorm.
  cfg.dropout = 0.0
  cfg.dtype = 'bfloat16'  # What blocks compute in; float32 on CPUs.
  cfg.remat = True  # Compute blocks again in the backward pass.
  cfg.scan = False  # One compiled block, its parameters stacked.
  cfg.update(settings)
  return cfg


def published(checkpoint, model):
  """A teacher whose weights somebody has published."""
  cfg = ml_collections.ConfigDict()
  cfg.checkpoint = checkpoint  # A .npz, or a folder in Hugging Face's form.
  cfg.model = model  # What the weights must be, and where it is split.
  # probe: a linear head, fitted to the frozen teacher's features; stored: its
  # own; none: zeros, for methods that do not look at its outputs.
  cfg.head = 'probe'
  cfg.cache = False  # Compute its states on x only once.
  # Where its head, its scores and, if cached, its states are kept for other
  # runs; '': the run's own folder, and there its head alone.
  cfg.cache_dir = ''
  return cfg


def images(dataset, splits, *, classes, size, memory):
  """An image classification dataset, and what is done to its images."""
  cfg = ml_collections.ConfigDict()
  cfg.dataset = dataset  # Of TFDS.
  cfg.dir = ''  # '': where TFDS keeps its data; may be gs://.
  cfg.train, cfg.validation, cfg.test = splits  # Of TFDS.
  cfg.classes = classes  # Of the dataset.
  cfg.limit = 0  # Training images, the classes balanced; 0: all.
  cfg.memory = memory  # device: all stay there; stream: the host brings them.
  cfg.size = size  # Pixels of a side, after crop and resize.
  cfg.augment = 'inception'  # Random crop and flip; or none.
  cfg.area = (0.05, 1.0)  # Share of the image that a crop has.
  cfg.smaller_side = 0  # Of streams, to evaluate the middle of; 0: stretch.
  cfg.skip_corrupt = False  # Of streams: leave out images that are damaged.
  cfg.fixed_crops = (
    0  # So many fixed crops of an image; 0: a new one each time.
  )
  cfg.mean = (127.5, 127.5, 127.5)  # Grey levels: (x - mean) / std.
  cfg.std = (127.5, 127.5, 127.5)
  return cfg


def learner(
  model,
  *,
  steps,
  batch_size,
  optimizer_name,
  learning_rate,
  weight_decay,
  clip,
):
  """A network that learns, and its recipe: the student, or the teacher."""
  cfg = ml_collections.ConfigDict()
  cfg.steps = steps  # Updates.
  cfg.batch_size = batch_size  # Global. The devices must divide it.
  cfg.steps_per_dispatch = 50  # Steps that the devices run at one command.
  cfg.log_every = 50  # Steps between rows of metrics.jsonl.
  cfg.eval_every = 100  # Steps between validations and checkpoints.

  cfg.model = model

  cfg.optim = optimizer()
  cfg.optim.name = optimizer_name
  cfg.optim.learning_rate = learning_rate
  cfg.optim.weight_decay = weight_decay
  cfg.optim.clip = clip
  return cfg


def optimizer():
  """An optimizer; also completes the stored configs of older runs."""
  cfg = ml_collections.ConfigDict()
  cfg.name = 'adamw'  # adamw or sgd.
  cfg.learning_rate = 1e-3  # The peak.
  cfg.warmup = 100  # Steps of linear warm-up.
  cfg.decay = 'cosine'  # cosine or constant, after the warm-up.
  cfg.weight_decay = 0.0  # On matrices and embedding tables only.
  cfg.momentum = 0.9  # For sgd.
  cfg.clip = 0.0  # Largest global norm of the gradient; 0 does not clip.
  # Skip a step whose loss exceeds its running mean by this factor; 0 skips none.
  cfg.skip_loss_above = 0.0
  return cfg


def distill(**weights):
  """How the methods teach; `weights` are those that are not 1."""
  cfg = ml_collections.ConfigDict()
  cfg.weights = ml_collections.ConfigDict()
  # Each a number or knots, such as ((0, 1.0), (500, 0.0)).
  cfg.weights.logit = anything(1.0)  # LD, Hybrid, TD + LD.
  cfg.weights.dkd = anything(1.0)  # DKD.
  cfg.weights.feature = anything(1.0)  # FD, Hybrid.
  cfg.weights.hint = anything(1.0)  # FitNet.
  cfg.weights.interact = anything(1.0)  # TD: L_interact.
  cfg.weights.message = anything(1.0)  # TD: L_MC.
  cfg.weights.state = anything(1.0)  # TD: L_SC.
  cfg.weights.update(weights)
  cfg.hidden = 256  # ReLU layer of encoders and decoders.
  cfg.message = 128  # Width of a message.
  cfg.dropout = 0.0  # Inside encoders and decoders.
  cfg.distance = 'l2'  # Of states and messages: l2, cosine, pearson, kl.
  cfg.logit_distance = 'l2'  # Of outputs.
  cfg.temperature = 1.0  # For kl and DKD.
  cfg.dkd_alpha = 1.0  # DKD: weight of the target class.
  cfg.dkd_beta = 8.0  # DKD: weight of the other classes.
  cfg.interact_target = 'chained'  # Algorithm 1; or original, section 3.3.
  cfg.student_encodes = 'low_and_high'  # Or low.
  cfg.noise = 0.0  # On what the teacher interprets, in RMS; paper's is 0.1.
  cfg.feature_target = 'both'  # FD: who learns; or teacher, which is fixed.
  cfg.hint_direction = 'paper'  # FitNet: teacher into student; or original.
  cfg.remat = False  # Recompute an iteration in the backward pass.
  cfg.unroll = True  # Compile the iterations side by side.
  return cfg


def run():
  """What every config has besides its task and its networks."""
  cfg = ml_collections.ConfigDict()
  cfg.seed = 0  # The first of them.
  cfg.seeds = 1  # Students trained side by side in one program.
  cfg.k = 1  # Iterations of the conversation; 0 is no interaction.
  cfg.stages = (0, 0)  # Steps of student alone, then communication alone.
  cfg.student_init = 'random'  # Of a ViT: first_n, uniform too.
  cfg.distill = distill()
  cfg.parallel = parallel()
  cfg.refit_on_validation = (
    False  # Train on train + validation, for the test score.
  )
  cfg.score_before_refit = (
    True  # Before a refit: train without it, to score validation.
  )
  cfg.test = True  # Score the test split; False while settings are chosen.
  cfg.eval_batch = 2048  # Examples a device; no score depends on it.
  cfg.checkpoint = ''  # --mode=eval: the run to evaluate; '': the workdir.
  cfg.allow_changed_config = False  # Resume although the config differs.
  return cfg


def parallel():
  """Devices."""
  cfg = ml_collections.ConfigDict()
  cfg.kind = 'auto'  # single, pmap (auto, where there are several) or mesh.
  cfg.devices = 0  # 0 takes all.
  cfg.fsdp = 1  # Of mesh: the pieces that state and teacher are cut into.
  return cfg
