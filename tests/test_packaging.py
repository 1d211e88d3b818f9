"""The wheel holds every module and every data file: packages are listed by hand, and easily forgotten."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGES = ["mixers", "models", "benchmarks", "reports"]
SIDE_PACKAGES = ("published", "micro", "gpu")  # reports, pytest files, scripts: they stay in the checkout

# GPU packages are never needed to import; a finder of an editable install would find what the wheel lacks.
SCRIPT = """
import importlib, json, sys

sys.meta_path = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
sys.path = [p for p in sys.path if "__editable__" not in p]
sys.modules.update(dict.fromkeys(["triton", "fla", "flash_attn"]))
files, errors = {}, {}
for name in json.load(sys.stdin):
    try:
        files[name] = importlib.import_module(name).__file__
    except Exception as error:
        errors[name] = f"{type(error).__name__}: {error}"
print(json.dumps([files, errors]))
"""


def is_source(path: Path) -> bool:
    parts = set(path.relative_to(ROOT).parts)  # a checkout may lie in a folder of any name
    return path.is_file() and "__pycache__" not in parts and not set(SIDE_PACKAGES) & parts


def source_files() -> list[Path]:
    return sorted(p.relative_to(ROOT) for package in PACKAGES for p in (ROOT / package).rglob("*") if is_source(p))


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(["mixerzoo", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def build_wheel(folder: Path) -> Path:
    """Build from a copy, so that nothing that an earlier build left behind gets in."""
    copy = folder / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", *SIDE_PACKAGES))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Where the wheel alone is installed."""
    target = wheel.parent / "installed"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def import_from(target: Path, names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, input=json.dumps(names), env=environment, cwd=target, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files, errors = json.loads(done.stdout)
    return files, errors


def test_every_module_is_imported_from_the_wheel(installed: Path) -> None:
    names = [module_name(p) for p in source_files() if p.suffix == ".py"]
    kernels = {n for n in names if n.startswith("mixerzoo.mixers.ops.") and n.endswith(".triton")}
    files, errors = import_from(installed, names)
    assert set(errors) == kernels and kernels  # they are only loaded where triton is
    assert all("import of triton halted" in error for error in errors.values()), errors
    assert set(files) == set(names) - kernels and len(files) > 20
    elsewhere = {name: file for name, file in files.items() if not Path(file).is_relative_to(installed)}
    assert not elsewhere


def test_every_data_file_is_in_the_wheel(wheel: Path) -> None:
    data = [p for p in source_files() if p.suffix != ".py"]
    assert any(p.match("benchmarks/suites/*.yaml") for p in data)
    assert any(p.match("reports/templates/*") for p in data)
    held = set(zipfile.ZipFile(wheel).namelist())
    assert not [p for p in data if f"mixerzoo/{p.as_posix()}" not in held]


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    expected = {f"mixerzoo/{p.as_posix()}" for p in source_files()}
    held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert held <= expected, held - expected


def test_the_command_is_announced(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
    assert "mixerzoo = mixerzoo.benchmarks.cli:main" in archive.read(name).decode()


def requirements(wheel: Path) -> list[Requirement]:
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    return [Requirement(line) for line in email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])]


def asked_by(wheel: Path, extra: str) -> dict[str, Requirement]:
    """What an extra asks for beside what is always asked for; on Linux, where all of them exist."""
    environment = {"platform_system": "Linux", "python_version": "3.11"}
    needed = [r for r in requirements(wheel) if r.marker and not r.marker.evaluate({**environment, "extra": ""})]
    return {r.name: r for r in needed if r.marker and r.marker.evaluate({**environment, "extra": extra})}


# Their sources are built against the torch that is installed, which pip's isolated build does not see.
BUILT_AGAINST_TORCH = {"flash-attn", "mamba-ssm", "causal-conv1d"}


def test_what_is_built_against_torch_is_asked_for_alone(wheel: Path) -> None:
    """One such package in `pip install mixerzoo[a,b]` and nothing of it is installed."""
    extras = {"test", "text", "lint", "triton", "fla", "flash-attn"}
    asked = {extra: set(asked_by(wheel, extra)) for extra in extras}
    assert all(asked.values()), asked
    assert {extra for extra, names in asked.items() if names & BUILT_AGAINST_TORCH} == {"flash-attn"}
    assert asked["flash-attn"] == {"flash-attn"}
    assert not BUILT_AGAINST_TORCH & {r.name for r in requirements(wheel) if not r.marker}


@pytest.mark.parametrize("extra", ["fla", "test"])
def test_fla_is_new_enough_for_right_gradients(wheel: Path, extra: str) -> None:
    found = asked_by(wheel, extra)["fla-core"].specifier
    assert Version("0.6.0") in found and Version("0.5.9") not in found


def test_the_doctor_has_a_place_for_its_verdicts(wheel: Path) -> None:
    assert "platformdirs" in {r.name for r in requirements(wheel) if not r.marker}


def test_a_forgotten_package_is_noticed(installed: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    shutil.copytree(installed, target)
    shutil.rmtree(target / "mixerzoo" / "mixers" / "ops" / "fwpkm")
    _, errors = import_from(target, ["mixerzoo.mixers.ops.dispatch", "mixerzoo.mixers.ops.fwpkm"])
    assert any("No module named 'mixerzoo.mixers.ops.fwpkm'" in error for error in errors.values())
