"""Devices, and what several processes share."""

import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from utils import distributed
from utils.distributed import (
    any_process,
    broadcast,
    choose_device,
    from_main,
    gather_objects,
    gather_rows,
    init_processes,
    is_lost_process,
    leave_processes,
    mean_over_processes,
    running_on,
    wait_for_all,
)
from utils.errors import InputError
from utils.world import is_main, rank, world_size

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
CONVERSATION = """
import json, os, sys, torch
from utils.distributed import *

init_processes(torch.device("cpu"))
mine = torch.tensor([float(rank()), 10.0])
said = {
    "rank": rank(),
    "is_main": is_main(),
    "mean": mean_over_processes(mine).tolist(),
    "mine": mine.tolist(),
    "any": any_process(rank() == 1, True, False, rank() == 0),
    "none": any_process(),
    "gathered": gather_objects({"rank": rank(), "list": [None] * rank()}),
    "from main": from_main({"rank": rank(), "list": [None] * (2 - rank())}),
}
for source in (0, 1):
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64):
        with torch.inference_mode():
            tensor = torch.full((2, 3), 5 + rank(), dtype=dtype)
            tensor[1] += 2
            broadcast(tensor, source)
            broadcast(torch.empty(0, 3, dtype=dtype), source)
        said[f"{dtype} of {source}"] = [tensor.tolist(), tensor.dtype == dtype]
rows = (torch.arange(6.0).view(3, 2) + 10 * rank()).requires_grad_()
gathered = gather_rows(rows)
said["rows"] = gathered.tolist()
# Each process weighs the rows otherwise: what comes back is the sum of both.
weighed = gathered * torch.arange(1.0, 7.0)[:, None] * (1 + 99 * rank())
weighed.sum().backward()
said["gradients of rows"] = rows.grad.tolist()
said["targets"] = gather_rows(torch.tensor([rank(), 7])).tolist()
part = torch.arange(8.0).view(2, 4)[:, ::2].T  # not contiguous
said["strided"] = gather_rows(part + rank()).tolist()
wait_for_all()
leave_processes()
said["after"] = any_process(rank() == 1)
said["rows after"] = gather_rows(torch.tensor([rank()])).tolist()
said["main after"] = from_main(rank())
print(json.dumps(said), flush=True)

os.environ["MASTER_PORT"] = sys.argv[1]
init_processes(torch.device("cpu"))
wait_for_all()
if rank() == 1:
    os._exit(3)
try:
    while True:
        any_process(False)
except Exception as error:
    print(is_lost_process(error), flush=True)
os._exit(0)  # without goodbye to the other
"""


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_the_cpu_is_chosen_by_name_without_a_warning(monkeypatch, caplog):
    gpus(monkeypatch, 2)
    assert choose_device("cpu") == CPU and caplog.messages == []


def test_without_a_gpu_the_cpu_is_used_with_one_warning(monkeypatch, caplog):
    gpus(monkeypatch, 0)
    assert choose_device("0") == CPU
    (message,) = caplog.messages
    assert "-c cpu" in message and caplog.records[0].levelname == "WARNING"


def test_without_a_gpu_only_the_main_process_warns(monkeypatch, caplog):
    gpus(monkeypatch, 0)
    monkeypatch.setenv("RANK", "1")
    assert choose_device("0") == CPU and caplog.messages == []


def test_a_gpu_is_chosen_by_its_number(monkeypatch):
    gpus(monkeypatch, 2)
    assert choose_device("1") == torch.device("cuda", 1)


def test_a_number_that_is_not_there_says_which_are(monkeypatch):
    gpus(monkeypatch, 2)
    with pytest.raises(InputError, match="-c 2: this machine has GPUs 0 to 1"):
        choose_device("2")


def test_under_torchrun_every_process_takes_its_own_gpu(monkeypatch):
    gpus(monkeypatch, 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("0") == torch.device("cuda", 3)


def test_one_process_is_a_world_of_one():
    init_processes(torch.device("cpu"))
    assert (world_size(), rank(), is_main()) == (1, 0, True)
    assert any_process(True, False) == [True, False] and any_process() == []
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather_rows(rows) is rows
    assert mean_over_processes(torch.tensor(3.0)) == 3
    assert gather_objects("mine") == ["mine"]
    content, tensor = {"mine": [1]}, torch.tensor([1.0, 2.0])
    assert from_main(content) is content
    for source in (0, 1):
        broadcast(tensor, source)
    assert content == {"mine": [1]} and tensor.tolist() == [1, 2]
    wait_for_all()
    leave_processes()


@pytest.fixture
def order(monkeypatch):
    """What running_on() does, in order."""
    done = []
    for name in ("keep_freed_memory", "init_processes", "leave_processes"):
        note = lambda *_, name=name: done.append(name)  # noqa: E731
        monkeypatch.setattr(distributed, name, note)
    return done


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), InputError("no such file.")])
def test_a_script_runs_among_the_others_until_its_end_whatever_that_is(order, error):
    with pytest.raises(type(error)) if error else nullcontext(), running_on("cpu") as device:
        assert device == CPU
        order.append("script")
        if error:
            raise error
    assert order == ["keep_freed_memory", "init_processes", "script", "leave_processes"]


def test_on_a_gpu_freed_memory_is_no_concern(monkeypatch, order):
    gpus(monkeypatch, 2)
    with running_on("1") as device:
        assert device == torch.device("cuda", 1)
    assert order == ["init_processes", "leave_processes"]


def test_where_the_device_is_not_there_no_process_is_joined(monkeypatch, order):
    gpus(monkeypatch, 1)
    with pytest.raises(InputError, match="-c 3"), running_on("3"):
        pytest.fail("there is no such GPU")
    assert order == []


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistNetworkError("the connection was reset"), True),
        (dist.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."), False),
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        (MemoryError(), False),
        (ValueError("gloo"), False),
    ],
)
def test_errors_that_say_a_process_has_gone_are_known_among_others(error, lost):
    assert is_lost_process(error) == lost


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def ended():
    """What two processes printed that talked before the second one was gone, and how they ended."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    again = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERSATION, again],
            cwd=REPOSITORY,
            env={**os.environ, **world, "RANK": str(number), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        printed = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return printed, [process.returncode for process in processes]


@pytest.mark.slow
def test_an_error_of_torch_about_a_process_that_has_gone_is_known(ended):
    printed, codes = ended
    assert printed[0][1:] == ["True"] and codes == [0, 3]


def test_two_processes_agree(ended):
    printed, _ = ended
    for number, lines in enumerate(printed):
        assert json.loads(lines[0]) == {
            "rank": number,
            "is_main": number == 0,
            "mean": [0.5, 10.0],
            "mine": [number, 10.0],
            "any": [True, True, False, True],
            "none": [],
            "gathered": [{"rank": 0, "list": []}, {"rank": 1, "list": [None]}],
            "from main": {"rank": 0, "list": [None, None]},
            "rows": [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]],
            "gradients of rows": [[101 * row] * 2 for row in range(1 + 3 * number, 4 + 3 * number)],
            "targets": [0, 7, 1, 7],
            "strided": [[0, 4], [2, 6], [1, 5], [3, 7]],
            "after": [number == 1],
            "rows after": [number],
            "main after": number,
            **{
                f"torch.{dtype} of {source}": [[[5 + source] * 3, [7 + source] * 3], True]
                for dtype in ("float32", "float16", "bfloat16", "int64")
                for source in (0, 1)
            },
        }
