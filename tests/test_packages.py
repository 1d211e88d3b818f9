"""Arrows point one way: a package imports only those to its left, and importing defines things and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["mixers", "models", "benchmarks", "reports"]
GPU_PACKAGES = {"triton", "fla", "flash_attn"}
SIDE_PACKAGES = {"published", "micro"}  # reports with their data, and pytest files: no modules of the package
KERNELS = "mixers/ops/*/triton.py"  # decorated when loaded, and loaded by a backend of that name only


def source_files() -> list[Path]:
    return sorted(
        p
        for package in PACKAGES
        for p in (ROOT / package).rglob("*.py")
        if not SIDE_PACKAGES & set(p.relative_to(ROOT).parts)
    )


def package_of(path: Path) -> list[str]:
    return list(path.relative_to(ROOT).parent.parts)


def imported_names(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Absolute names of what an import statement may load; ours without `mixerzoo.`, marked by a leading dot."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, *filter(None, [node.module])])
        for alias in node.names:
            yield ("." if node.level else "") + (f"{module}.{alias.name}" if module else alias.name)


def room_imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        yield from (name[1:] for name in imported_names(node, package) if name.startswith("."))


def wrong_arrows(tree: ast.AST, package: list[str]) -> list[str]:
    here = PACKAGES.index(package[0])
    return [n for n in room_imports(tree, package) if PACKAGES.index(n.partition(".")[0]) > here]


def statements_run_by_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node outside of function bodies and `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
        elif isinstance(node, ast.Lambda):
            pass
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def loads_gpu_package(tree: ast.Module) -> list[str]:
    names = [n for node in statements_run_by_import(tree) for n in imported_names(node, [])]
    return [n for n in names if n.partition(".")[0] in GPU_PACKAGES]


def touches_device(tree: ast.Module) -> list[str]:
    calls = [ast.unparse(n.func) for n in statements_run_by_import(tree) if isinstance(n, ast.Call)]
    return [c for c in calls if c.startswith(("torch.cuda.", "torch.accelerator.", "cuda."))]


@pytest.mark.parametrize("path", source_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_file_keeps_to_its_room(path: Path) -> None:
    tree, package = ast.parse(path.read_text()), package_of(path)
    assert not wrong_arrows(tree, package)
    absolute = [n for node in ast.walk(tree) for n in imported_names(node, []) if n.partition(".")[0] == "mixerzoo"]
    assert not absolute, f"between packages import relatively: {absolute}"
    allowed = {"triton", "triton.language"} if path.relative_to(ROOT).match(KERNELS) else set()
    assert set(loads_gpu_package(tree)) <= allowed, "GPU packages are imported where they are used, within functions"
    assert not touches_device(tree), "importing a module must not ask for a device"


def test_reports_know_only_the_run_store_its_forecast_and_the_history() -> None:
    imports = {
        name
        for path in (ROOT / "reports").rglob("*.py")
        for name in room_imports(ast.parse(path.read_text()), package_of(path))
        if not name.startswith("reports")
    }
    known = ("benchmarks.runs", "benchmarks.forecast", "benchmarks.micro_history")
    assert imports and all(n.startswith(known) for n in imports), imports


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from ..models import LanguageModel", ["mixers"], ["models.LanguageModel"]),
        ("def f():\n    from ...benchmarks.runs import Run", ["mixers", "ops"], ["benchmarks.runs.Run"]),
        ("from .. import reports", ["benchmarks"], ["reports"]),
        ("from ..mixers import create_mixer\nfrom . import layout", ["models"], []),
    ],
)
def test_wrong_arrows_are_seen(source: str, package: list[str], expected: list[str]) -> None:
    assert wrong_arrows(ast.parse(source), package) == expected


def test_gpu_packages_and_device_calls_are_seen() -> None:
    assert loads_gpu_package(ast.parse("try:\n    import triton.language as tl\nexcept ImportError:\n    pass"))
    assert loads_gpu_package(ast.parse("class A:\n    from fla.ops import gla"))
    assert not loads_gpu_package(ast.parse("def f():\n    import flash_attn"))
    assert not loads_gpu_package(ast.parse("if TYPE_CHECKING:\n    import triton"))
    assert touches_device(ast.parse("N = torch.cuda.device_count()"))
    assert touches_device(ast.parse("def f(device=torch.cuda.current_device()):\n    pass"))
    assert not touches_device(ast.parse("def f():\n    return torch.cuda.is_available()"))


def loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after `statement`."""
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_run_store_and_the_reports_do_without_torch() -> None:
    modules = ["mixerzoo.benchmarks", "mixerzoo.benchmarks.runs"]
    for path in sorted((ROOT / "reports").glob("*.py")):
        modules.append("mixerzoo.reports" + ("" if path.stem == "__init__" else f".{path.stem}"))
    loaded = loaded_by(f"import {', '.join(modules)}")
    assert "pydantic" in loaded
    assert "torch" not in loaded


def test_importing_the_mixers_loads_neither_gpu_packages_nor_the_compiler() -> None:
    loaded = loaded_by("import mixerzoo.mixers")
    assert "torch" in loaded
    assert not loaded & {*GPU_PACKAGES, "torch._dynamo"}
