"""Which optimizer moves which parameter and how far, gradients in parts, and where a NaN began."""

import pytest
import torch
from mixerzoo.benchmarks.errors import NotFiniteError
from mixerzoo.benchmarks.tasks import MqarTask, NeedleTask
from mixerzoo.benchmarks.training import TrainingSettings, batch_loss, make_optimizers, train
from mixerzoo.models import LanguageModel, ModelConfig, compiling
from torch import nn

CPU = torch.device("cpu")
CONFIG = ModelConfig("softmax_attention(heads=2)", d_model=16, n_layers=1)
PKM = ModelConfig("softmax_attention(heads=2) | pkm(heads=1, n_subkeys=8, d_k=8, top_k=2)@0", d_model=16, n_layers=1)
EASY = MqarTask(n_pairs=1, n_keys=2, n_values=2, n_fillers=1)
ONE = TrainingSettings(steps=1, batch=4, length=32, warmup=0.0)


def test_muon_takes_the_linear_maps_of_the_layers_and_adamw_the_rest():
    model = LanguageModel(PKM)
    muon, adamw = make_optimizers(model, "muon", 1e-3, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    held = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    linear = {
        f"{name}.weight"
        for name, module in model.layers.named_modules(prefix="layers")
        if isinstance(module, nn.Linear)
    }
    assert held == linear and len(held) >= 3
    rest = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert sorted([*rest, *held]) == sorted(names.values())
    assert {"embedding.weight", "norm.weight", "layers.0.feed_forward.values"} <= set(rest)


def orthogonalised(gradient):
    """Muon's five Newton-Schulz steps, on the singular values alone (Jordan et al. 2024)."""
    u, s, v = torch.linalg.svd(gradient.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


def test_a_muon_update_is_orthogonalised_and_as_large_as_one_of_adamw():
    before, model = LanguageModel(CONFIG), LanguageModel(CONFIG)
    task = NeedleTask()  # asks enough to give gradients full rank: torch rounds to bfloat16, which blurs what is tiny
    batch_loss(before, task.train_batch(0, 16, 64, 0), CPU).backward()
    changes = {"batch": 16, "length": 64, "optimizer": "muon", "weight_decay": 0.0, "learning_rate": 1e-2}
    train(model, task, ONE.model_copy(update=changes), seed=0, device=CPU)
    for name in ("layers.0.mixer.o_proj.weight", "layers.0.feed_forward.up.weight"):
        old, new = before.get_parameter(name), model.get_parameter(name)
        update = (old - new).detach() / (1e-2 * 0.2 * max(old.shape) ** 0.5)  # scaled by 0.2 sqrt(max(m, n))
        expected = orthogonalised(old.grad)
        assert (update - expected).norm() < 0.05 * expected.norm(), name
        assert (old.grad / old.grad.norm() - expected / expected.norm()).norm() > 0.3, name
    moved = (before.embedding.weight - model.embedding.weight).abs().max().item()
    assert moved == pytest.approx(1e-2, rel=1e-2)  # Adam's first step


def test_muon_learns():
    settings = TrainingSettings(steps=30, batch=8, length=16, learning_rate=1e-2, optimizer="muon")
    record = train(LanguageModel(CONFIG), EASY, settings, seed=0, device=CPU)
    assert record["curve"][-1][1] < 3.0 < record["curve"][0][1]


def test_muon_says_what_it_needs(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"needs torch 2\.9 or later"):
        make_optimizers(LanguageModel(CONFIG), "muon", 1e-3, 0.1)


@pytest.mark.parametrize("accumulate", [2, 3, 100])
def test_a_step_in_parts_is_a_step(accumulate, monkeypatch):
    """The rows ask for different numbers of values, so that a mean of means would be wrong."""
    seen = []
    clip = nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        parameters = list(parameters)
        seen.append([p.grad.clone() for p in parameters])
        return clip(parameters, limit)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", spy)

    class Uneven(NeedleTask):
        def sample(self, rng, split, batch, length):
            drawn = super().sample(rng, split, batch, length)
            drawn.targets[0, :] = -100
            drawn.targets[0, 5] = 7
            return drawn

    settings = ONE.model_copy(update={"batch": 5})
    whole = train(LanguageModel(CONFIG), Uneven(n_needles=4), settings, seed=0, device=CPU)
    parts_settings = settings.model_copy(update={"accumulate": accumulate})
    parts = train(LanguageModel(CONFIG), Uneven(n_needles=4), parts_settings, seed=0, device=CPU)
    assert parts["curve"][0][1] == pytest.approx(whole["curve"][0][1], rel=1e-6)
    assert max(g.abs().max() for g in seen[0]) > 1e-3
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_parts_are_refused_where_the_sequences_of_a_step_share_a_memory():
    layout = "softmax_attention(heads=2) | fwpkm(scope=batch, n_subkeys=8, d_k=8, d_v=8, chunk_size=8)@0"
    model = LanguageModel(ModelConfig(layout, d_model=16, n_layers=1))
    with pytest.raises(ValueError, match=r"accumulate: 2 .* would change what layers\.0\.memory learns"):
        train(model, EASY, ONE.model_copy(update={"accumulate": 2}), seed=0, device=CPU)


def spoil_output(module):
    module.register_forward_hook(lambda m, args, output: output * torch.nan)


def spoil_gradient(module):
    module.weight.register_hook(lambda gradient: gradient / 0)


TWO = ModelConfig("softmax_attention(heads=2), gated_deltanet(heads=2)", d_model=16, n_layers=2)


@pytest.mark.parametrize(
    ("spoil", "place", "blamed"),
    [
        (spoil_output, "layers.1.mixer_norm", "the output of layers.1.mixer_norm"),
        (spoil_output, "layers.0.feed_forward.up", "the output of layers.0.feed_forward.up"),
        (spoil_gradient, "layers.1.feed_forward.down", "the gradient of layers.1.feed_forward.down.weight"),
    ],
)
def test_a_nan_stops_at_its_step_and_names_where_it_began(spoil, place, blamed):
    model = LanguageModel(TWO)

    def say(fraction, text):
        if fraction == 0.5:
            spoil(model.get_submodule(place))

    with pytest.raises(NotFiniteError, match=rf"at training step 4 the loss is .* it began in {blamed}$"):
        train(model, EASY, ONE.model_copy(update={"steps": 6}), seed=0, device=CPU, progress=say)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_nan_is_found_where_a_step_is_compiled_and_read_in_parts(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    model = LanguageModel(CONFIG)
    spoil_output(model.layers[0].feed_forward.gate)
    settings = ONE.model_copy(update={"compile": "default", "accumulate": 3})
    with pytest.raises(NotFiniteError, match=r"it began in the output of layers\.0\.feed_forward\.gate"):
        train(model, EASY, settings, seed=0, device=CPU)
    torch._dynamo.reset()


def test_a_mixer_that_refuses_a_nan_is_not_the_one_to_blame():
    layout = "softmax_attention(heads=2) | fwpkm(n_subkeys=8, d_k=8, d_v=8, chunk_size=8)@1"
    model = LanguageModel(ModelConfig(layout, d_model=16, n_layers=2))
    spoil_output(model.layers[0].mixer.o_proj)
    with pytest.raises(NotFiniteError, match=r"at training step 1 .* in the output of layers\.0\.mixer\.o_proj"):
        train(model, EASY, ONE, seed=0, device=CPU)
