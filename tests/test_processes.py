"""Training in several processes: the gradient of one, and the same draws in any number."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sample_data import write_benchmark

from utils.checkpoints import load_file
from utils.run_folder import LAST, LOG

ROOT = Path(__file__).parent.parent
GRADIENT = """
import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

import options
from datasets import load_benchmark
from training.batches import EpochSampler, build_batches
from datasets.images import Preprocessing
from training.loop import losses_of, on_device
from model import build_model
from utils.distributed import init_processes, leave_processes
from utils.world import is_main, rank, world_size

file, *words = sys.argv[1:]
args = options.train_options(words)
cpu = torch.device("cpu")
init_processes(cpu)
images = load_benchmark(args.dataset, args.test_class, Path(args.data_path), validation=False).train
torch.manual_seed(0)
settings = options.settings_of(args) | options.loss_settings(args) | {"classes": 6}
method = build_model("zse_sbir", **settings).train()
model = DistributedDataParallel(method) if world_size() > 1 else method
preprocessing = Preprocessing(**method.inputs)
sampler = EpochSampler(args.datasetLen, args.batch, rank(), world_size())
draws = options.draw_settings(args)
kind = method.batches
loader = build_batches(kind, images, preprocessing, sampler, draw_settings=draws, workers=0)
for batch in loader:  # whitening has seen something from the second step on
    batch.pop("unreadable")
    method.zero_grad()
    batch = on_device(batch, cpu, preprocessing.normalise)
    losses = losses_of(model, batch, 0.0, cpu, torch.float32)
    losses["total"].backward()
if is_main():
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    torch.save({"gradients": gradients, "buffers": dict(method.named_buffers())}, file)
leave_processes()
"""
NETWORK = ["--vit", "vit_mini_patch8_48", "--no-pretrained", "-c", "cpu", "--num_workers", "0"]
NETWORK += ["--dropout", "0"]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root)
    return root


def python(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said_at_the_end(process: subprocess.Popen, status: int = 0) -> str:
    """What a process wrote, once it has ended, with this exit status."""
    said = process.communicate(timeout=240)[0]
    assert process.returncode == status, said
    return said


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("paper", ""),
        ("strong", "--learn_temperature --per_class 2 --own_photo 0.5"),
        ("strong", "--no-whitening --shortcut"),  # with both, rounding grows on untrained weights
    ],
)
def test_the_gradient_of_two_processes_is_that_of_one_with_twice_the_batch(
    data, tmp_path, recipe, more
):
    script = tmp_path / "gradient.py"
    script.write_text(GRADIENT)
    words = [*NETWORK, "--data_path", str(data), "--recipe", recipe, "--datasetLen", "12"]
    words += ["--contrastive_weight", "1", "--triplet_weight", "2", "--relation_weight", "4"]
    words += more.split()
    found = {}
    for batch, launcher in ((3, TORCHRUN), (6, ())):
        file = tmp_path / f"{batch}.pth"
        said_at_the_end(python(*launcher, str(script), str(file), *words, "--batch", str(batch)))
        found[batch] = load_file(file)
    two, one = found[3], found[6]
    assert two["gradients"].keys() == one["gradients"].keys()
    assert one["gradients"]["tokenizer.vit.pos_embed"].abs().max() > 1e-4
    for kind in ("gradients", "buffers"):
        for name, tensor in one[kind].items():
            largest = max(1.0, float(tensor.abs().max()))
            assert torch.allclose(two[kind][name], tensor, rtol=0, atol=1e-5 * largest), name


def training(data: Path, save: Path, *more: str) -> list[str]:
    words = [*NETWORK, "--data_path", str(data), "-s", str(save), "--validate", "none"]
    return ["train.py", *words, "--learning_rate", "1e-4", "--amp", "off", *more]


def process_of_rank(number: int, launcher: subprocess.Popen) -> int:
    """The process that torchrun started with this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher.pid and f"\0RANK={number}\0" in (folder / "environ").read_text():
                return int(folder.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f"no process of rank {number}")


def wait_for(file: Path, words: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not (file.is_file() and words in file.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def wait_for_a_step(checkpoint: Path, process: subprocess.Popen) -> None:
    """Until one within the epoch is saved."""
    deadline = time.monotonic() + 120
    while not (checkpoint.is_file() and load_file(checkpoint)["step"]):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="looks for processes in /proc, which only Linux has"
)


@NEEDS_PROC
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_and_leaves_a_checkpoint_to_resume(data, tmp_path, rank):
    save = tmp_path / "run"
    words = ["--epoch", "1", "--datasetLen", "3000", "--save_minutes", "0.005"]
    run = python(*TORCHRUN, *training(data, save, *words, "--batch", "3"))
    wait_for_a_step(save / LAST, run)
    os.kill(process_of_rank(rank, run), signal.SIGKILL)
    began = time.monotonic()
    said = run.communicate(timeout=60)[0]
    assert run.returncode != 0 and time.monotonic() - began < 60
    if rank == 1:
        assert "another process of this run has gone" in said
    step = load_file(save / LAST)["step"]
    assert 0 < step < 500
    resumed = python(*training(data, save, *words, "--batch", "6", "--resume"))
    wait_for(save / LOG, f"resumes in epoch 1 after step {step}", resumed)
    resumed.send_signal(signal.SIGTERM)
    assert "Traceback" not in said_at_the_end(resumed, 128 + signal.SIGTERM)
    assert load_file(save / LAST)["draws"] == 6 * load_file(save / LAST)["step"] > 6 * step


@NEEDS_PROC
def test_a_run_goes_on_with_the_same_draws_in_another_number_of_processes(data, tmp_path):
    """At a learning rate of 0: what whitening has seen tells which images came, and when."""
    words = ["--epoch", "1", "--datasetLen", "900", "--learning_rate", "0"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    said_at_the_end(python(*training(data, whole, *words, "--batch", "6")))
    save_often = ("--save_minutes", "0.005")
    started = python(*TORCHRUN, *training(data, parted, *words, "--batch", "3", *save_often))
    wait_for_a_step(parted / LAST, started)
    os.kill(process_of_rank(0, started), signal.SIGTERM)
    assert "Stopped by a signal" in started.communicate(timeout=60)[0]
    stopped = load_file(parted / LAST)
    assert 0 < stopped["draws"] == 6 * stopped["step"] < 900 and stopped["processes"] == 2
    said_at_the_end(python(*training(data, parted, *words, "--batch", "6", "--resume")))
    one, other = (load_file(save / LAST)["model"] for save in (whole, parted))
    for name in ("means", "covariance", "batches"):
        name = f"whitening.{name}"
        assert torch.allclose(other[name], one[name], rtol=0, atol=1e-5), name
        assert not torch.equal(stopped["model"][name], one[name]), name


def test_the_same_command_goes_on_in_fewer_processes_with_a_word(data, tmp_path):
    words = ["--datasetLen", "24", "--schedule", "constant", "--batch", "3"]
    said_at_the_end(python(*TORCHRUN, *training(data, tmp_path, *words, "--epoch", "1")))
    said = said_at_the_end(python(*training(data, tmp_path, *words, "--epoch", "2", "--resume")))
    assert "2 processes x --batch 3 then, 1 x 3 now" in said
    assert load_file(tmp_path / LAST)["epoch"] == 2
    refused = python(*training(data, tmp_path, *words, "--epoch", "3", "--resume", "--batch", "4"))
    assert "--batch 3 (now 4)" in said_at_the_end(refused, 1)
