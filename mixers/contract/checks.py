"""The checks of the contract, one function each, in the order of their numbers. Check 7 is in `state`."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import re
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from ..interface import Mixer
from ..state import MixerState, held_tensors
from .state import state_is_a_value
from .trial import SkipCheck, Trial, contents, gradients, in_calls


def follows_input(t: Trial) -> None:
    for dtype in (torch.float32, torch.float64) if t.exact else (t.dtype,):
        mixer = t.build(dtype)
        for batch, time in ((1, 1), (2, 1), (3, t.time)):
            check_output(t, mixer, t.input(batch, time, dtype))
        check_refusals(t, mixer, dtype)


def check_output(t: Trial, mixer: Mixer, x: Tensor) -> None:
    y, state = mixer(x)
    t.require(state is None, "a state is returned although return_state is False")
    t.require(
        (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device),
        f"x is {x.dtype} {list(x.shape)} on {x.device}, but y is {y.dtype} {list(y.shape)} on {y.device}",
    )
    _, state = mixer(x, None, True)
    if not isinstance(state, MixerState):
        t.require(False, f"return_state=True returns {type(state).__name__}, not a MixerState")
        return
    found, expected = (state.batch, state.position), tuple(x.shape[:2])
    t.require(found == expected, f"after {expected} tokens the state says (batch, position) = {found}")
    t.require(all(tensor.device == x.device for tensor in held_tensors(state)), f"the state is not on {x.device}")


def check_refusals(t: Trial, mixer: Mixer, dtype: torch.dtype) -> None:
    x, d_model = t.input(3, 7, dtype), t.d_model
    state: Any = mixer(x, None, True)[1]
    wide = torch.cat([x, x[:, :, :1]], dim=2)
    refuses(t, f"x of width {d_model + 1}", lambda: mixer(wide), d_model + 1, d_model)
    refuses(t, "x of 2 dimensions", lambda: mixer(x[0]), 7, d_model)
    refuses(t, "x without tokens", lambda: mixer(x[:, :0]), 0)
    refuses(t, "a state of 3 sequences for 5", lambda: mixer(t.input(5, 7, dtype), state), 3, 5)
    other = replace(state, signature="another_mixer(d_model=1)")
    refuses(t, "the state of another mixer", lambda: mixer(x, other), other.signature, mixer.signature)
    refuses(t, "to restart from the state of another mixer", lambda: mixer.restart(other), other.signature)
    refuses(t, "a state that is a tensor", lambda: mixer(x, x), "Tensor")
    if t.device.type != "cpu" and state.device is not None:
        refuses(t, "a state on the CPU", lambda: mixer(x, state.to("cpu")), "cpu", t.device.type)


def refuses(t: Trial, what: str, call: Callable[[], Any], *named: object) -> None:
    """Require a `ValueError` whose message names everything in `named`."""
    try:
        call()
    except ValueError as error:
        missing = [str(n) for n in named if not re.search(rf"(?<!\w){re.escape(str(n))}(?!\d)", str(error))]
        t.require(not missing, f"{what}: the error does not name {' and '.join(missing)}: {error}")
    except Exception as error:
        t.require(False, f"{what}: raises {type(error).__name__} instead of ValueError: {error}")
    else:
        t.require(False, f"{what}: no error is raised")


def is_causal(t: Trial) -> None:
    mixer = t.build()
    x, weight = t.input(2, t.time), t.input(2, t.time)
    with torch.no_grad():
        y, _ = mixer(x)
    times = sorted({1, t.edge - 1, t.edge, t.edge + 1, 2 * t.edge, t.time // 2, t.time - 1})
    for time in times:
        with torch.no_grad():
            changed, _ = mixer(torch.cat([x[:, :time], t.input(2, t.time - time)], dim=1))
        t.same(f"outputs before {time} when inputs from {time} on change", changed[:, :time], y[:, :time])
    leaf = x.clone().requires_grad_()
    y, _ = mixer(leaf)
    for time in times:
        (gradient,) = torch.autograd.grad((y[:, time] * weight[:, time]).sum(), leaf, retain_graph=True)
        leak = gradient[:, time + 1 :].norm() / gradient.norm().clamp(min=1e-12)
        t.at_most(f"gradient of output {time} with respect to later inputs", leak.item(), t.tolerance())


def is_split_invariant(t: Trial) -> None:
    mixer = t.build()
    x = t.input(2, t.time + t.edge + 1)
    with torch.no_grad():
        whole, _ = mixer(x)
        t.same("return_state=True", mixer(x, None, True)[0], whole)
        for name, lengths in t.cuts().items():
            t.same(name, in_calls(mixer, x, [*lengths, t.edge + 1])[0], whole)
    lengths = t.cuts()["prime lengths"]
    t.same("prime lengths, recording gradients", in_calls(mixer, x, [*lengths, t.edge + 1])[0], whole)


@torch.no_grad()
def is_batch_independent(t: Trial) -> None:
    mixer = t.build()
    x = t.input(4, t.time)
    y, _ = mixer(x)
    for row in (0, 3):
        t.same(f"row {row} alone", mixer(x[row : row + 1])[0], y[row : row + 1])
    order = [2, 0, 3, 1]
    t.same("rows in another order", mixer(x[order])[0], y[order])
    t.same("row 0 beside other rows", mixer(torch.cat([x[:1], 3 * t.input(2, t.time)]))[0][:1], y[:1])
    if mixer.keeps_memory:
        t.notes.append("it keeps memory on purpose: the order of calls may matter")
        return
    mixer(t.input(2, 5), None, True)
    t.same("after other calls", mixer(x)[0], y)


def is_pure(t: Trial) -> None:
    for training in (True, False):
        mixer = t.build().train(training)
        mode = "train" if training else "eval"
        before = {n: v.detach().clone() for n, v in (*mixer.named_parameters(), *mixer.named_buffers())}
        x = t.input(2, t.time)
        given = x.clone()
        with torch.no_grad():
            _, state = mixer(x, None, True)
            assert state is not None
            held = contents(state)
            mixer(x[:, :5], state, True)
            in_calls(mixer, x[:, : t.edge + 1], [1] * (t.edge + 1), state)
        t.require(all(map(torch.equal, held, contents(state))), f"{mode}: a call changes the state it is given")
        gradients(mixer, mixer.named_parameters(), x, torch.ones_like(x))
        t.require(torch.equal(x, given), f"{mode}: a call changes its input")
        after = {**dict(mixer.named_parameters()), **dict(mixer.named_buffers())}
        changed = [n for n in {**before, **after} if n not in before or not torch.equal(before[n], after[n])]
        if mixer.keeps_memory:
            t.notes.append(f"{mode}: it keeps memory on purpose; changed: {', '.join(changed) or 'nothing'}")
        else:
            t.require(not changed, f"{mode}: forward changes {', '.join(changed)}")


def has_gradients(t: Trial) -> None:
    mixer = t.build()
    x = t.input(2, t.time)
    _, found = gradients(mixer, mixer.named_parameters(), x, t.input(2, t.time))
    for name, gradient in found.items():
        t.require(bool(gradient.any()), f"the gradient of {name} is zero")
        t.require(bool(gradient.isfinite().all()), f"the gradient of {name} is not finite")
    if not t.exact:
        t.notes.append(f"no gradcheck in {t.dtype}")
        return
    # A selection such as top-k jumps at ties, where finite differences mean nothing; a wrong gradient fails everywhere.
    errors = []
    for attempt in range(3):
        try:
            check_gradients(t, t.build(seed=t.seed + attempt))
            t.notes.append(f"gradcheck in float64 passed at attempt {attempt + 1}")
            return
        except GradcheckError as error:
            errors.append(" ".join(str(error).split())[:300])
    t.require(False, f"gradcheck fails with three seeds: {errors[-1]}")


def check_gradients(t: Trial, mixer: Mixer) -> None:
    """Finite differences of `x` and of all trainable parameters, along random directions, across a chunk's edge."""
    parameters = {n: p for n, p in mixer.named_parameters() if p.requires_grad}

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(parameters, values)), (x,))[0]

    x = t.input(1, t.edge + 5).requires_grad_()
    leaves = [p.detach().clone().requires_grad_() for p in parameters.values()]
    gradcheck(function, (x, *leaves), fast_mode=True, nondet_tol=1e-9, check_undefined_grad=False, raise_exception=True)


def is_repeatable(t: Trial) -> None:
    dtype = torch.float32 if t.exact else t.dtype
    # Kernels of an accelerator may add in any order.
    tolerance = 0.0 if t.device.type == "cpu" else t.tolerance(dtype)
    mixer, again = (t.build(dtype, nudged=False) for _ in range(2))
    for (name, a), b in zip(mixer.state_dict().items(), again.state_dict().values()):
        t.require(torch.equal(a, b), f"{name} differs between two mixers built with the same seed")
    x = t.input(2, t.time, dtype)
    with torch.no_grad():
        y, _ = mixer(x)
        t.same("the same call again", mixer(x)[0], y, tolerance)
        t.same("built again with the same seed", again(x)[0], y, tolerance)
        t.same("deepcopy", copy.deepcopy(mixer)(x)[0], y, tolerance)
        loaded = t.build(dtype, nudged=False, seed=t.seed + 1)
        loaded.load_state_dict(mixer.state_dict())
        t.same("state_dict loaded into a mixer of another seed", loaded(x)[0], y, tolerance)


def is_low_precision_safe(t: Trial) -> None:
    if t.dtype == torch.float32:
        raise SkipCheck("compared with it in the pass of bfloat16")
    mixer = t.build(torch.float32, nudged=False)
    x = t.input(2, t.time, torch.float32)
    with torch.no_grad():
        expected, _ = mixer(x)
    for dtype in (torch.bfloat16, torch.float16):
        if not can_multiply(t.device, dtype):
            t.notes.append(f"{t.device} has no {dtype} matrix product")
            continue
        with torch.autocast(t.device.type, dtype):
            y, found = gradients(mixer, mixer.named_parameters(), x, torch.ones_like(x))
        t.same(f"{dtype} autocast", y, expected, t.card.low_precision_tolerance)
        bad = [n for n, g in found.items() if not g.isfinite().all()]
        t.require(not bad, f"{dtype} autocast: not finite are the gradients of {', '.join(bad)}")
    low = t.build(torch.bfloat16, nudged=False)
    with torch.no_grad():
        y, _ = in_calls(low, x.to(torch.bfloat16), [t.edge + 1, t.time - t.edge - 1])
    t.require(y.dtype == torch.bfloat16, f"a bfloat16 mixer returns {y.dtype}")
    t.require(bool(y.isfinite().all()), "a bfloat16 mixer returns values that are not finite")


def can_multiply(device: torch.device, dtype: torch.dtype) -> bool:
    try:
        ones = torch.ones(2, 2, device=device, dtype=dtype)
        return bool((ones @ ones).isfinite().all())
    except RuntimeError:
        return False


def backends_agree(t: Trial) -> None:
    """Every backend against the reference; in float32, on an accelerator, against that in float64 on the CPU."""
    single = t.dtype == torch.float32
    others = [b for b in t.card.backends if b != "reference"]
    if len(t.card.backends) < 2 and not single:
        raise SkipCheck(f"one backend only ({', '.join(t.card.backends)})")
    if len(t.card.backends) > 1 and "reference" not in t.card.backends:
        t.require(False, f"the card lists {', '.join(t.card.backends)} but no reference")
        return
    reference = t.build(backend="reference" if "reference" in t.card.backends else "auto")
    x, weight = t.input(2, t.time), t.input(2, t.time)
    exact: dict[str, Any] = {"device": "cpu", "dtype": torch.float64} if single else {}
    reference.to(**exact)
    expected, expected_gradients = gradients(reference, reference.named_parameters(), x.to(**exact), weight.to(**exact))
    compared = 0
    for backend in [*others, "auto"] if single else others:
        if backend in unproven(t):
            t.notes.append(f"{backend} is left to `mixerzoo doctor`, in a process of its own")
            continue
        mixer = t.build(backend=backend)
        mixer.load_state_dict(reference.state_dict())
        try:
            y, found = gradients(mixer, mixer.named_parameters(), x, weight)
        except RuntimeError as error:
            if "cannot run" not in str(error):
                raise
            t.notes.append(f"{backend} not compared: {error}")
            continue
        compared += 1
        t.same(f"{backend}: output", y, expected)
        if not t.exact:
            t.same_gradients(f"{backend}: gradients", found, expected_gradients)
            continue
        for name, gradient in expected_gradients.items():
            t.same(f"{backend}: gradient of {name}", found[name], gradient)
    if not compared:
        raise SkipCheck("; ".join(t.notes))


def unproven(t: Trial) -> set[str]:
    """Backends that may end the process on an accelerator: kernels of others, until `auto` takes them."""
    if t.device.type == "cpu":
        return set()
    return {name for op in t.card.ops for name, b in op.backends.items() if b.trust == "proven"}


def compiles(t: Trial) -> None:
    """One graph for a call, unless the card says why not; compiled, it gives the same as without."""
    lack = compiler_lacks(t.device) if t.compile_backend == "inductor" else None
    if lack:
        raise SkipCheck(f"inductor needs {lack}; compile_backend='aot_eager' does not")
    if t.dtype == torch.bfloat16 or (t.exact and t.repeated):
        raise SkipCheck("compiled in float32 on the accelerator")
    mixer = t.build(torch.float32)
    # The compiler unrolls chunks: no longer than it takes to cross an edge.
    x, weight = (t.input(2, t.edge + 2, torch.float32) for _ in range(2))
    with torch.no_grad():
        _, state = mixer(t.input(2, 3, torch.float32), None, True)
        expected_next, _ = mixer(x, state)
    expected = gradients(mixer, mixer.named_parameters(), x, weight)

    def compiled(whole: bool) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        torch._dynamo.reset()
        try:
            call = torch.compile(mixer, backend=t.compile_backend, fullgraph=whole)
            y, found = gradients(call, mixer.named_parameters(), x, weight)
            with torch.no_grad():
                return y, found, call(x, state)[0]
        finally:
            torch._dynamo.reset()

    broken: str | None = None
    try:
        y, found, y_next = compiled(whole=True)
    except (
        torch._dynamo.exc.TorchDynamoException,
        torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode,
    ) as error:
        broken = " ".join(str(error).split())[:300]
        with _unsaid("torch._dynamo"):  # what it would warn of is what `broken` says
            y, found, y_next = compiled(whole=False)
    note = t.card.compile_note
    t.require(
        note is not None or broken is None, f"it makes more than one graph, and the card says no reason: {broken}"
    )
    t.require(note is None or broken is not None, f"it makes one graph, although the card says: {note}")
    tolerance = t.tolerance(torch.float32)
    t.same("output", y, expected[0], tolerance)
    t.same("output continued from a state", y_next, expected_next, tolerance)
    t.same_gradients("gradients", found, expected[1], tolerance)
    t.notes += [f"more than one graph: {note}"] * (note is not None)


@contextlib.contextmanager
def _unsaid(name: str) -> Iterator[None]:
    """Without the warnings of the logger `name`."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def compiler_lacks(device: torch.device) -> str | None:
    """What inductor needs and this machine does not have."""
    if device.type != "cpu":
        return None
    if not any(shutil.which(c) for c in (os.environ.get("CXX"), "g++", "clang++", "c++", "cl") if c):
        return "a C++ compiler"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Python's C headers"
    return None


def packs_documents(t: Trial) -> None:
    mixer = t.build()
    lengths = [t.edge + 1, 1, 2 * t.edge - 1, 2, t.edge, 5]  # about the edges, and several in one group of batched ones
    x, weight = (t.input(1, sum(lengths)) for _ in range(2))
    documents = torch.tensor([0, *lengths], device=x.device).cumsum(0)
    refuses(t, "documents that end too early", lambda: mixer(x, documents=documents[:-1]), sum(lengths))
    refuses(t, "documents in two rows", lambda: mixer(torch.cat([x, x]), documents=documents), 2)
    refuses(t, "documents and a state", lambda: mixer(x, None, True, documents=documents), "state")
    if mixer.keeps_memory:
        t.notes.append("it keeps memory on purpose: what a document gives depends on those before")
        return

    def separately(x: Tensor) -> tuple[Tensor, None]:
        return torch.cat([mixer(document)[0] for document in x.split(lengths, dim=1)], dim=1), None

    def packed(x: Tensor) -> tuple[Tensor, None]:
        return mixer(x, documents=documents)

    expected, expected_gradients = gradients(separately, mixer.named_parameters(), x, weight)
    y, found = gradients(packed, mixer.named_parameters(), x, weight)
    t.same("packed documents", y, expected)
    t.same_gradients("gradients", found, expected_gradients)


CHECKS: dict[int, tuple[str, Callable[[Trial], None]]] = {
    1: ("shape, dtype and device follow the input", follows_input),
    2: ("causal", is_causal),
    3: ("split-invariant", is_split_invariant),
    4: ("batch-independent", is_batch_independent),
    5: ("pure", is_pure),
    6: ("gradients", has_gradients),
    7: ("state", state_is_a_value),
    8: ("repeatable", is_repeatable),
    9: ("low precision", is_low_precision_safe),
    10: ("backends agree", backends_agree),
    11: ("torch.compile", compiles),
    12: ("packed documents", packs_documents),
}
