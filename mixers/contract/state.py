"""Check 7 of the contract: a state costs what it says, grows as its card says, is a value, and restarts as one."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..interface import Mixer
from ..state import MixerState
from .trial import Trial, in_calls, relative_error


@torch.no_grad()
def state_is_a_value(t: Trial) -> None:
    mixer = t.build()
    x = t.input(2, t.time)
    _, whole = mixer(x, None, True)
    held = reachable_nbytes(whole, mixer)
    t.require(whole.nbytes == held, f"nbytes is {whole.nbytes} but {held} bytes are reachable from the state")
    check_growth(t, mixer, x)
    check_operations(t, mixer)
    check_branches(t, mixer)
    check_restart(t, mixer)


def reachable_nbytes(value: Any, mixer: nn.Module) -> int:
    """Bytes of all tensors reachable from `value`, wherever they hide; those of the mixer itself are not its own."""
    own = {_storage(tensor) for tensor in (*mixer.parameters(), *mixer.buffers())}
    sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in _reachable(value, set())}
    return sum(size for storage, size in sizes.items() if storage not in own)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _reachable(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(value, (type, nn.Module, str, bytes)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    if isinstance(value, dict):
        children = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        children = list(value)
    else:
        slots = [s for cls in type(value).__mro__ for s in vars(cls).get("__slots__", ())]
        children = [getattr(value, s, None) for s in slots]
    for child in [*children, *getattr(value, "__dict__", {}).values()]:
        yield from _reachable(child, seen)


def check_growth(t: Trial, mixer: Mixer, x: Tensor) -> None:
    """The growth law of the card, over prefills of several lengths and along token-by-token decoding."""
    prefilled, decoded = {}, {}
    # A bounded state may hold an unfinished chunk as well, so it is looked at where chunks end.
    step = t.edge if t.card.state_growth == "bounded" else max(1, t.time // 5)
    for time in range(step, t.time + 1, step):
        prefilled[time] = mixer(x[:, :time], None, True)[1].nbytes
    state = None
    for time in range(1, t.time + 1):
        state = mixer(x[:, time - 1 : time], state, True)[1]
        decoded[time] = state.nbytes
    if t.card.state_growth == "constant":
        sizes = {*prefilled.values(), *decoded.values()}
        t.require(
            len(sizes) == 1, f"the card says constant, but the state holds from {min(sizes)} to {max(sizes)} bytes"
        )
    elif t.card.state_growth == "linear":
        check_linear(t, prefilled, decoded)
    elif t.card.state_growth == "logarithmic":
        check_logarithmic(t, mixer, decoded)
    else:
        check_bounded(t, mixer, prefilled, decoded)


def check_linear(t: Trial, prefilled: dict[int, int], decoded: dict[int, int]) -> None:
    times, sizes = list(prefilled), list(prefilled.values())
    per_step = {b - a for a, b in itertools.pairwise(sizes)}
    t.require(
        len(per_step) == 1 and min(per_step) > 0,
        f"the card says linear, but over prefills of {times} tokens the state holds {sizes} bytes",
    )
    per_token = (sizes[1] - sizes[0]) / (times[1] - times[0])
    constant = sizes[0] - per_token * times[0]
    worst = max(decoded[time] / max(constant + per_token * time, 1) for time in decoded if time >= 32)
    t.at_most("bytes after decoding, as a multiple of those after prefill", worst, 2.0)


def check_logarithmic(t: Trial, mixer: Mixer, decoded: dict[int, int]) -> None:
    """Each doubling of the position may add as many bytes as the largest one before it did, and no more."""
    largest = [max(decoded[t] for t in decoded if t < 2**n) for n in range(1, max(decoded).bit_length() + 1)]
    steps = [b - a for a, b in itertools.pairwise(largest)]
    first, later = max(steps[: len(steps) // 2]), max(steps[len(steps) // 2 :])
    t.require(first > 0, f"the card says logarithmic, but over doubling positions the state holds {largest} bytes")
    t.at_most(
        "bytes that a later doubling adds, as a multiple of what an earlier one added", later / max(first, 1), 1.0
    )


def check_bounded(t: Trial, mixer: Mixer, prefilled: dict[int, int], decoded: dict[int, int]) -> None:
    sizes = list(prefilled.values())
    t.require(
        sizes == sorted(sizes),
        f"the card says bounded, but over prefills of {list(prefilled)} tokens the state holds {sizes} bytes",
    )
    bound = mixer.max_state_nbytes(2, t.dtype)
    t.require(bound is not None, "the card says bounded, but max_state_nbytes returns None")
    if bound is not None:
        t.at_most("bytes after prefill", max(sizes), bound)
        t.at_most("bytes after decoding", max(decoded.values()), bound)


def check_operations(t: Trial, mixer: Mixer) -> None:
    """Whatever one does to a state, it continues as if nothing had been done."""
    half = t.time // 2
    x = t.input(3, t.time)
    first, rest = x[:, :half], x[:, half:]
    state = mixer(first, None, True)[1]
    expected = mixer(rest, state)[0]
    t.same("continued twice", mixer(rest, state)[0], expected)
    t.same("clone", mixer(rest, state.clone())[0], expected)
    t.same("detach", mixer(rest, state.detach())[0], expected)
    t.same("to", mixer(rest, state.to("cpu").to(t.device))[0], expected)
    t.same("save and load", mixer(rest, saved_and_loaded(state, t.device))[0], expected)
    for rows in ([1], [2, 0], [0, 2, 2, 1]):
        picked = state.select(rows)
        t.require(picked.batch == len(rows), f"select({rows}) holds {picked.batch} sequences")
        t.same(f"select({rows})", mixer(rest[rows], picked)[0], expected[rows])
    kept = state.clone()
    mixer(rest, kept, True)
    t.same("after its clone was continued", mixer(rest, state)[0], expected)


def saved_and_loaded(state: MixerState, device: torch.device) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        state.save(path)
        return MixerState.load(path, device)


def check_branches(t: Trial, mixer: Mixer) -> None:
    """Two continuations of one state, decoded in turn, do not see one another."""
    half = t.time // 2
    first, left, right = t.input(2, half), t.input(2, t.edge + 2), t.input(2, t.edge + 2)
    state = mixer(first[:, half - 2 :], mixer(first[:, : half - 2], None, True)[1], True)[1]
    expected = [in_calls(mixer, x, [1] * x.shape[1], state.clone())[0] for x in (left, right)]
    branches = [state, state]
    found: list[list[Tensor]] = [[], []]
    for time in range(left.shape[1]):
        for i, x in enumerate((left, right)):
            y, branches[i] = mixer(x[:, time : time + 1], branches[i], True)
            found[i].append(y)
    worst = max(relative_error(torch.cat(ys, dim=1), e) for ys, e in zip(found, expected))
    t.at_most("two continuations of one state, in turn", worst, t.tolerance())


def check_restart(t: Trial, mixer: Mixer) -> None:
    """What a text is read again with: nothing, or a state of the same sequences at position 0."""
    half = t.time // 2
    x = t.input(3, t.time)
    state = mixer(x[:, :half], None, True)[1]
    expected = mixer(x[:, half:], state)[0]
    again = mixer.restart(state)
    t.same("after a restart from it", mixer(x[:, half:], state)[0], expected)
    if again is None:
        return
    found = again.batch, again.position
    t.require(found == (3, 0), f"restarted with 3 sequences, the state says (batch, position) = {found}")
    second = mixer(x, again)[0]
    t.same("restarted, continued twice", mixer(x, again)[0], second)
    t.same("restarted, select([2, 0])", mixer(x[[2, 0]], again.select([2, 0]))[0], second[[2, 0]])
    alone = mixer.restart(mixer(x[1:2, :half], None, True)[1])
    t.same("restarted alone", mixer(x[1:2], alone)[0], second[1:2])
