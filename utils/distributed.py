"""Rank, world size and device as torchrun gives them; one process is a world of one."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import InputError
from utils.logs import log


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def init_processes(device: torch.device) -> None:
    """Join the other processes (NCCL on GPUs, gloo on CPUs); nothing to do for a single one."""
    if world_size() == 1:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
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


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process; all must ask at the same point."""
    if not dist.is_initialized():
        return flag
    shared = torch.tensor(float(flag), device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return bool(shared.item())


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over the processes."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world_size()


def gather_objects(content: object) -> list:
    """What every process brings, by rank; any object that can be pickled."""
    if not dist.is_initialized():
        return [content]
    gathered: list = [None] * world_size()
    dist.all_gather_object(gathered, content)
    return gathered


def from_main(content: object) -> object:
    """What the first process brings, in every process; any object that can be pickled."""
    if not dist.is_initialized():
        return content
    brought = [content]
    dist.broadcast_object_list(brought, src=0)
    return brought[0]


def broadcast(tensor: torch.Tensor, source: int) -> None:
    """Fill the tensor, in every process, with that of the process of this rank."""
    if dist.is_initialized():
        dist.broadcast(tensor, src=source)


def choose_device(name: str) -> torch.device:
    """'cpu', or the GPU of that number (under torchrun: this process's own).

    Without any GPU the CPU, with a warning. Raises InputError for a number that is not there.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if is_main():
            log.warning("no GPU that torch can use: running on the CPU (-c cpu says so at once).")
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", name))
    if index >= torch.cuda.device_count():
        raise InputError(f"-c {index}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}.")
    return torch.device("cuda", index)
