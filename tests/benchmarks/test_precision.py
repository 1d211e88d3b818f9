"""In which precision cases compute, by device, suite and measure; and whether CUDA may use TF32."""

from pathlib import Path

import pytest
import torch
from mixerzoo.benchmarks import suite as suite_module
from mixerzoo.benchmarks.measures import measure_class
from mixerzoo.benchmarks.plan import Planner, everything
from mixerzoo.benchmarks.precision import allows_tf32, autocast, resolve
from mixerzoo.benchmarks.runs import Run
from mixerzoo.benchmarks.suite import SuiteError, load_suite, parse_suite
from mixerzoo.benchmarks.tasks import NeedleTask
from mixerzoo.benchmarks.training import TrainingSettings, train_or_load
from mixerzoo.benchmarks.worker import Channel, run_case
from mixerzoo.mixers.tf32 import tf32
from mixerzoo.models import LanguageModel, ModelConfig

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"
TEXT = """\
name: mine
layouts: {a: softmax_attention | fwpkm@1}
measures:
  - {measure: speed, modes: [forward], lengths: [64]}
  - {measure: memory, modes: [forward], lengths: [64], precision: float32}
  - {measure: op_speed}
  - {measure: overhead}
  - {measure: mixer_speed}
  - measure: recall
    task: {task: needle, n_needles: 2, n_keys: 8, n_values: 8}
    training: {steps: 2, length: 64}
    lengths: [64]
  - {measure: perplexity, training: {precision: bfloat16, steps: 2, length: 64}, length: 64}
"""


def cases(text, device):
    """Measure (of a trained one its task) -> precision and TF32 of its cases, of which all must agree."""
    found = {}
    for case in everything(Planner(parse_suite(text, "s"), device), {}):
        parameters = case.parameters
        name = parameters["task"]["task"] if "task" in parameters else case.measure
        precision = (parameters.get("training") or parameters)["precision"]
        assert found.setdefault(name, (precision, case.tf32)) == (precision, case.tf32)
    return found


def test_every_case_says_which_precision_and_the_device_decides_where_nobody_does():
    names = ("speed", "memory", "op_speed", "overhead", "mixer_speed", "needle", "text")
    on_cpu, on_cuda = cases(TEXT, "cpu"), cases(TEXT, "cuda:1")
    assert set(on_cpu) == set(on_cuda) == set(names)
    left_open = [name for name in names if name not in ("memory", "text")]
    assert all(on_cpu[name] == ("float32", False) for name in left_open)
    assert all(on_cuda[name] == ("bfloat16", True) for name in left_open)
    assert on_cpu["memory"] == on_cuda["memory"] == ("float32", False)  # its own
    assert on_cpu["text"] == ("bfloat16", False) and on_cuda["text"] == ("bfloat16", True)


def test_a_suite_says_it_for_all_that_do_not():
    for device in ("cpu", "cuda"):
        found = cases(f"precision: float32\n{TEXT}", device)
        assert found.pop("text")[0] == "bfloat16" and {precision for precision, _ in found.values()} == {"float32"}
    found = cases(f"precision: bfloat16\n{TEXT}", "cpu")
    assert found.pop("memory")[0] == "float32" and set(found.values()) == {("bfloat16", False)}


def test_tf32_is_a_switch_of_the_suite():
    assert {allowed for _, allowed in cases(f"tf32: false\n{TEXT}", "cuda").values()} == {False}
    assert {allowed for _, allowed in cases(f"tf32: true\nprecision: float32\n{TEXT}", "cuda").values()} == {True}
    assert {allowed for _, allowed in cases(f"tf32: true\n{TEXT}", "cpu").values()} == {False}
    ids = [
        {case.id for case in everything(Planner(parse_suite(switch + TEXT, "s"), "cuda"), {})}
        for switch in ("tf32: false\n", "tf32: true\n")
    ]
    assert not ids[0] & ids[1]
    with pytest.raises(SuiteError, match=r"s:1: tf32"):
        parse_suite(f"tf32: sometimes\n{TEXT}", "s")
    with pytest.raises(SuiteError, match=r"s:1: precision"):
        parse_suite(f"precision: int8\n{TEXT}", "s")


def test_published_runs_and_suites_are_still_the_same_cases():
    """A CPU run of before such settings has them as they are now meant, so that its results can be reused."""
    for name in ("quick", "recall-capacity"):
        run = Run(PUBLISHED / name)
        planned = {case["case"] for case in run.plan()["cases"]}
        own = load_suite(run.suite_path)
        ids = {case.id for case in everything(Planner(own, "cpu"), {r.case: r for r in run.results()})}
        assert planned <= ids
        assert own.on("cpu").resolved()["measures"] == run.suite()["measures"]


def test_a_resolved_suite_keeps_what_its_suite_said():
    suite = parse_suite(f"precision: bfloat16\ntf32: false\n{TEXT}", "s").on("cuda")
    resolved = suite.resolved()
    assert resolved["tf32"] is False and "precision" not in resolved
    assert [m.get("precision") for m in resolved["measures"][:2]] == ["bfloat16", "float32"]
    assert "tf32" not in parse_suite(TEXT, "s").resolved()  # a run of before there was such a switch can be resumed


def test_what_auto_means():
    assert resolve("auto", "cpu") == resolve("float32", "cuda") == "float32"
    assert resolve("auto", "cuda:3") == resolve("bfloat16", "cpu") == "bfloat16"
    assert TrainingSettings().on("cuda").precision == "bfloat16" and TrainingSettings().on("cpu").precision == "float32"
    assert allows_tf32("auto", "auto", torch.device("cuda", 1)) and not allows_tf32("auto", "float32", "cuda")
    assert not allows_tf32(True, "bfloat16", "cpu")
    with autocast(torch.device("cpu"), "auto"):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(torch.device("cpu"), "bfloat16"):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.is_autocast_enabled("cpu")


def switches():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def measured(monkeypatch):
    """What a case sees of TF32, in place of a measure."""
    seen = []

    class Looks(measure_class("speed")):
        def run(self, config, **where):
            seen.append((switches(), where["device"]))
            return {}

    monkeypatch.setattr(suite_module, "parse_measure", lambda data: Looks())
    return seen


@pytest.mark.parametrize("allowed", [True, False])
def test_a_case_computes_with_the_switch_that_it_records(measured, allowed, tmp_path):
    before = switches()
    job = {"model": ModelConfig("identity").to_dict(), "measure": "speed", "parameters": {}, "seed": 0, "threads": 1}
    threads = torch.get_num_threads()
    try:
        run_case({**job, "device": "cpu", "tf32": allowed, "folder": str(tmp_path)}, Channel(None))
    finally:
        torch.set_num_threads(threads)
    assert measured == [((allowed, allowed), torch.device("cpu"))] and switches() == before


def test_the_switch_goes_back_after_an_error():
    before = switches()
    with pytest.raises(KeyError), tf32(True):
        assert switches() == (True, True)
        raise KeyError
    assert switches() == before


def test_attention_is_timed_in_the_precision_of_the_mixer(monkeypatch, tmp_path):
    """Queries that were cast within the call would be timed with it."""
    seen = set()
    whole = torch.nn.functional.scaled_dot_product_attention

    def attention(q, k, v, **options):
        seen.add((q.dtype, k.dtype, v.dtype))
        return whole(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    measure = measure_class("mixer_speed")(modes=("forward",), lengths=(16,), d_head=8, rounds=1, precision="bfloat16")
    where = {"seed": 0, "device": torch.device("cpu"), "folder": tmp_path, "progress": lambda fraction, text: None}
    measure.run(ModelConfig("identity", d_model=16, n_layers=1), **where)
    assert seen == {(torch.bfloat16,) * 3}


def test_a_training_records_the_precision_that_it_had(tmp_path):
    """So that one that began on a CPU is not gone on with on a GPU as if nothing had changed."""
    config = ModelConfig("identity", d_model=16, n_layers=1)
    task = NeedleTask(n_needles=2, n_keys=8, n_values=8)
    where = {"seed": 0, "device": torch.device("cpu"), "folder": tmp_path, "progress": lambda fraction, text: None}
    model, record = train_or_load(config, task, TrainingSettings(steps=1, batch=1, length=64), **where)
    assert isinstance(model, LanguageModel)
    explicit = TrainingSettings(steps=1, batch=1, length=64, precision="float32")
    assert train_or_load(config, task, explicit, **where)[1] == record  # found, not trained again
