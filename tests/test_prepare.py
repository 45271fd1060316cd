"""prepare.py as a user calls it."""

from contextlib import redirect_stdout
from io import StringIO

import pytest
from PIL import Image

import prepare
from utils.errors import InputError

SMALL = ("--instances", 2, "--size", 32)


def run(root, *more):
    return prepare.main(["synthetic", "--data_path", str(root), *map(str, more)])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of a small benchmark, and what was printed; no test may change it."""
    root, printed = tmp_path_factory.mktemp("drawn"), StringIO()
    with redirect_stdout(printed):
        assert run(root, *SMALL) == 0
    return root, printed.getvalue()


def test_synthetic_draws_what_is_wanted_and_prints_where(drawn):
    root, printed = drawn
    assert str(root / "Synthetic") in printed.splitlines()[-1]
    with Image.open(root / "Synthetic/photo/cup/cup_001.jpg") as photo:
        assert photo.size == (32, 32)
    assert not (root / "Synthetic/photo/cup/cup_002.jpg").exists()


def test_a_second_call_draws_nothing_and_another_drawing_is_refused(drawn):
    root, _ = drawn
    file = root / "Synthetic/sketch/cup/cup_000.png"
    former = file.read_bytes()
    file.write_bytes(b"mine")
    try:
        assert run(root, *SMALL) == 0
        assert file.read_bytes() == b"mine"
        with pytest.raises(InputError, match=r"'instances': 2.*Delete it"):
            run(root, "--instances", 3, "--size", 32)
        assert file.read_bytes() == b"mine"
    finally:
        file.write_bytes(former)


def test_the_sheet_shows_photos_and_sketches(drawn, tmp_path):
    root, _ = drawn
    sheet = tmp_path / "sheet.png"
    run(root, *SMALL, "--sheet", sheet)
    with Image.open(sheet) as picture:
        assert picture.width > 8 * 32 and picture.height > 12 * 32
        assert len(picture.convert("RGB").getcolors(maxcolors=10**7)) > 500
    with pytest.raises(InputError, match=r"--sheet .*: is a folder"):
        run(root, *SMALL, "--sheet", tmp_path)


def test_a_sheet_without_a_folder_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(InputError, match=r"--sheet .*there is no folder .*no\."):
        run(tmp_path, *SMALL, "--sheet", tmp_path / "no/sheet.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [[], ["nothing"], ["synthetic", "--size", "8"], ["synthetic", "stray"]]
)
def test_mistakes_end_with_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare.main(words)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
