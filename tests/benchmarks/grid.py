"""A suite of two layouts and two measures that tests change in places."""

GOOD = """\
name: mine
model:
  d_model: 32
  mixer_defaults:
    linear_attention: {heads: 2}
layouts:
  soft: softmax_attention
  lin: linear_attention*2
seeds: [0, 1]
measures:
  - measure: speed
    modes: [forward, train]
    lengths: [64, 128]
    layouts: [lin]
    seeds: [3]
  - measure: recall
    task: {task: needle, n_needles: 2, n_keys: 8, n_values: 8}
    training: {steps: 5, learning_rate: 4e-3, length: 64}
    lengths: [64]
"""
