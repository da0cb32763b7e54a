"""Numbers as a person reads them."""

_PREFIXES = ((15, 'P'), (12, 'T'), (9, 'G'), (6, 'M'), (3, 'k'))


def si(value: float | int) -> str:
  """Three digits and an SI prefix; a unit can follow: '25.2 M' + 'B'."""
  for power, letter in _PREFIXES:
    if value >= 10**power:
      return f'{value / 10**power:.3g} {letter}'
  return f'{value:.3g} '


def percent(share: float) -> str:
  """0.123 -> '12.3%'."""
  return f'{100 * share:.3g}%'


def milliseconds(seconds: float) -> str:
  """0.0123 -> '12.3 ms'."""
  return f'{seconds * 1e3:.3g} ms'
