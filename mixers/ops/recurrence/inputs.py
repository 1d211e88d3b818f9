"""What the recurrence reads: checked once for all backends."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """The sequences of one call, as given to `linear_recurrence`; decay_floor: a number that no log_decay is below."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    log_decay: Tensor | None
    beta: Tensor | None
    erase: tuple[Tensor, Tensor | None] | None
    bonus: Tensor | None
    decay_floor: float | None = None

    @property
    def heads(self) -> int:
        return self.values.shape[2]

    @property
    def tensors(self) -> list[Tensor]:
        return [x for x in (*self[:5], *(self.erase or ()), self.bonus) if isinstance(x, Tensor)]

    @property
    def precision(self) -> torch.dtype:
        """The dtype of the memory."""
        return torch.promote_types(self.values.dtype, torch.float32)

    def variant(self, normaliser: bool = False) -> str:
        """The optional things given, as `Call.variant` has them: sorted, joined by `+`; `bounded`: there is a floor
        for decays; `grouped`: several queries per memory."""
        per_channel = self.log_decay is not None and self.log_decay.ndim == 4
        given = {
            "beta": self.beta is not None,
            "bonus": self.bonus is not None,
            "bounded": self.decay_floor is not None,
            "channel_decay": per_channel,
            "decay": self.log_decay is not None and not per_channel,
            "erase": self.erase is not None,
            "grouped": self.queries.shape[2] > self.heads,
            "normaliser": normaliser,
        }
        return "+".join(name for name, is_given in given.items() if is_given)

    def tokens(self, start: int, stop: int) -> Inputs:
        """The tokens `start:stop`, views."""

        def part(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[:, start:stop]

        erase = self.erase and (self.erase[0][:, start:stop], part(self.erase[1]))
        queries, keys, values = (x[:, start:stop] for x in self[:3])
        return Inputs(queries, keys, values, part(self.log_decay), part(self.beta), erase, self.bonus)

    def per_memory(self) -> Inputs:
        """In the memory's precision, keys repeated to `[batch, time, heads, d_k]`, queries grouped by the memory they
        read: `[batch, time, heads, group, d_k]`."""
        heads, precision = self.heads, self.precision

        def cast(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(precision)

        queries = repeat_heads(self.queries.to(precision), heads)
        erase = self.erase and (self.erase[0].to(precision), cast(self.erase[1]))
        return Inputs(
            queries.unflatten(2, (heads, -1)),
            repeat_heads(self.keys.to(precision), heads),
            self.values.to(precision),
            cast(self.log_decay),
            cast(self.beta),
            erase,
            cast(self.bonus),
        )


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """`x [batch, time, fewer heads, d]`, each head repeated for the consecutive heads that share it."""
    return x if x.shape[2] >= heads else x.repeat_interleave(heads // x.shape[2], dim=2)


def check(inputs: Inputs, normaliser: bool, chunk_size: int, state: Tensor | None) -> None:
    """Raises `ValueError`, naming what was given and what was expected, if sizes or options do not fit together."""
    _check_sequences(inputs)
    _check_options(inputs, normaliser)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    columns = inputs.values.shape[3] + normaliser
    expected = [inputs.values.shape[0], inputs.heads, inputs.keys.shape[3], columns]
    if state is not None and list(state.shape) != expected:
        names = f"[batch, heads, d_k, d_v{' + 1' * normaliser}]"
        raise ValueError(f"state must be {names} = {expected} with normaliser={normaliser}, got {list(state.shape)}")


def _check_sequences(inputs: Inputs) -> None:
    queries, keys, values = inputs.queries, inputs.keys, inputs.values
    if values.ndim != 4 or 0 in values.shape:
        raise ValueError(f"values must be [batch, time, heads, d_v], none of them 0, got {list(values.shape)}")
    batch, time, heads = values.shape[:3]
    if keys.ndim != 4 or keys.shape[:2] != (batch, time) or 0 in keys.shape or heads % keys.shape[2]:
        wanted = f"[{batch}, {time}, k_heads, d_k] with k_heads a divisor of heads = {heads}"
        raise ValueError(f"keys must be {wanted}, got {list(keys.shape)}")
    d_k = keys.shape[3]
    fits = (
        queries.ndim == 4 and queries.shape[:2] == (batch, time) and queries.shape[3] == d_k and 0 not in queries.shape
    )
    if not fits or (heads % queries.shape[2] and queries.shape[2] % heads):
        wanted = f"[{batch}, {time}, q_heads, {d_k}] with q_heads a divisor or a multiple of heads = {heads}"
        raise ValueError(f"queries must be {wanted}, got {list(queries.shape)}")
    per_head, per_channel = [batch, time, heads], [batch, time, heads, d_k]
    expected: list[tuple[str, Tensor | None, list[list[int]]]] = [
        ("log_decay", inputs.log_decay, [per_head, per_channel]),
        ("beta", inputs.beta, [per_head]),
        ("erase's a", inputs.erase and inputs.erase[0], [per_channel]),
        ("erase's b", inputs.erase and inputs.erase[1], [per_channel]),
        ("bonus", inputs.bonus, [[heads, d_k]]),
    ]
    for name, tensor, shapes in expected:
        if tensor is not None and list(tensor.shape) not in shapes:
            raise ValueError(f"{name} must be {' or '.join(map(str, shapes))}, got {list(tensor.shape)}")


def _check_options(inputs: Inputs, normaliser: bool) -> None:
    if inputs.beta is not None and inputs.erase is not None:
        raise ValueError("beta and erase were both given: beta is the delta rule, erase any other change of rank one")
    plain = inputs.beta is None and inputs.erase is None
    for name, given in (("bonus", inputs.bonus is not None), ("normaliser", normaliser)):
        if given and not plain:
            raise ValueError(
                f"{name} goes with plain writes only, and {'beta' if inputs.erase is None else 'erase'} was given"
            )
