"""One training by several processes, of `torchrun` or of a case: every rank reads its rows of the same batches."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..device import make_current
from .evaluation import Reader
from .settings import Parallel


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls, parallel: Parallel) -> Ranks:
        """Those of the process group. Raises `ValueError` if there is one and `parallel` is `none`, or the reverse."""
        joined = dist.is_available() and dist.is_initialized()
        if parallel != "none" and not joined:
            raise ValueError(
                f"parallel: {parallel} needs several processes: start it with "
                "`torchrun --nproc-per-node 2 -m mixerzoo.benchmarks.cli train FILE`, or take parallel: none"
            )
        if parallel == "none" and joined and dist.get_world_size() > 1:
            raise ValueError(
                f"{dist.get_world_size()} processes would all do the same training; take parallel: ddp or fsdp"
            )
        return cls(dist.get_rank(), dist.get_world_size()) if joined else cls()

    def rows(self, tensor: Tensor) -> Tensor:
        """This rank's rows of a batch."""
        return tensor.tensor_split(self.size)[self.rank]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks; the tensor itself is changed."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def check_equal(self, number: int) -> None:
        """Raise `RuntimeError` unless all ranks give the same number."""
        if self.size > 1:
            found: list[Any] = [None] * self.size
            dist.all_gather_object(found, number)
            if len(set(found)) > 1:
                raise RuntimeError(f"the ranks would go on from different steps: {found}; do all see the same folder?")

    def wait(self) -> None:
        """Go on when every rank has come here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """The device of this process, of the kind `device`; within, it belongs to the group of `torchrun`, if any.

    Raises `ValueError` for one of several GPUs where each process has its own.
    """
    own = torch.device(device)
    if "RANK" not in os.environ:
        make_current(own)
        yield own
        return
    if own.index is not None:
        raise ValueError(f"each process takes a GPU of its own, not all of them {device}; give --device cuda")
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    make_current(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield own
        dist.barrier()  # ranks leave together: one that is gone takes the connections of the others with it
    finally:
        dist.destroy_process_group()


def wrap(reader: Reader, parallel: Parallel, device: torch.device) -> nn.Module:
    """`reader` so that a backward pass leaves the mean of all ranks' gradients.

    fsdp: its parameters become shards, block by block (Zhao et al. 2023, arXiv 2304.11277); optimizers come after.
    """
    if parallel == "none":
        return reader
    if parallel == "ddp":
        # a step may leave out a part of a model, such as a memory of which no text is long enough to make use
        return DistributedDataParallel(reader, find_unused_parameters=True)
    from torch.distributed.device_mesh import init_device_mesh  # slow to import, and seldom needed
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in reader.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(reader, mesh=mesh)  # in place
    return reader


def last_part(wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """The context of reading a part of a step: ranks exchange gradients once, after the last one, where they can."""
    if isinstance(wrapped, DistributedDataParallel) and not last:
        return wrapped.no_sync()
    return contextlib.nullcontext()


def whole(tree: Any) -> Any:
    """Nested dictionaries with every shard in them replaced by the whole tensor. All ranks must call it."""
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    return tree.full_tensor() if hasattr(tree, "full_tensor") else tree


def load_whole(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a module that may be sharded."""
    own = module.state_dict()
    module.load_state_dict(
        {name: _as(own[name], tensor) if name in own else tensor for name, tensor in tensors.items()}
    )


def load_whole_optimizer(optimizer: Optimizer, states: Mapping[int, Mapping[str, Tensor]]) -> None:
    """`load_state_dict` of whole tensors into an optimizer whose parameters may be sharded; its settings stay.

    states: of the parameters, by their number; each tensor is as its parameter, or a number.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {
        index: {key: _as(parameters[index], value) if value.ndim else value for key, value in values.items()}
        for index, values in states.items()
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": own})


def _as(own: Any, tensor: Tensor) -> Tensor:
    """This rank's shard of `tensor` if `own` is one, else the tensor."""
    if not hasattr(own, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
