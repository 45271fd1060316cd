"""Images without labels: any folder, in the same order whatever else lies there; open images."""

import os

import pytest
import torch
from PIL import Image

from datasets.images import Preprocessing
from datasets.unlabelled import LooseImages, folder_images, image_list, named_images
from utils.errors import InputError


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(root / name, format="PNG")


def paths(root, **settings):
    return folder_images(root, "photo", **settings).path.tolist()


def test_images_at_any_depth_and_of_any_spelling_in_order(tmp_path):
    write(tmp_path, "b.JPG", "a/z.png", "a/b/c/1.webp", "10.jpeg", "9.jpeg", "ä ö.Png")
    write(tmp_path, ".hidden.jpg", ".folder/1.jpg", "notes.txt", "jpg")
    expected = ["10.jpeg", "9.jpeg", "a/b/c/1.webp", "a/z.png", "b.JPG", "ä ö.Png"]
    assert paths(tmp_path) == expected
    images = folder_images(tmp_path, "photo")
    assert images.file(2) == tmp_path / "a/b/c/1.webp"
    assert set(images.modality) == {"photo"} and set(images.target) == {-1}


def test_links_are_followed_each_folder_once(tmp_path):
    write(tmp_path, "photos/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/circle").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/3.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    assert paths(tmp_path / "photos") == ["1.jpg", "3.jpg", "linked/2.jpg"]


def test_a_folder_can_be_left_out(tmp_path):
    write(tmp_path, "1.jpg", "G/2.jpg", "G/deep/3.jpg")
    assert paths(tmp_path, leave_out=tmp_path / "G") == ["1.jpg"]
    assert paths(tmp_path, leave_out=tmp_path / "absent") == ["1.jpg", "G/2.jpg", "G/deep/3.jpg"]


@pytest.mark.skipif(os.name != "posix", reason="names of arbitrary bytes are POSIX's")
def test_a_name_that_is_no_text_is_an_image_too(tmp_path):
    file = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(file, "wb") as stream:
        Image.new("RGB", (4, 4)).save(stream, format="PNG")
    assert paths(tmp_path) == [os.fsdecode(b"caf\xe9.png")]


def test_a_message_about_an_image_has_its_path_alone(tmp_path):
    images = image_list(tmp_path, ["1.jpg"], "sketch")

    def refuse(file, modality):
        raise InputError(f"{file}: {modality} unreadable.")

    with pytest.raises(InputError) as error:
        images.read(0, refuse)
    assert str(error.value) == f"{tmp_path / '1.jpg'}: sketch unreadable."


def test_no_folder_and_no_image_are_sentences(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        folder_images(tmp_path / "absent", "photo")
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"holds no image.*\.jpg"):
        folder_images(tmp_path, "photo")
    with pytest.raises(InputError, match="holds no image"):
        named_images([tmp_path], [])


def test_the_folder_of_the_photos_cannot_be_left_out_itself(tmp_path):
    write(tmp_path, "1.jpg")
    with pytest.raises(InputError, match=r"holds the photos, and cannot be the gallery too.*--out"):
        folder_images(tmp_path, "photo", leave_out=tmp_path / "." / "x" / "..")


def test_what_has_no_ending_of_an_image_is_counted_by_ending(tmp_path, caplog):
    write(tmp_path, "1.jpg", "a/b.HEIC", "a/.hidden", "G/1.txt")
    for name in ("raw.DNG", "a/raw.dng", "d41d8cd9", "a/README", "Note\n.t\x1b"):
        (tmp_path / name).write_bytes(b"")
    assert paths(tmp_path, leave_out=tmp_path / "G") == ["1.jpg", "a/b.HEIC"]
    (message,) = caplog.messages
    assert message == (
        f"{tmp_path}: 5 files without the ending of an image are left out (2 .dng, 2 without an "
        r"ending, 1 .t\x1b)."
    )
    for name in ("1.jpg", "a/b.HEIC"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"holds no image.*there are files of other kinds: 2 .dng"):
        paths(tmp_path, leave_out=tmp_path / "G")


def test_nothing_is_told_of_a_folder_of_images_alone(tmp_path, caplog):
    write(tmp_path, "1.jpg", ".hidden")
    assert paths(tmp_path) == ["1.jpg"] and caplog.messages == []


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 3000, "a\0b"])
def test_names_that_no_disk_has_are_sentences(name):
    with pytest.raises(InputError, match="no such folder"):
        folder_images(name, "photo")
    with pytest.raises(InputError, match="no such file or folder"):
        named_images([name], [])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_there_and_no_file_is_named_when_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    assert named_images([tmp_path / "x.png"], []) == [tmp_path / "x.png"]
    assert paths(tmp_path) == ["x.png"]


def test_named_files_and_folders_in_the_order_given_each_once(tmp_path):
    write(tmp_path, "z.png", "folder/b.png", "folder/a.png", "folder/c.svg", "odd.name")
    given = [tmp_path / "z.png", tmp_path / "folder", tmp_path / "odd.name", tmp_path / "z.png"]
    names = [path.relative_to(tmp_path).as_posix() for path in named_images(given, [".svg"])]
    assert names == ["z.png", "folder/a.png", "folder/b.png", "folder/c.svg", "odd.name"]
    assert len(named_images(given, [])) == 4
    with pytest.raises(InputError, match="no such file or folder"):
        named_images([tmp_path / "absent.png"], [])


# ---- open images, and files in no folder


HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_loose_images_are_read_as_those_of_a_folder_are(tmp_path, modality):
    (tmp_path / "a").mkdir()
    for number, name in enumerate(["1.png", "3.png", "a/2.png"]):
        picture = Image.new("L", (30, 20 + number), "white")
        picture.paste(0, (12, 5, 14 + number, 15))
        picture.save(tmp_path / name)
    listed = folder_images(tmp_path, modality)
    files = [listed.file(number) for number in range(3)]
    opened = []
    for file in files:
        with Image.open(file) as image:
            opened.append(image.copy())
    loose = LooseImages((files[0], str(files[1]), opened[2]), modality)
    assert len(loose) == len(listed) == 3
    assert list(loose.modality) == list(listed.modality)
    see = Preprocessing(size=8, mean=HALF, std=HALF, crop=True)
    for images in (loose, LooseImages(opened, modality)):
        for number in range(3):
            assert torch.equal(images.read(number, see.levels), listed.read(number, see.levels))
            assert torch.equal(images.read(number, see), listed.read(number, see))


def test_a_loose_file_that_cannot_be_read_is_named_by_its_path_alone(tmp_path):
    see = Preprocessing(size=8, mean=HALF, std=HALF, crop=True)
    images = LooseImages([tmp_path / "absent.png", Image.new("RGB", (4, 4))], "photo")
    with pytest.raises(InputError) as error:
        images.read(0, see)
    assert str(error.value) == f"{tmp_path / 'absent.png'}: no such file."
    assert images.read(1, see).shape == (3, 8, 8)


def test_no_loose_images_are_an_empty_list():
    assert len(LooseImages([], "sketch")) == 0
