"""What is wrong with a checkpoint is noticed, said, and kept; a training goes on without it."""

import hashlib
import itertools
import json
import time

import pytest
import safetensors.torch
import torch
from mixerzoo.benchmarks.tasks import NeedleTask
from mixerzoo.benchmarks.training import TrainingSettings, attempts, checkpoints, train_or_load
from mixerzoo.benchmarks.training.attempts import Attempts, Pace
from mixerzoo.benchmarks.training.checkpoints import ResumePoint, Standing
from mixerzoo.benchmarks.training.distributed import Ranks
from mixerzoo.models import ModelConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig("gated_deltanet(heads=2)", d_model=16, n_layers=1)
SETTINGS = TrainingSettings(steps=6, batch=2, length=24, save_every=2)
RECIPE = {"of": "a test"}


def finish(folder, settings=SETTINGS, progress=lambda *_: None):
    where = {"seed": 3, "device": CPU, "folder": folder}
    model, record = train_or_load(CONFIG, NeedleTask(n_needles=2), settings, **where, progress=progress)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, record


def interrupt(folder, settings=SETTINGS):
    def stop(fraction, doing):
        if fraction > 0.8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(folder, settings, stop)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("whole"))


def same(one, other):
    """Whether two trainings gave the same model and record, but for what depends on how often each was started."""
    keys = ("seconds", "resumed_at", "warnings")
    records = [{k: v for k, v in record.items() if k not in keys} for _, record in (one, other)]
    return records[0] == records[1] and all(torch.equal(t, other[0][name]) for name, t in one[0].items())


def test_a_damaged_resume_point_is_passed_over_said_and_kept(whole, tmp_path):
    interrupt(tmp_path)
    flip_last_byte(tmp_path / "resume-4.safetensors")
    again = finish(tmp_path)
    assert same(again, whole) and again[1]["resumed_at"] == [0] and whole[1]["resumed_at"] == []
    (warning,) = again[1]["warnings"]
    assert (
        warning.startswith("resume point unusable, began at step 0: ") and "resume-4.safetensors is corrupt" in warning
    )
    assert (tmp_path / "unusable-resume-4.safetensors").is_file() and not list(tmp_path.glob("resume*"))


def test_a_resume_point_of_the_old_format_is_not_loaded(whole, tmp_path):
    (tmp_path / "resume.pt").write_bytes(b"\x80\x04")
    again = finish(tmp_path)
    assert same(again, whole) and "older version" in again[1]["warnings"][0]
    assert (tmp_path / "unusable-resume.pt").read_bytes() == b"\x80\x04"


def test_a_damaged_model_is_trained_anew_where_it_was_trained(whole, tmp_path):
    finish(tmp_path)
    flip_last_byte(tmp_path / "model.safetensors")
    again = finish(tmp_path)
    assert same(again, whole) and "model.safetensors is corrupt" in again[1]["warnings"][0]
    assert (tmp_path / "unusable-model.safetensors").is_file() and (tmp_path / "unusable-training.json").is_file()
    assert finish(tmp_path)[1] == again[1]  # "trained already"


@pytest.mark.parametrize("content", ["", "[]", '{"recipe": 1, "training": {"steps": NaN}}', "[" * 100_000])
def test_a_record_that_is_none_is_trained_anew(content, whole, tmp_path):
    finish(tmp_path)
    (tmp_path / "training.json").write_text(content)
    again = finish(tmp_path)
    assert same(again, whole) and "training.json" in again[1]["warnings"][0]


def test_a_training_killed_in_its_last_moment_is_not_taken_for_finished(whole, tmp_path):
    finish(tmp_path)
    sums = (tmp_path / "SHA256SUMS").read_text().splitlines(keepends=True)
    assert [line.split()[1] for line in sums] == ["config.json", "model.safetensors", "training.json"]
    (tmp_path / "SHA256SUMS").write_text("".join(sums[:2]))
    said = []
    assert same(finish(tmp_path, progress=lambda fraction, doing: said.append(fraction)), whole)
    assert len(said) == 6


def test_seconds_are_those_of_all_starts_whatever_the_clock_says(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: -1e9 * time.perf_counter())  # it jumps back
    interrupt(tmp_path)
    kept = json.loads((tmp_path / "attempts.json").read_text())
    assert len(kept["attempts"]) == 1 and kept["attempts"][0]["seconds"] >= 0
    kept["attempts"][0]["seconds"] = 1000.0
    (tmp_path / "attempts.json").write_text(json.dumps(kept))
    record = finish(tmp_path)[1]
    assert 1000 < record["seconds"] < 1600 and record["resumed_at"] == [4]
    assert not (tmp_path / "attempts.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"recipe": "%s", "attempts": [{"began_at": -1}]}'])
def test_what_is_noted_of_earlier_starts_may_be_lost_and_nothing_else_with_it(content, tmp_path):
    noted = Attempts(tmp_path, RECIPE)
    (tmp_path / "attempts.json").write_text(content.replace("%s", noted.recipe))
    noted.begin(4, 12.5, None)
    assert noted.resumed_at == [4] and 12.5 <= noted.seconds < 600


def test_saving_takes_a_hundredth_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(attempts.time, "perf_counter", lambda: now[0])
    pace, saved = Pace(), []
    while now[0] < 4000:
        now[0] += 1.0
        if pace.due:
            saved.append(began := now[0])
            now[0] += 0.05 if len(saved) <= 3 else 3.0
            pace.saved(began)
    gaps = [later - earlier for earlier, later in itertools.pairwise(saved)]
    assert saved[0] == 10 and gaps[:2] == pytest.approx([10, 10], abs=1.1)
    assert min(gaps[4:]) >= 300


def test_without_a_schedule_it_is_saved_by_the_clock(whole, tmp_path, monkeypatch):
    settings = SETTINGS.model_copy(update={"save_every": None})
    interrupt(tmp_path / "short", settings)
    assert not list((tmp_path / "short").glob("resume*"))  # it took less than ten seconds
    monkeypatch.setattr(attempts, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(attempts, "SAVE_SHARE", float("inf"))
    interrupt(tmp_path / "long", settings)
    assert [p.name for p in (tmp_path / "long").glob("resume-*")] == ["resume-4.safetensors"]
    again = finish(tmp_path / "long", settings)
    assert same(again, whole) and again[1]["resumed_at"] == [4]


class Small:
    """A model of one layer that has made a step, and a resume point of it at `folder`."""

    def __init__(self, folder):
        torch.manual_seed(5)
        self.model = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.model(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()
        self.point = ResumePoint(folder, RECIPE)

    def save(self, step=7):
        return self.point.save(self.model, [self.optimizer], Standing(step=step), Ranks())

    def restore(self):
        """Into a new one: the step, the warning, and whether the parameters are those that were saved."""
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        standing, warning = self.point.restore(model, [optimizer], Ranks())
        restored = all(torch.equal(t, model.state_dict()[n]) for n, t in self.model.state_dict().items())
        untouched = all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())
        assert restored != untouched and restored == bool(optimizer.state)
        return standing.step, warning, restored


@pytest.fixture
def small(tmp_path):
    made = Small(tmp_path / "folder")
    assert made.save() is None and made.restore() == (7, None, True)
    return made


def forge(folder, change_tensors=lambda t: t, change_content=lambda c: c, text=None):
    """Write the resume point again with other content, and with the sums that suit it."""
    path = folder / "resume-7.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = json.loads(file.metadata()["mixerzoo_resume"])
    metadata = {"mixerzoo_resume": text or json.dumps(change_content(content))}
    safetensors.torch.save_file(change_tensors(tensors), path, metadata)
    sums(folder, "resume-7.safetensors", path.read_bytes())


def sums(folder, name, content):
    (folder / "resume.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {name}\n")


def flip_last_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def standing(**changes):
    return lambda content: {**content, "standing": {**content["standing"], **changes}}


def without(name):
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


FORGERIES = {
    "no recipe": {"change_content": lambda content: {"standing": content["standing"]}},
    "no object": {"text": "[1, 2]"},
    "deep": {"text": "[" * 100_000},
    "a huge number": {"text": '{"recipe": 1e999}'},
    "a step that is none": {"change_content": standing(step="many")},
    "a step before the first": {"change_content": standing(step=-1)},
    "a curve of one": {"change_content": standing(curve=[[1.0]])},
    "a hash that is none": {
        "change_content": standing(data={"sha256": "xyz", "batches": 1, "tokens": 1, "prefixes": []})
    },
    "too few tensors": {"change_tensors": without("model.bias")},
    "too many tensors": {"change_tensors": lambda t: {**t, "model.more": torch.ones(1)}},
    "a shape": {"change_tensors": lambda t: {**t, "model.bias": torch.ones(3)}},
    "a shape of a state": {"change_tensors": lambda t: {**t, "optimizer.0.1.exp_avg": torch.ones(3)}},
    "a parameter that is none": {"change_tensors": lambda t: {**t, "optimizer.0.9.exp_avg": torch.ones(3)}},
    "an optimizer that is none": {"change_tensors": lambda t: {**t, "optimizer.4.0.exp_avg": torch.ones(2, 3)}},
    "another name": {"change_tensors": lambda t: {**t, "../x": torch.ones(1)}},
    "no random state": {"change_tensors": without("random.cpu")},
    "a random state that is none": {"change_tensors": lambda t: {**t, "random.cpu": torch.ones(8)}},
}


@pytest.mark.parametrize("changes", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_resume_point_that_somebody_made_up_changes_nothing(changes, small):
    forge(small.point.folder, **changes)
    step, warning, restored = small.restore()
    assert step == 0 and not restored and "resume-7.safetensors is corrupt" in warning
    assert (small.point.folder / "unusable-resume-7.safetensors").is_file()


@pytest.mark.parametrize("name", ["../resume-7.safetensors", "/etc/passwd", "a/b", "resume-7.safetensors\n0  x"])
def test_the_sums_name_no_file_elsewhere(name, small):
    outside = small.point.folder.parent / "resume-7.safetensors"
    (small.point.folder / "resume-7.safetensors").rename(outside)
    sums(small.point.folder, name, outside.read_bytes())
    step, warning, _ = small.restore()
    assert step == 0 and "resume.sha256 is corrupt" in warning


def test_a_link_out_of_the_folder_is_not_followed(small):
    inside, outside = small.point.folder / "resume-7.safetensors", small.point.folder.parent / "x"
    inside.rename(outside)
    inside.symlink_to(outside)
    step, warning, _ = small.restore()
    assert step == 0 and "leads out of" in warning and outside.is_file()


def test_a_kill_between_the_two_files_leaves_the_resume_point_of_before(small):
    (small.point.folder / "resume-9.safetensors").write_bytes(b"not named yet")
    (small.point.folder / "resume-11.safetensors.tmp").write_bytes(b"half of")
    assert small.restore() == (7, None, True)
    small.save(13)
    assert sorted(p.name for p in small.point.folder.iterdir()) == ["resume-13.safetensors", "resume.sha256"]
    assert small.restore()[0] == 13


def test_a_disk_that_is_full_ends_no_training(small, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.safetensors.torch, "save_file", full)
        assert "step 9 could not be written: [Errno 28] No space left" in small.save(9)
    assert small.restore() == (7, None, True)


def test_nothing_that_was_set_aside_is_overwritten(small):
    for content in (b"1", b"2", b"3"):
        (small.point.folder / "resume-7.safetensors").write_bytes(content)
        sums(small.point.folder, "resume-7.safetensors", b"")
        assert small.restore()[0] == 0
    kept = sorted(p.read_bytes() for p in small.point.folder.glob("unusable*resume-7.safetensors"))
    assert kept == [b"1", b"2", b"3"]
