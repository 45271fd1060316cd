"""Training in several processes: the gradient of one, and the same draws in any number."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from copies import PATIENCE, ROOT, Script, end_well, start_together
from sample_data import write_benchmark
from training_runs import lines, one_thread, run, saved_step, words

from utils.checkpoints import load_file
from utils.errors import InputError
from utils.run_folder import LAST, LOG

GRADIENT = """
import sys
from dataclasses import replace

import torch
from torch.nn.parallel import DistributedDataParallel

import options
from datasets import load_benchmark
from datasets.images import Preprocessing
from model import build_model
from training.batches import EpochSampler, build_batches
from training.loop import losses_of, on_device
from utils.distributed import init_processes, leave_processes
from utils.world import is_main, rank, world_size

file, *words = sys.argv[1:]
args = options.train_options(words)
settings = args.settings
cpu = torch.device("cpu")
init_processes(cpu)
images = load_benchmark(args.dataset, args.test_class, args.data_path, validation=False).train
torch.manual_seed(0)
method = build_model(settings, classes=6).train()
model = DistributedDataParallel(method) if world_size() > 1 else method
preprocessing = Preprocessing(**method.inputs)
sampler = EpochSampler(settings.draws_an_epoch, settings.batch, rank(), world_size())
draws = {"seed": args.seed, "skip_bad": False, "augmentation": settings.augment}
draws |= {"per_class": settings.per_class, "own_photo": settings.own_photo}
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
STOPPED_IN_A_STEP = """
import os, runpy, signal
from training.run import Run

seed = Run._seed

def seed_and_stop(run, step):
    seed(run, step)
    if step == {step} and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGTERM)

Run._seed = seed_and_stop
runpy.run_path("train.py", run_name="__main__")
"""
MORE = ["--validate", "none", "--dropout", "0", "--learning_rate", "1e-4"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root)
    return root


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


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
    options = [*MORE, "--recipe", recipe, "--datasetLen", "12", *more.split()]
    options += ["--contrastive_weight", "1", "--triplet_weight", "2", "--relation_weight", "4"]
    started = []
    for count in (2, 1):
        batch = ["--batch", str(6 // count)]
        command = [tmp_path / f"{count}.pth", *words(data, tmp_path, *options, *batch)]
        started += start_together(script, *command, count=count)
    end_well(started)
    two, one = (load_file(tmp_path / f"{count}.pth") for count in (2, 1))
    assert two["gradients"].keys() == one["gradients"].keys()
    assert one["gradients"]["tokenizer.vit.pos_embed"].abs().max() > 1e-4
    for kind in ("gradients", "buffers"):
        for name, tensor in one[kind].items():
            largest = max(1.0, float(tensor.abs().max()))
            assert torch.allclose(two[kind][name], tensor, rtol=0, atol=1e-5 * largest), name


# ---- a process that is killed

LONG = ["--epoch", "1", "--datasetLen", "3000", "--save_minutes", "0.005"]


def goes_on_in_one_process(data: Path, save: Path, *more: str) -> None:
    """Go on with a run of two processes, of which one was killed."""
    step = saved_step(save)
    assert 0 < step < 500
    options = [*MORE, *LONG, *more, "--batch", "6", "--resume"]
    resumed = Script(ROOT / "train.py", *words(data, save, *options))
    try:
        begins = f"resumes in epoch 1 after step {step}"
        resumed.wait_for(lambda: begins in (save / LOG).read_text())
        resumed.send(signal.SIGTERM)
        assert resumed.wait() == 128 + signal.SIGTERM, resumed.output
    finally:
        resumed.end()
    assert "Traceback" not in resumed.output
    assert load_file(save / LAST)["draws"] == 6 * saved_step(save) > 6 * step


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_and_leaves_a_checkpoint_to_resume(data, tmp_path, rank):
    options = words(data, tmp_path, *MORE, *LONG, "--batch", "3")
    processes = start_together(ROOT / "train.py", *options)
    killed, other = processes[rank], processes[1 - rank]
    try:
        killed.wait_for(lambda: saved_step(tmp_path))
        killed.send(signal.SIGKILL)
        began = time.monotonic()
        assert other.wait() == 1 and time.monotonic() - began < 60
    finally:
        for process in processes:
            process.end()
    assert "another process of this run has gone" in other.output
    assert "Traceback" not in other.output
    goes_on_in_one_process(data, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="looks for processes in /proc, which only Linux has"
)
def test_torchrun_ends_with_a_process_that_is_killed(data, tmp_path):
    network = ["--vit", "vit_mini_patch8_48"]  # one that torchrun's processes know
    options = [*MORE, *LONG, *network, "--batch", "3"]
    launcher = subprocess.Popen(
        [sys.executable, *TORCHRUN, "train.py", *words(data, tmp_path, *options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not saved_step(tmp_path):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process_of_rank(1, launcher), signal.SIGKILL)
    said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode != 0
    assert "another process of this run has gone" in said
    goes_on_in_one_process(data, tmp_path, *network)


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


# ---- another number of processes


def test_a_run_goes_on_with_the_same_draws_in_another_number_of_processes(data, tmp_path):
    """At a learning rate of 0: what whitening has seen tells which images came, and when."""
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    options = [*MORE, "--epoch", "1", "--datasetLen", "36", "--learning_rate", "0"]
    assert run(data, whole, *options, "--batch", "6") == 0
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED_IN_A_STEP.format(step=2))
    started = start_together(script, *words(data, parted, *options, "--batch", "3"))
    status = [process.wait() for process in started]
    assert status[0] == 128 + signal.SIGTERM and status[1] > 0
    assert "Stopped by a signal" in started[0].output
    stopped = load_file(parted / LAST)
    assert (stopped["step"], stopped["draws"], stopped["processes"]) == (3, 18, 2)
    assert run(data, parted, *options, "--batch", "6", "--resume") == 0
    assert lines(parted, "steps")[-1]["step"] == 6
    one, other = (load_file(save / LAST)["model"] for save in (whole, parted))
    for name in ("means", "covariance", "batches"):
        name = f"whitening.{name}"
        assert torch.allclose(other[name], one[name], rtol=0, atol=1e-5), name
        assert not torch.equal(stopped["model"][name], one[name]), name
    for process in started:  # the signal came to the first one alone
        assert "Traceback" not in process.output, process.output


def test_the_same_command_goes_on_in_fewer_processes_with_a_warning(data, tmp_path, caplog):
    options = [*MORE, "--datasetLen", "12", "--schedule", "constant", "--batch", "3"]
    first = words(data, tmp_path, *options, "--epoch", "1")
    end_well(start_together(ROOT / "train.py", *first))
    assert run(data, tmp_path, *options, "--epoch", "2", "--resume") == 0
    assert "2 processes x --batch 3 then, 1 x 3 now" in caplog.text
    assert load_file(tmp_path / LAST)["epoch"] == 2
    with pytest.raises(InputError, match=r"--batch 3 \(now 4\)"):
        run(data, tmp_path, *options, "--epoch", "3", "--resume", "--batch", "4")
