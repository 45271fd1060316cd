"""Devices, and what several processes tell each other."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.distributed import (
    any_process,
    broadcast,
    choose_device,
    from_main,
    gather_objects,
    init_processes,
    is_main,
    leave_processes,
    mean_over_processes,
    rank,
    wait_for_all,
    world_size,
)
from utils.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
CONVERSATION = """
import json, torch
from utils.distributed import *

init_processes(torch.device("cpu"))
cpu, mine = torch.device("cpu"), torch.tensor([float(rank()), 10.0])
said = {
    "rank": rank(),
    "is_main": is_main(),
    "mean": mean_over_processes(mine).tolist(),
    "mine": mine.tolist(),
    "one": any_process(rank() == 1, cpu),
    "both": any_process(True, cpu),
    "none": any_process(False, cpu),
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
wait_for_all()
leave_processes()
said["after"] = any_process(rank() == 1, cpu)
said["main after"] = from_main(rank())
print(json.dumps(said))
"""


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_the_cpu_is_chosen_by_name_without_a_word(monkeypatch, caplog):
    gpus(monkeypatch, 2)
    assert choose_device("cpu") == CPU and caplog.messages == []


def test_without_a_gpu_the_cpu_is_taken_with_one_warning(monkeypatch, caplog):
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
    assert any_process(True, CPU) and not any_process(False, CPU)
    assert mean_over_processes(torch.tensor(3.0)) == 3
    assert gather_objects("mine") == ["mine"]
    content, tensor = {"mine": [1]}, torch.tensor([1.0, 2.0])
    assert from_main(content) is content
    for source in (0, 1):
        broadcast(tensor, source)
    assert content == {"mine": [1]} and tensor.tolist() == [1, 2]
    wait_for_all()
    leave_processes()


def test_only_the_first_process_is_the_main_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert (world_size(), rank(), is_main()) == (2, 1, False)


def test_two_processes_agree():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERSATION],
            cwd=REPOSITORY,
            env={**os.environ, **world, "RANK": str(number), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        said = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    for number, words in enumerate(said):
        assert words == {
            "rank": number,
            "is_main": number == 0,
            "mean": [0.5, 10.0],
            "mine": [number, 10.0],
            "one": True,
            "both": True,
            "none": False,
            "gathered": [{"rank": 0, "list": []}, {"rank": 1, "list": [None]}],
            "from main": {"rank": 0, "list": [None, None]},
            "after": number == 1,
            "main after": number,
            **{
                f"torch.{dtype} of {source}": [[[5 + source] * 3, [7 + source] * 3], True]
                for dtype in ("float32", "float16", "bfloat16", "int64")
                for source in (0, 1)
            },
        }
