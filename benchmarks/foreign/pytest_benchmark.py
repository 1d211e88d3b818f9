"""pytest-benchmark: the JSON of `--benchmark-json` and `--benchmark-save`, in the form of its versions 3 to 5."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .reading import Format, Model, Reading, Value, finite, has, known


class _Stats(Model):
    median: float
    q1: float
    q3: float
    rounds: int


class _Benchmark(Model):
    name: str = Field(min_length=1)
    group: str | None = None
    stats: _Stats


class _Cpu(Model):
    brand_raw: str | None = None


class _PytestMachine(Model):
    node: str | None = None
    system: str | None = None
    release: str | None = None
    python_version: str | None = None
    cpu: _Cpu = _Cpu()


class _PytestBenchmark(Model):
    machine_info: _PytestMachine
    datetime: str | None = None
    version: str | None = None
    benchmarks: list[_Benchmark]


def _read_pytest_benchmark(data: Any) -> Reading:
    said = _PytestBenchmark.model_validate(data)
    machine = said.machine_info
    values = [
        Value(
            benchmark.name,
            quantity="median time",
            value=benchmark.stats.median,
            unit="s",
            low=finite(benchmark.stats.q1),
            high=finite(benchmark.stats.q3),
            interval="quartiles of the rounds",
            count=benchmark.stats.rounds,
            task=benchmark.group,
            better="less",
        )
        for benchmark in said.benchmarks
    ]
    system = " ".join(filter(None, (machine.system, machine.release))) or None
    environment = known(
        started=said.datetime,
        machine=known(host=machine.node, cpu=machine.cpu.brand_raw, os=system),
        python=machine.python_version,
    )
    return Reading("pytest-benchmark", said.version, environment, values)


FORMAT = Format(
    "the JSON that `pytest --benchmark-json=FILE` writes, with `machine_info` and a list `benchmarks`",
    lambda data: has(data, machine_info=dict, benchmarks=list),
    _read_pytest_benchmark,
)
