"""Every command of the README runs, with its data and its network replaced by small ones."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from sample_data import write_benchmark

import bench
import prepare
import quickstart
import retrieve
import test
import train
from datasets import DATASETS, load_benchmark
from model import build_model, published
from utils.checkpoints import load_file, save_atomically
from utils.run_folder import BEST, LAST

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(
    r"^(?:nohup )?(python \S+\.py|python -m model\.published|torchrun \S+ \S+\.py) "
)
SMALL = shlex.split("--batch 3 --datasetLen 6 --epoch 1 -c cpu --num_workers 0")

OF_PAIRS = ["--vit", "test_vit", "--repeat", "1"]
BENCH = {
    "encode": OF_PAIRS,
    "pairs": OF_PAIRS,
    "metrics": shlex.split("--queries 30 --photos 30 --width 8 --classes 3"),
    "evaluate": ["--vit", "test_vit", "--images", "3"],
    "loader": shlex.split("--images 8 --size 64 --side 32 --num_workers 0"),
    "train": shlex.split("--vit test_vit --batch 3 --steps 1 --num_workers 0"),
    "gallery": shlex.split("--count 300 --width 8 --queries 20 --timed 2"),
}


def readme_commands() -> list[str]:
    """Commands in the README's shell blocks, in order, as they are written."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if COMMAND.match(line + " ")]


def words(command: str) -> list[str]:
    """The arguments of a command, without what the shell and the launcher take."""
    command = COMMAND.sub("", command + " ", count=1)
    return shlex.split(re.sub(r"(> \S+|2>&1|&)", "", command))


def with_small_network(arguments: list[str], data: Path) -> list[str]:
    """The same training command with a small network, few draws, and drawn data."""
    network = [] if "vit_mini_patch8_48" in arguments else ["--vit", "test_vit"]
    return [*arguments, *network, "--no-pretrained", *SMALL, "--data_path", str(data)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with all benchmarks, in which the commands run one after the other."""
    root = tmp_path_factory.mktemp("place")
    for dataset in DATASETS:
        write_benchmark(root / "datasets", dataset)
    write_benchmark(root / "datasets", "sketchy_extend", "test_class_sketchy21")
    return root


def test_the_readme_has_commands_for_every_dataset_and_program():
    commands = "\n".join(readme_commands())
    for word in (
        "train.py",
        "test.py",
        "prepare.py",
        "quickstart.py",
        "bench.py",
        "retrieve.py index",
        "retrieve.py search",
        "synthetic",
        "model.zse.published",
        "tu_berlin",
        "Quickdraw",
        "--resume",
    ):
        assert word in commands


def test_the_training_on_drawn_objects_is_quickstarts():
    command = next(c for c in readme_commands() if "train.py --dataset synthetic" in c)
    stages = f"{quickstart.NETWORK} {quickstart.TRAINING}"
    assert words(command) == ["--dataset", "synthetic", *shlex.split(stages)]


def test_every_command_of_the_readme_runs(place, monkeypatch):
    """In order and in one folder: tests score what the training commands before them wrote."""
    monkeypatch.chdir(place)
    for command in readme_commands():
        arguments = [word for word in words(command) if not word.startswith("--pretrained_path")]
        if "train.py" in command:
            resumes = "--resume" in arguments
            small = with_small_network(arguments, place / "datasets")
            assert train.main(small) == 0, command
            save = train.train_options(small).save
            assert (Path(save) / BEST).is_file(), command
            assert not resumes or load_file(Path(save) / LAST)["epoch"] == 1
        elif "test.py" in command:
            more = ["--data_path", "datasets", "-c", "cpu", "--num_workers", "0"]
            _stand_in_for_downloads(arguments)
            assert test.main([*arguments, *more]) == 0, command
        elif "prepare.py" in command:
            more = ["--data_path", "drawn", "--instances", "2", "--size", "32"]
            assert prepare.main([*arguments, *more]) == 0, command
        elif "bench.py" in command:
            more = ["-c", "cpu", *BENCH[arguments[0]]]
            assert bench.main([*arguments, *more]) == 0, command
        elif "retrieve.py" in command:
            assert retrieve.main([*_drawn_here(arguments), "-c", "cpu", "--num_workers", "0"]) == 0
            out = Path(arguments[arguments.index("--out") + 1])
            assert (out / ("index.html" if "search" in command else "gallery.json")).is_file()
        elif "quickstart.py" in command:
            more = shlex.split("-c cpu --batch 3 --datasetLen 6 --epoch 1")
            assert quickstart.main([*arguments, *more]) == 0, command
            save = Path(quickstart.quickstart_options(arguments).save)
            assert len(list(save.glob("trained/*.rankings.png"))) == 2, command
        else:
            monkeypatch.setattr("sys.argv", ["published.py", *arguments])
            published._main()
            assert Path(arguments[1]).is_file()


def _drawn_here(arguments: list[str]) -> list[str]:
    """The same with a sketch that is here in place of one of the whole benchmark."""
    sketches = sorted(Path("datasets/Synthetic/sketch").glob("*/*.png"))
    swapped = [str(sketches[0]) if word.endswith(".png") else word for word in arguments]
    return [str(sketches[0].parent) if "Synthetic/sketch/w" in word else word for word in swapped]


def _stand_in_for_downloads(arguments: list[str]) -> None:
    """Write a small checkpoint of ours where a command names one that nobody has trained here."""
    named = [arguments[i + 1] for i, word in enumerate(arguments) if word in ("-l", "--load")]
    for path in map(Path, named):
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        method = build_model("zse_sbir", vit="test_vit")
        content = {"format": 1, "method": method.name, "settings": method.settings}
        save_atomically(
            {**content, "model": method.state_dict(), "epoch": 1, "classes": ["pig"]}, path
        )


def test_the_snippet_that_reduces_sketchy_keeps_25_files_a_class_and_their_lines(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_benchmark(tmp_path / "datasets", sketches=3, photos=30, size=8)
    snippet = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    exec(compile(snippet, "README.md", "exec"), {})
    reduced = load_benchmark(
        "sketchy_extend", "test_class_sketchy25", Path("datasets/sketchy_mini")
    )
    folders = Path("datasets/sketchy_mini/Sketchy/256x256/photo").glob("*/*")
    assert all(len(list(folder.iterdir())) <= 25 for folder in folders)
    assert len(reduced.queries) == 9  # all 3 sketches of 3 classes
    assert 0 < len(reduced.gallery) < 90


def test_the_tree_in_the_readme_is_the_tree():
    root = Path(__file__).parent.parent
    block = README.split("## Files")[1].split("```")[1]
    named, folders = set(), [root]
    for line in block.strip("\n").splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth + 1 :] = [folders[depth] / name]
        named.add(folders[depth] / name)
    assert all(path.exists() for path in named), [p for p in named if not p.exists()]
    code = {
        p
        for folder in ("model", "datasets", "datasets/drawn", "retrieval", "utils")
        for p in root.glob(f"{folder}/*.py")
    }
    code |= set(root.glob("*.py"))
    assert code <= named, code - named
