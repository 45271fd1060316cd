"""Measuring: seconds, operations, memory, and the peak of the machine to compare with."""

import math
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

SIDES = {"cpu": (2048, 4096), "cuda": (4096, 8192)}
"""Sides of the square matrices whose products measure the peak speed, by type of device."""


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """The time until the device has finished."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def median_seconds(run: Callable[[], object], device: torch.device, repeat: int) -> float:
    """After a warm-up, the median of so many measurements."""
    run()
    return statistics.median(seconds_of(run, device) for _ in range(repeat))


def peak_speed(device: torch.device, dtype: torch.dtype) -> float:
    """The highest speed of a product of matrices with one of SIDES, in operations a second."""
    speeds = []
    for side in SIDES[device.type]:
        matrix = torch.randn(side, side, device=device).to(dtype)
        speeds.append(2 * side**3 / median_seconds(lambda m=matrix: m @ m, device, repeat=9))
    return max(speeds)


def operations_of(run: Callable[[], object]) -> int:
    """Multiplications and additions of matrix products and convolutions."""

    def attention(query, key, *_, **__):  # on CPUs, which torch's counter leaves out
        return 4 * math.prod(query) * key[2]

    def attention_back(gradient, query, key, *_, **__):  # as torch counts it: one product again
        return 10 * math.prod(query) * key[2]

    aten = torch.ops.aten
    uncounted = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_back,
        aten.addmm_: lambda total, a, b, **_: 2 * math.prod(a) * b[1],
    }
    with FlopCounterMode(display=False, custom_mapping=uncounted) as counter:
        run()
    return counter.get_total_flops()


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: of tensors on the GPU, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def machine(device: torch.device) -> str:
    """The GPU, or the processor and how many threads compute."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, about = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if about.exists():
        lines = about.read_text(encoding="utf-8").splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"
