"""Names on a command line that no file can have: one sentence of every program, and no traceback.

Those of checkpoints are tried in tests/utils/test_checkpoints.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from sample_data import write_benchmark
from training_runs import run

import bench
import prepare
import quickstart
import test
from datasets.unlabelled import folder_images, named_images
from report.found import prepare_folder
from retrieval.building import _check_place
from retrieval.gallery import read_gallery
from utils.errors import InputError

LONG = "x" * 300


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root)
    return root


@pytest.fixture(params=[LONG, "loop", f"loop/{LONG}", "file/in it"])
def name(request, tmp_path, monkeypatch) -> str:
    """Of a place that cannot be, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file").touch()
    return request.param


USES: dict[str, Callable[[str, Path], object]] = {
    "train.py --save": lambda name, data: run(data, Path(name)),
    "train.py --cache_images": lambda name, data: run(data, Path("run"), "--cache_images", name),
    "train.py --data_path": lambda name, _: run(Path(name), Path("run")),
    "test.py --save": lambda name, _: test.main(["--save", name]),
    "prepare.py --data_path": lambda name, _: prepare.main(["synthetic", "--data_path", name]),
    "quickstart.py --save": lambda name, _: quickstart.main(["--save", name, "-c", "cpu"]),
    "retrieve.py --gallery": lambda name, _: read_gallery(Path(name)),
    "retrieve.py --sketch": lambda name, _: named_images([name], []),
    "retrieve.py --photos": lambda name, _: folder_images(name, "photo"),
    "retrieve.py search --out": lambda name, data: prepare_folder(Path(name), data),
    "retrieve.py index --out": lambda name, _: _check_place(Path(name)),
}
LATER = [("retrieve.py index --out", "file/in it"), ("retrieve.py --sketch", "loop")]
WRITTEN: dict[str, Callable[[str], object]] = {
    "test.py": lambda name: test.main(["--save_rankings", f"{name}.npz"]),
    "prepare.py": lambda name: prepare.main(["synthetic", "--sheet", name]),
    "bench.py": lambda name: bench.main(["metrics", "-c", "cpu", "--json", name]),
}


@pytest.mark.parametrize("use", USES)
def test_a_place_that_cannot_be_is_a_sentence(name, use, data):
    if (use, name) in LATER:
        pytest.skip("said where it is made or read")
    with pytest.raises(InputError) as error:
        USES[use](name, data)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", [LONG, f"{LONG}/a"], indirect=True)
@pytest.mark.parametrize("program", WRITTEN)
def test_a_file_that_cannot_be_is_refused_before_any_work(name, program):
    with pytest.raises(InputError, match=r"^--\w+ x*.*: (cannot be written|there is no folder)"):
        WRITTEN[program](name)
