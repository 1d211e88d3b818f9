from dataclasses import dataclass, field

import pytest
import torch
from mixerzoo.mixers import SHARED, GrowableBuffer, MixerState
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, eq=False)
class InnerState(MixerState):
    cache: GrowableBuffer
    table: torch.Tensor = field(metadata=SHARED)


@dataclass(frozen=True, eq=False)
class OuterState(MixerState):
    layers: tuple[InnerState, ...]
    memory: torch.Tensor
    tail: torch.Tensor | None
    label: str


def tokens(time, start=0, batch=2):
    """[batch, time, 3], every number different."""
    return (
        torch.arange(batch)[:, None, None] * 1000.0 + torch.arange(start, start + time)[:, None] + torch.arange(3) / 10
    )


def outer_state():
    inner = [InnerState("inner", 2, 5, GrowableBuffer.of(tokens(5)), torch.randn(7, 2)) for _ in range(2)]
    return OuterState("outer", 2, 5, tuple(inner), torch.randn(2, 3, 4), None, "x")


class CountElements(TorchDispatchMode):
    """Elements in the results of all operators that are not views: what was allocated or written."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(result, torch.Tensor):
            self.elements += result.numel()
        return result


@pytest.mark.parametrize("grad", [True, False])
def test_appending_gives_a_longer_value_and_keeps_the_old_one(grad):
    with torch.set_grad_enabled(grad):
        buffers = [GrowableBuffer.of(tokens(3))]
        for t in range(3, 60):
            buffers.append(buffers[-1].append(tokens(1, t)))
    for buffer, length in zip(buffers, range(3, 61)):
        assert buffer.length == length
        assert torch.equal(buffer.values, tokens(length))


@torch.no_grad()
def test_two_continuations_of_one_buffer_do_not_see_each_other():
    base = GrowableBuffer.of(tokens(4)).append(tokens(1, 4))
    assert base.storage.shape[1] > base.length  # there is room, so that the first continuation is written in place
    one = base.append(tokens(2, 100))
    two = base.append(tokens(2, 200))
    three = one.append(tokens(1, 300))
    assert torch.equal(base.values, tokens(5))
    assert torch.equal(one.values, torch.cat([tokens(5), tokens(2, 100)], 1))
    assert torch.equal(two.values, torch.cat([tokens(5), tokens(2, 200)], 1))
    assert torch.equal(three.values, torch.cat([tokens(5), tokens(2, 100), tokens(1, 300)], 1))


@torch.no_grad()
def test_appending_token_by_token_does_not_copy_the_buffer_per_token():
    buffer, n, counter = GrowableBuffer.of(tokens(100)), 2000, CountElements()
    new = tokens(1)
    with counter:
        for _ in range(n):
            buffer = buffer.append(new)
    assert buffer.length == 2100
    # growing by half each time copies every entry three times in all; copying per token would be 350 times as much
    assert counter.elements < 8 * buffer.values.numel()
    assert buffer.storage.shape[1] <= 1.5 * 2100


@torch.no_grad()
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_keep_last_is_bounded(count):
    buffer = GrowableBuffer.of(tokens(0))
    for t in range(500):
        buffer = buffer.append(tokens(1, t)).keep_last(count)
        assert buffer.storage.shape[1] <= 2 * count + 16
        assert torch.equal(buffer.values, tokens(500)[:, max(0, t + 1 - count) : t + 1])
    assert buffer.length == count


@torch.no_grad()
def test_keep_last_does_not_copy_the_buffer_per_token():
    buffer, counter, new = GrowableBuffer.of(tokens(100)), CountElements(), tokens(1)
    with counter:
        for _ in range(1000):
            buffer = buffer.append(new).keep_last(100)
    assert counter.elements < 10 * 1000 * new.numel()  # copying per token would make it 200


def test_gradients_pass_through_appends_and_survive_later_ones():
    scale = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        buffer = GrowableBuffer.of(tokens(3)).append(tokens(1, 3))
    loss = torch.zeros(())
    for t in range(4, 8):  # what is appended needs no gradient, but the graph holds the values
        buffer = buffer.append(tokens(1, t))
        loss = loss + (buffer.values * scale).sum()
    loss.backward()
    torch.testing.assert_close(scale.grad, sum(tokens(t + 1).sum() for t in range(4, 8)).reshape(1))

    new = tokens(2, 8).requires_grad_()
    (buffer.append(new).append(new).values[:, -3:] ** 2).sum().backward()
    torch.testing.assert_close(new.grad, 2 * new.detach() * torch.tensor([1.0, 2.0])[:, None])


def test_a_buffer_made_in_inference_mode_can_be_continued_outside():
    with torch.inference_mode():
        buffer = GrowableBuffer.of(tokens(3)).append(tokens(1, 3))
    with torch.no_grad():
        assert torch.equal(buffer.append(tokens(1, 4)).values, tokens(5))


def test_nbytes_counts_storages_with_their_spare_room_and_once():
    with torch.no_grad():
        cache = GrowableBuffer.of(tokens(20)).append(tokens(1, 20))  # 30 entries of [2, 3] float32
    table = torch.randn(7, 2)
    inner = tuple(InnerState("inner", 2, 21, cache, table) for _ in range(2))
    state = OuterState("outer", 2, 21, inner, torch.randn(2, 9)[:, :4], None, "x")
    assert state.nbytes == 30 * 6 * 4 + 14 * 4 + 18 * 4
    assert state.clone().nbytes == 2 * (21 * 6 * 4 + 14 * 4) + 8 * 4


def test_select_picks_rows_and_leaves_shared_tensors():
    state = outer_state()
    picked = state.select([1, 1, 0])
    assert picked.batch == 3
    assert [layer.batch for layer in picked.layers] == [3, 3]
    assert torch.equal(picked.memory, state.memory[[1, 1, 0]])
    assert torch.equal(picked.layers[1].cache.values, state.layers[1].cache.values[[1, 1, 0]])
    assert torch.equal(picked.layers[0].table, state.layers[0].table)
    assert picked.label == "x"
    assert torch.equal(state.select(torch.tensor([0])).memory, state.memory[:1])


@pytest.mark.parametrize("rows", [[2], [-1], [[0]]])
def test_select_refuses_rows_that_are_not_there(rows):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        outer_state().select(rows)


def test_clone_shares_no_memory():
    state = outer_state()
    copy = state.clone()
    kept = state.memory.clone(), state.layers[0].cache.values.clone()
    copy.memory.zero_()
    copy.layers[0].cache.values.zero_()
    assert torch.equal(state.memory, kept[0])
    assert torch.equal(state.layers[0].cache.values, kept[1])


def test_detach_cuts_the_graph():
    x = tokens(2).requires_grad_()
    state = InnerState("inner", 2, 2, GrowableBuffer.of(x * 2), x[0] * 1)
    assert state.cache.values.requires_grad
    detached = state.detach()
    assert not detached.cache.values.requires_grad
    assert not detached.table.requires_grad
    assert torch.equal(detached.cache.values, state.cache.values)


def test_to_moves_every_tensor():
    moved = outer_state().to("meta")
    assert moved.device == torch.device("meta")
    assert {moved.memory.device.type, *(layer.cache.storage.device.type for layer in moved.layers)} == {"meta"}
    assert moved.memory.dtype == torch.float32


def test_saved_and_loaded_states_are_equal(tmp_path):
    state = outer_state()
    with torch.no_grad():
        grown = state.layers[0].cache.append(tokens(1, 5))
    state = OuterState("outer", 2, 5, (InnerState("inner", 2, 6, grown, torch.randn(7, 2)),), state.memory, None, "x")
    state.save(tmp_path / "state.safetensors")
    loaded = MixerState.load(tmp_path / "state.safetensors")
    assert type(loaded) is OuterState
    assert (loaded.signature, loaded.batch, loaded.position, loaded.tail, loaded.label) == ("outer", 2, 5, None, "x")
    assert type(loaded.layers[0]) is InnerState
    assert loaded.layers[0].position == 6
    assert torch.equal(loaded.layers[0].cache.values, tokens(6))
    assert torch.equal(loaded.layers[0].table, state.layers[0].table)
    assert torch.equal(loaded.memory, state.memory)


def test_load_refuses_a_file_without_a_state(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no mixer state"):
        MixerState.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"position": {"value": 5}', '"position": {"value": -5}'), "position of a"),
        (lambda text: text.replace('"position": {"value": 5}', '"position": {"value": NaN}'), "no JSON number"),
        (lambda text: text.replace('"batch": {"value": 2}', '"batch": {"tensor": "state.memory"}'), "batch of a"),
        (lambda text: text.replace('"position"', '"__class__"'), "does not have the fields"),
        (lambda text: text.replace('{"tensor": "state.memory"}', '{"tensor": "../x"}'), "hang together"),
        (lambda text: text.replace(":OuterState", ":system"), "is unknown here"),
        (lambda text: '{"tuple": [' * 500 + '{"value": 1}' + "]}" * 500, "nested too deeply|is no state"),
        (lambda text: "[" * 100_000, "nested too deeply"),
        (lambda text: '{"value": 7}', "is no state"),
        (lambda text: "7", "hang together"),
    ],
)
def test_a_state_that_somebody_made_up_is_refused(change, message, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    state = outer_state()
    OuterState("outer", 2, 5, (), state.memory, None, "x").save(tmp_path / "good.safetensors")
    with safe_open(tmp_path / "good.safetensors", "pt") as file:
        (key, text), tensor = next(iter(file.metadata().items())), file.get_tensor("state.memory")
    assert change(text) != text
    save_file({"state.memory": tensor}, tmp_path / "bad.safetensors", {key: change(text)})
    with pytest.raises(ValueError, match=message):
        MixerState.load(tmp_path / "bad.safetensors")
