"""Random problems for FwPKM, and a backend held against the definition on any of them."""

import torch
from hypothesis import assume
from hypothesis import strategies as st
from mixerzoo.mixers.ops.dispatch import record_backends
from mixerzoo.mixers.ops.fwpkm import finish, fwpkm

CONFIGURATIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "batch": st.integers(1, 3),
        "time": st.integers(1, 30),
        "heads": st.integers(1, 3),
        "d_v": st.integers(2, 9),
        "n_subkeys": st.integers(2, 9),
        "query_scale": st.sampled_from([0.3, 1.0]),
        "gated": st.booleans(),
        "top_k": st.integers(1, 9),
        "chunk_size": st.integers(1, 16),
        "lookahead": st.integers(0, 15),
        "score": st.sampled_from(["idw", "dot"]),
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
        "learning_rate": st.sampled_from([0.3, 1.0]),
        "key_objective": st.sampled_from(["address", "memory", "both", "none"]),
        "boundary": st.sampled_from(["carry", "drop"]),
        "scope": st.sampled_from(["sequence", "batch"]),
        "nonlinearity": st.sampled_from(["softmax", "silu", "relu"]),
        "weight_decay": st.sampled_from([0.0, 0.5]),
        "clip": st.sampled_from([None, 0.02, 0.5]),
        "key_gradient": st.sampled_from(["exact", "first_order"]),
    }
)


def problem(
    seed=0, batch=2, time=50, heads=2, d_k=8, d_v=6, n_subkeys=8, query_scale=1.0, dtype=torch.float64, device="cpu"
):
    """Queries, targets, gates, keys and values."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, std=1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(std).to(device, dtype)

    return (
        draw(batch, time, heads, d_k, std=query_scale),
        draw(batch, time, d_v),
        draw(batch, time).sigmoid(),
        draw(heads, 2, n_subkeys, d_k // 2, std=0.3),
        draw(n_subkeys**2, d_v, std=0.3),
    )


def memories(state, keys, values):
    """Keys `[memories, ...]` and whole tables `[memories, n_slots, d_v]` of a state."""
    count = 1 if state.shared_memory else state.batch
    tables = values.repeat(count, 1).index_put((state.slots,), state.rows).unflatten(0, (count, -1))
    return (keys.expand(count, *keys.shape) if state.keys is None else state.keys), tables


def solve(inputs, **options):
    """Retrieved, weights, final keys and tables, the unfinished chunk included."""
    backend = options.pop("backend", "auto")
    output = fwpkm(*inputs, **options, return_state=True, backend=backend)
    state = finish(output.state, *inputs[3:], **options, backend=backend)
    return (output.retrieved, output.weights, *memories(state, *inputs[3:]))


def check_against_definition(backend, configuration, device="cpu"):
    """Outputs, final memory and all gradients of `backend` against those of `reference`, in float64."""
    options = dict(configuration)
    sizes = {n: options.pop(n) for n in ("seed", "batch", "time", "heads", "d_v", "n_subkeys", "query_scale")}
    gated = options.pop("gated")
    options["top_k"] = min(options["top_k"], sizes["n_subkeys"])
    options["lookahead"] = min(options["lookahead"], options["chunk_size"] - 1)
    if options["nonlinearity"] != "softmax":  # with weights that are not bounded, the memory may diverge
        options["learning_rate"] = 0.02
    inputs = [t.requires_grad_() for t in problem(**sizes, device=device)]
    given = [*inputs[:2], inputs[2] if gated else None, *inputs[3:]]
    results = []
    for one in (backend, "reference"):
        with record_backends() as record:
            parts = solve(given, **options, backend=one)
        assert record == {"fwpkm": {one}}
        generator = torch.Generator().manual_seed(sizes["seed"])
        loss = sum((p * torch.randn(p.shape, generator=generator, dtype=p.dtype).to(device)).sum() for p in parts)
        results.append((*parts, *torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)))
    assume(all(t.numel() == 0 or t.abs().max() < 1e3 for t in results[1]))  # where it diverges all the same
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
