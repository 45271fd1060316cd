"""prepare.py as a user calls it."""

import pytest
from PIL import Image

import prepare
from utils.errors import InputError


def run(root, *more):
    return prepare.main(["synthetic", "--data_path", str(root), *map(str, more)])


def test_synthetic_draws_what_was_asked_and_says_where(tmp_path, capsys):
    assert run(tmp_path, "--instances", 2, "--size", 32) == 0
    assert str(tmp_path / "Synthetic") in capsys.readouterr().out.splitlines()[-1]
    with Image.open(tmp_path / "Synthetic/photo/cup/cup_001.jpg") as photo:
        assert photo.size == (32, 32)
    assert not (tmp_path / "Synthetic/photo/cup/cup_002.jpg").exists()


def test_a_second_call_draws_nothing_and_another_drawing_is_refused(tmp_path):
    run(tmp_path, "--instances", 2, "--size", 32)
    file = tmp_path / "Synthetic/sketch/cup/cup_000.png"
    file.write_bytes(b"mine")
    assert run(tmp_path, "--instances", 2, "--size", 32) == 0
    assert file.read_bytes() == b"mine"
    with pytest.raises(InputError, match=r"'instances': 2.*Delete it"):
        run(tmp_path, "--instances", 3, "--size", 32)
    assert file.read_bytes() == b"mine"


def test_the_sheet_shows_photos_and_sketches(tmp_path):
    sheet = tmp_path / "sheet.png"
    run(tmp_path, "--instances", 2, "--size", 32, "--sheet", sheet)
    with Image.open(sheet) as picture:
        assert picture.width > 8 * 32 and picture.height > 12 * 32
        assert len(picture.convert("RGB").getcolors(maxcolors=10**7)) > 500
    with pytest.raises(InputError, match=r"--sheet .*cannot be written"):
        run(tmp_path, "--instances", 2, "--size", 32, "--sheet", tmp_path / "no/sheet.png")


@pytest.mark.parametrize(
    "words", [[], ["nothing"], ["synthetic", "--size", "8"], ["synthetic", "stray"]]
)
def test_mistakes_end_with_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare.main(words)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
