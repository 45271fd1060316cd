"""The device, and what processes share; one process is a world of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import InputError
from utils.logs import log
from utils.memory import keep_freed_memory
from utils.workers import data_workers
from utils.world import is_main, rank, world_size


@contextmanager
def running_on(choice: str) -> Iterator[torch.device]:
    """The device that -c names, with this process joined to the others until the end.

    On CPUs, freed memory is kept from here on (utils/memory.py). Data workers end with it
    (utils/workers.py). Raises the InputError of choose_device.
    """
    device = choose_device(choice)
    if device.type == "cpu":
        keep_freed_memory()
    init_processes(device)
    try:
        with data_workers():
            yield device
    finally:
        leave_processes()


def init_processes(device: torch.device) -> None:
    """Join the other processes; nothing to do for a single one.

    Tensors on GPUs are shared through NCCL, those on CPUs, and objects, through gloo.
    """
    if world_size() == 1:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # A process may be done with its share long before another; torchrun ends all when one fails.
    dist.init_process_group(backend, timeout=timedelta(days=1))


def leave_processes() -> None:
    """Undo init_processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return once every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def any_process(*flags: bool) -> list[bool]:
    """Whether each flag is True in any process; all must call this at the same point."""
    if not dist.is_initialized():
        return list(flags)
    shared = torch.tensor(flags, dtype=torch.uint8)  # on the CPU: no GPU has to be waited for
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return shared.bool().tolist()


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over the processes."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world_size()


def gather_objects(content: object) -> list:
    """The objects of all processes, by rank; any that can be pickled."""
    if not dist.is_initialized():
        return [content]
    gathered: list = [None] * world_size()
    dist.all_gather_object(gathered, content)
    return gathered


def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, by rank, in every process: (R, ...) -> (world R, ...).

    Differentiable: the gradient of a row goes back to its process. All have equally many rows.
    """
    return _GatheredRows.apply(tensor) if dist.is_initialized() else tensor


def from_main(content: object) -> object:
    """The object of the first process, in every process; any that can be pickled."""
    if not dist.is_initialized():
        return content
    brought = [content]
    dist.broadcast_object_list(brought, src=0)
    return brought[0]


def broadcast(tensor: torch.Tensor, source: int) -> None:
    """Fill the tensor, in every process, with that of the process of this rank."""
    if dist.is_initialized():
        dist.broadcast(tensor, src=source)


def is_lost_process(error: BaseException) -> bool:
    """Whether an error means that another process has gone."""
    lost = (dist.DistNetworkError, dist.DistBackendError)
    return isinstance(error, lost) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def choose_device(name: str) -> torch.device:
    """'cpu', or the GPU of that number (under torchrun: this process's own).

    Without any GPU the CPU, with a warning. Raises InputError for a number that is not there.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if is_main():
            log.warning(
                "no GPU that torch can use: running on the CPU (-c cpu avoids this warning)."
            )
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", name))
    if index >= torch.cuda.device_count():
        raise InputError(f"-c {index}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}.")
    return torch.device("cuda", index)


class _GatheredRows(torch.autograd.Function):
    """torch's own (distributed.nn.functional.all_gather) is deprecated, its successor is new."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]
