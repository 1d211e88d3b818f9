"""A run under fire: its processes are killed, stopped and doubled at random moments, and nothing may be lost of it.

`python -m mixerzoo.benchmarks.soak` is the command, `make soak` its long form;
docs/reliability.md says what is promised.
"""
