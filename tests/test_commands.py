"""The README's commands, each run with small data and a small network; what the documents claim."""

import contextlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from checkpoints_for_tests import write_checkpoint
from sample_data import write_benchmark

import bench
import options
import prepare
import quickstart
import retrieve
import test
import train
from datasets import DATASETS, load_benchmark
from datasets.synthetic.benchmark import write_synthetic
from model.zse import published
from utils import speed
from utils.checkpoints import load_file
from utils.run_folder import BEST, LAST

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {file.name: file.read_text(encoding="utf-8") for file in DOCUMENTS}
COMMAND = re.compile(
    r"^(?:nohup )?(?:python (\S+)\.py|python -m (?!venv)(\S+)|torchrun \S+ (\S+)\.py) "
)
SMALL = shlex.split("--batch 3 --datasetLen 6 --epoch 1 -c cpu --num_workers 0")
NETWORK = ["--vit", "vit_mini_patch8_48", "--no-pretrained"]

BENCH = {
    "encode": ["--vit", "test_vit", "--repeat", "1"],
    "pairs": ["--vit", "test_vit", "--repeat", "1"],
    "metrics": shlex.split("--queries 30 --photos 30 --width 8 --classes 3"),
    "evaluate": ["--vit", "test_vit", "--images", "3"],
    "loader": shlex.split("--images 8 --size 64 --side 32 --num_workers 0"),
    "train": shlex.split("--vit test_vit --batch 3 --steps 1 --num_workers 0"),
    "gallery": shlex.split("--count 300 --width 8 --queries 20 --timed 2"),
}


def commands(document: str) -> list[str]:
    """Our commands in a document's blocks of bash, in order, as they are written."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT[document], flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if COMMAND.match(line + " ")]


def script_of(command: str) -> str:
    """train, test, ..., or the module's name."""
    return next(filter(None, COMMAND.match(command + " ").groups()))


def words(command: str) -> list[str]:
    """The arguments of a command, without what the shell and the launcher take."""
    command = COMMAND.sub("", command + " ", count=1)
    return shlex.split(re.sub(r"(> \S+|2>&1|&)", "", command))


# ---- the README's commands run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with all benchmarks."""
    root = tmp_path_factory.mktemp("data")
    for name, dataset in DATASETS.items():
        for split in dataset.splits:
            write_benchmark(root, name, split)
    return root


@pytest.fixture
def here(data, tmp_path, monkeypatch) -> Path:
    """The current folder, with the benchmarks in datasets/. Scripts run in this process."""
    (tmp_path / "datasets").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "SIDES", {"cpu": (64,)})
    scripts = {"train.py": train.main, "test.py": test.main}
    monkeypatch.setattr(
        quickstart, "_status_of", lambda command: scripts[Path(command[1]).name](command[2:])
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("command", dict.fromkeys(commands("README.md")))
def test_a_command_of_the_readme_runs(here, command):
    run = {
        "train": run_train,
        "test": run_test,
        "retrieve": run_retrieve,
        "prepare": run_prepare,
        "bench": run_bench,
        "quickstart": run_quickstart,
    }
    run[script_of(command)](words(command))


def run_train(arguments: list[str]) -> None:
    small = [*arguments, *([] if "--vit" in arguments else NETWORK), *SMALL]
    if "--resume" in arguments:
        assert train.main([word for word in small if word != "--resume"]) == 0
    assert train.main(small) == 0
    save = Path(options.train_options(small).save)
    assert (save / BEST).is_file() and load_file(save / LAST)["epoch"] == 1


def run_test(arguments: list[str]) -> None:
    args = options.test_options(arguments)
    stand_in(Path(args.load or Path(args.save) / BEST))
    assert test.main([*arguments, "-c", "cpu", "--num_workers", "0"]) == 0
    (result,) = Path(args.load or Path(args.save) / BEST).parent.glob("*.json")
    assert result.name == options.result_name(args, BEST, "json")


def run_retrieve(arguments: list[str]) -> None:
    args = options.retrieve_options(arguments)
    if args.task == "index":
        stand_in(Path(args.load))
    else:
        index = next(c for c in commands("README.md") if f"--out {args.gallery}" in c)
        run_retrieve(words(index))
    arguments = with_sketches_that_are_here(arguments)
    assert retrieve.main([*arguments, "-c", "cpu", "--num_workers", "0"]) == 0
    assert (Path(args.out) / {"index": "gallery.json", "search": "index.html"}[args.task]).is_file()


def run_prepare(arguments: list[str]) -> None:
    more = ["--data_path", "drawn", "--instances", "2", "--size", "32"]
    assert prepare.main([*arguments, *more]) == 0


def run_bench(arguments: list[str]) -> None:
    assert bench.main([*arguments, "-c", "cpu", *BENCH[arguments[0]]]) == 0


def run_quickstart(arguments: list[str]) -> None:
    more = shlex.split("-c cpu --batch 3 --datasetLen 6 --epoch 1")
    assert quickstart.main([*arguments, *more]) == 0
    save = Path(options.quickstart_options(arguments).save)
    assert len(list(save.glob("trained/*.rankings.png"))) == 2


def stand_in(path: Path) -> None:
    """Write a small checkpoint where a command names one that nobody has trained here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_checkpoint(path, classes=["pig"], vit="vit_mini_patch8_48")


def with_sketches_that_are_here(arguments: list[str]) -> list[str]:
    """The same with a drawn sketch in place of one of the whole benchmark."""
    sketch = str(sorted(Path("datasets/Synthetic/sketch").glob("*/*.png"))[0])
    return [sketch if word.endswith(".png") else word for word in arguments]


# ---- those of the other documents are understood


@pytest.mark.parametrize(
    ("document", "command"),
    [(name, command) for name in TEXT for command in dict.fromkeys(commands(name))],
)
def test_a_command_of_a_document_is_understood(document, command):
    parse = {
        "train": options.train_options,
        "test": options.test_options,
        "retrieve": options.retrieve_options,
        "prepare": options.prepare_options,
        "bench": options.bench_options,
        "quickstart": options.quickstart_options,
    }
    script = script_of(command)
    if script == "model.zse.published":
        assert len(words(command)) == 2
        return
    args = parse[script](words(command))
    if script == "quickstart":  # the rest is train.py's
        options.train_options(args.training)


def test_the_readme_has_commands_for_every_dataset_and_program():
    text = "\n".join(commands("README.md"))
    for word in ("train.py", "test.py", "prepare.py", "quickstart.py", "bench.py", "--resume"):
        assert word in text
    for word in ("retrieve.py index", "retrieve.py search", *set(DATASETS) - {"sketchy_extend"}):
        assert word in text
    assert "make demo" in TEXT["README.md"] and "make test" in TEXT["README.md"]


def test_the_training_on_drawn_objects_is_quickstarts():
    command = next(c for c in commands("README.md") if "train.py --dataset synthetic" in c)
    stages = f"{quickstart.NETWORK} {quickstart.TRAINING}"
    assert words(command) == ["--dataset", "synthetic", *shlex.split(stages)]


@pytest.mark.slow
def test_the_converter_runs_as_it_is_written(here, monkeypatch):
    of_module = (c for name in TEXT for c in commands(name) if "-m model.zse.published" in c)
    (command,) = of_module
    ours, theirs = words(command)
    stand_in(Path(ours))
    monkeypatch.setattr("sys.argv", ["published.py", ours, theirs])
    published._main()
    assert "sa.model.cls" in load_file(Path(theirs))["model"]


# ---- snippets


def snippets(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT[document], flags=re.DOTALL)


@pytest.mark.slow
def test_the_snippets_of_the_library_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_synthetic(tmp_path / "datasets", instances=2, size=48)
    stand_in(Path("checkpoints/quickstart/trained") / BEST)
    space, found = {}, snippets("library.md")
    assert len(found) > 5
    with contextlib.redirect_stdout(None):
        for number, snippet in enumerate(found):
            exec(compile(snippet, f"docs/library.md, snippet {number}", "exec"), space)
    assert len(space["answers"]) == 1 and space["built"].photos == len(space["folder"])
    assert space["evaluation"].metrics["average_precision"] > 0


def test_the_snippet_that_reduces_sketchy_keeps_25_files_a_class_and_their_lines(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_benchmark(tmp_path / "datasets", sketches=3, photos=30, size=8)
    exec(compile(snippets("results.md")[0], "docs/results.md", "exec"), {})
    reduced = load_benchmark(
        "sketchy_extend", "test_class_sketchy25", Path("datasets/sketchy_mini")
    )
    folders = Path("datasets/sketchy_mini/Sketchy/256x256/photo").glob("*/*")
    assert all(len(list(folder.iterdir())) <= 25 for folder in folders)
    assert len(reduced.queries) == 9  # all 3 sketches of 3 classes
    assert 0 < len(reduced.gallery) < 90


# ---- the trees, and links


def tree_of(text: str) -> set[Path]:
    """The files and folders that the block of a tree names."""
    block = text.split("## The tree")[1].split("```")[1]
    named, folders = set(), [ROOT]
    for line in block.strip("\n").splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth + 1 :] = [folders[depth] / name]
        named.add(folders[depth] / name)
    return named


def code() -> set[Path]:
    found = {path for path in ROOT.glob("**/*.py") if "tests" not in path.parts}
    return {
        path for path in found if not any(p.startswith(".") for p in path.relative_to(ROOT).parts)
    }


def test_the_tree_for_contributors_is_the_tree():
    named = tree_of((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert all(path.exists() for path in named), [p for p in named if not p.exists()]
    assert code() <= named, code() - named


def test_the_readme_names_every_room():
    named = tree_of(TEXT["README.md"])
    assert all(path.exists() for path in named)
    rooms = {path for path in code() if path.parent == ROOT}
    rooms |= {ROOT / path.relative_to(ROOT).parts[0] for path in code() - rooms}
    assert rooms <= named, rooms - named


@pytest.mark.parametrize("document", [*TEXT, "CONTRIBUTING.md"])
def test_links_between_the_documents_lead_somewhere(document):
    file = ROOT / document if (ROOT / document).exists() else ROOT / "docs" / document
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        other = (file.parent / path).resolve() if path else file
        assert other.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
            assert heading in anchors, target
