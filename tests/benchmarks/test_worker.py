"""What the end of a case is called, from the errors that the libraries really raise."""

import pytest
import torch
from mixerzoo.benchmarks.errors import NotFiniteError
from mixerzoo.benchmarks.worker import classify

TRIED = "Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 88.44 MiB is free."
# torch raises a type of its own for the CUDA runtime since 2.8
AcceleratorError = getattr(torch, "AcceleratorError", RuntimeError)


class OutOfResources(Exception):
    """As in `triton.runtime.errors`, which is not installed everywhere; no RuntimeError."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError(f"CUDA out of memory. {TRIED}"),
        # of the CUDA runtime, the driver, and Triton's launcher, which loads a kernel's code into what is left
        AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        # of the libraries
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        # what a compiler makes of the allocator's error
        RuntimeError(f"backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. {TRIED}"),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:60],
)
def test_memory_that_ran_out_is_called_so(error):
    assert classify(error) == "out_of_memory"


def test_the_cpu_allocator_is_called_so_in_its_own_words():
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**50)
    assert classify(found.value) == "out_of_memory"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        # of a multiprocessor: a kernel's tiles are too large for the card, whatever the batch
        (OutOfResources("out of resource: shared memory, Required: 131072, Hardware limit: 101376."), "crashed"),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "crashed"),
        (AcceleratorError("CUDA error: an illegal memory access was encountered"), "crashed"),
        (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), "crashed"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), "crashed"),
        (ValueError("out of memory: a word in a message"), "invalid"),
        (NotFiniteError("loss is nan"), "not_finite"),
        (FloatingPointError("x is nan"), "not_finite"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_other_ends_are_not_memory(error, status):
    assert classify(error) == status


def test_the_kernel_error_of_the_installed_triton_is_not_memory():
    errors = pytest.importorskip("triton.runtime.errors", reason="triton is not installed")
    assert classify(errors.OutOfResources(131072, 101376, "shared memory")) == "crashed"
