"""test.py as its users run it, on a small drawn benchmark."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from copies import ROOT, end_well, start_together
from PIL import Image
from sample_data import write_benchmark
from sklearn.metrics import average_precision_score
from training_runs import one_thread

import test
from datasets import load_benchmark
from datasets.images import Preprocessing
from model import build_model
from model.zse.method import ZSE
from model.zse.published import to_published
from model.zse.settings import ZSESettings
from report import results
from report.pictures import Strip, draw_sheet
from utils.checkpoints import save_atomically
from utils.errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root)
    return root


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "best_checkpoint.pth"
    write_checkpoint(path, classes=["pig", "banana"])
    return path


def write_checkpoint(path: Path, classes: list[str], **settings) -> None:
    torch.manual_seed(0)
    method = build_model(ZSESettings(**{"vit": "vit_least_patch8_32", **settings}))
    content = {
        "format": 1,
        "method": "zse_sbir",
        "settings": method.settings.of_model(),
        "model": method.state_dict(),
        "epoch": 3,
        "classes": classes,
        "map_all": 0.5,
        "precision_100": 0.25,
    }
    save_atomically(content, path)


def run(data: Path, *more: object) -> int:
    small = ["--data_path", data, "-c", "cpu", "--num_workers", "0"]
    return test.main([str(word) for word in [*small, *more]])


@pytest.mark.parametrize("mode", ["sa", "rn"])
def test_prints_published_metrics_and_writes_json_beside_the_checkpoint(
    data, checkpoint, capsys, mode
):
    assert run(data, "-l", checkpoint, "--testall", "-r", mode) == 0
    printed = capsys.readouterr().out.splitlines()
    result = checkpoint.with_name(f"best_checkpoint.test_class_sketchy25.{mode}.all.json")
    assert str(result) in printed[-1]
    content = json.loads(result.read_text())
    four = ("map_all", "map_200", "precision_100", "precision_200")
    assert printed[-2] == " ".join(f"{name}:{content[name]:.4f}" for name in four)
    assert content["counts"] == {"sketches": 12, "photos": 15, "classes": 3, "skipped": 0}
    for name in ("average_precision", "precision@1", "precision@10", "accuracy@1", "fingerprint"):
        assert name in content
    assert content["chance"]["accuracy@1"] == pytest.approx(5 / 15)  # photos a class, photos
    assert len(content["by_class"]) == 3
    assert content["seconds"].keys() == {"encode_gallery", "encode_queries", "score_queries"}
    assert content["options"]["retrieval"] == mode


def test_the_table_shows_chance_under_all_classes(data, checkpoint, capsys):
    run(data, "-l", checkpoint, "--testall", "-r", "sa")
    head, overall, chance, *classes = capsys.readouterr().out.splitlines()
    content = json.loads(next(checkpoint.parent.glob("*.json")).read_text())
    names = head.split()[1:]
    assert overall.split() == ["all", "classes", "12", *(f"{content[n]:.4f}" for n in names)]
    values = [f"{content['chance'][n]:.4f}" if n in content["chance"] else "-" for n in names]
    assert chance.split() == ["random", "ranking", "12", *values]
    assert values[0] == "-" and values.count("-") == 1
    assert len({len(line) for line in (head, overall, chance, *classes[:3])}) == 1


def test_plain_ap_of_a_whole_run_equals_scikit_learn(data, checkpoint, tmp_path):
    rankings = tmp_path / "rankings.npz"
    run(data, "-l", checkpoint, "--testall", "-r", "sa", "--save_rankings", rankings)
    kept = np.load(rankings, allow_pickle=False)
    class_of = {path: path.split("/")[-2] for path in [*kept["queries"], *kept["gallery"]]}
    expected = []
    for query, photos, scores in zip(
        kept["queries"], kept["ranking"], kept["similarity"], strict=True
    ):
        assert len(np.unique(scores)) == len(scores)
        relevant = [class_of[kept["gallery"][photo]] == class_of[query] for photo in photos]
        expected.append(average_precision_score(relevant, scores))
    result = next(tmp_path.glob("*.sa.all.json"))
    assert np.isclose(json.loads(result.read_text())["average_precision"], np.mean(expected))


def test_without_testall_the_published_subsample_is_scored(data, checkpoint):
    run(data, "-l", checkpoint, "-r", "sa")
    content = json.loads(next(checkpoint.parent.glob("*.part.json")).read_text())
    assert content["counts"]["sketches"] == 1  # every 20th of 12
    assert content["counts"]["photos"] == 2  # every 10th of 15


def test_what_a_shortlist_loses_is_printed_and_kept(data, checkpoint, capsys):
    run(data, "-l", checkpoint, "--testall", "-r", "rerank", "--shortlist", 4)
    name = "best_checkpoint.test_class_sketchy25.rerank4.all.json"
    content = json.loads(checkpoint.with_name(name).read_text())
    kept = content["shortlist"]
    assert kept["queries"] == 12  # all, as there are no more than are checked
    assert kept["reranked"]["average_precision"] == pytest.approx(content["average_precision"])
    said = f"accuracy@1 {kept['reranked']['accuracy@1']:.4f} (all pairs "
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "shortlist of 4" in line]
    assert "on 12 sketches" in line and said in line


def test_the_second_test_encodes_nothing(data, checkpoint, caplog):
    caplog.set_level("INFO")
    result = checkpoint.with_name("best_checkpoint.test_class_sketchy25.rn.all.json")
    found = []
    for _ in range(2):
        caplog.clear()
        run(data, "-l", checkpoint, "--testall")
        found.append(json.loads(result.read_text()))
    assert "features of 15 of 15 images" in caplog.text
    assert "features of 12 of 12 images" in caplog.text
    assert (checkpoint.parent / "features" / "best_checkpoint").is_dir()
    for name in ("map_all", "average_precision", "by_class", "fingerprint"):
        assert found[0][name] == found[1][name]


def test_no_cache_keeps_and_reads_nothing(data, checkpoint, caplog):
    caplog.set_level("INFO")
    run(data, "-l", checkpoint, "--testall", "--no_cache")
    assert "features" not in caplog.text
    assert not (checkpoint.parent / "features").exists()


def test_the_precision_of_kept_tokens_can_be_chosen(data, checkpoint):
    sizes = []
    for precision in ("fp16", "fp32"):
        before = set(checkpoint.parent.glob("features/*/*/tokens.*"))
        run(data, "-l", checkpoint, "--testall", "--cache_precision", precision)
        files = set(checkpoint.parent.glob("features/*/*/tokens.*")) - before
        sizes.append(sorted(file.stat().st_size for file in files))
    numbers = 17 * 48  # tokens of an image, and their width
    assert sizes == [[12 * 2 * numbers, 15 * 2 * numbers], [12 * 4 * numbers, 15 * 4 * numbers]]


@pytest.fixture
def encoded(monkeypatch) -> Counter:
    """How many images have been encoded, by modality."""
    encode, counts = ZSE.encode, Counter()

    def counting(method, images, modality):
        counts[modality] += len(images)
        return encode(method, images, modality)

    monkeypatch.setattr(ZSE, "encode", counting)
    return counts


def test_what_one_mode_or_part_has_encoded_no_other_encodes_again(data, checkpoint, encoded):
    """Of 12 sketches and 15 photos."""

    def newly_encoded(mode, *part):
        encoded.clear()
        run(data, "-l", checkpoint, "-r", mode, "--part", *part)
        return encoded["sketch"], encoded["photo"]

    assert newly_encoded("rn", 2, 3) == (6, 5)
    assert newly_encoded("sa", 2, 3) == (0, 0)
    assert newly_encoded("sa", 3, 5) == (2, 2)  # new: 3, 9 of 0, 3, 6, 9, and 5, 10 of 0, 5, 10
    assert newly_encoded("sa", 3, 5) == (0, 0)
    assert newly_encoded("rn", 3, 5) == (2, 2)  # the same once more, for their tokens
    assert newly_encoded("rn", 1, 1) == (12 - 8, 15 - 7)
    for mode in ("sa", "rn", "rerank"):
        assert newly_encoded(mode, 1, 1) == newly_encoded(mode, 3, 1) == (0, 0)


def test_another_part_can_be_scored(data, checkpoint):
    run(data, "-l", checkpoint, "-r", "sa", "--part", 5, 1)
    content = json.loads(next(checkpoint.parent.glob("*.sa.5x1.json")).read_text())
    assert content["counts"]["sketches"] == 3  # every 5th of 12
    assert content["counts"]["photos"] == 15


def test_without_l_the_save_folder_is_scored_and_said(data, checkpoint, caplog):
    with caplog.at_level("INFO"):
        run(data, "--save", checkpoint.parent, "--testall", "-r", "sa")
    assert f"scoring {checkpoint}" in caplog.text


def test_without_l_and_without_a_run_it_says_what_to_name(data, tmp_path):
    with pytest.raises(InputError, match=r"-l FILE.*--save"):
        run(data, "--save", tmp_path)


def test_a_checkpoint_that_has_seen_tested_classes_is_refused(data, tmp_path, caplog):
    benchmark = load_benchmark("sketchy_extend", "test_class_sketchy25", data, seen=False)
    seen = benchmark.queries.classes()[0]
    path = tmp_path / "best_checkpoint.pth"
    write_checkpoint(path, classes=["pig", seen.upper().replace("_", " ")])
    with pytest.raises(InputError, match=f"{seen}.*--allow_seen"):
        run(data, "-l", path, "--testall", "-r", "sa")
    assert run(data, "-l", path, "--testall", "-r", "sa", "--allow_seen") == 0
    assert "not zero-shot" in caplog.text


def test_a_published_checkpoint_brings_its_architecture_and_a_warning(data, tmp_path, caplog):
    method = build_model(ZSESettings(vit="vit_tiny_patch16_224"))
    ours = {"settings": method.settings.of_model(), "model": method.state_dict(), "epoch": 1}
    published = to_published({**ours, "map_all": 0.1, "precision_100": 0.2})
    path = tmp_path / "best_checkpoint.pth"
    save_atomically(published, path)
    assert run(data, "-l", path, "-r", "sa") == 0
    assert "does not say which classes" in caplog.text
    content = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert content["checkpoint_epoch"] == 1
    with pytest.raises(InputError, match="downsampling = published"):
        run(data, "-l", path, "--downsampling", "spatial")
    with pytest.raises(InputError, match="vit = vit_tiny"):
        run(data, "-l", path, "--vit", "vit_small_patch16_224")


def test_a_missing_photo_is_named_and_skip_bad_counts_it(tmp_path, checkpoint):
    write_benchmark(tmp_path)
    line = (tmp_path / "Sketchy/zeroshot1/all_photo_filelist_zero.txt").read_text().split("\n")[0]
    (tmp_path / "Sketchy" / line.rsplit(" ", 1)[0]).unlink()
    with pytest.raises(InputError, match=r"all_photo_filelist_zero\.txt, line 1\).*--skip_bad"):
        run(tmp_path, "-l", checkpoint, "--testall", "-r", "sa")
    run(tmp_path, "-l", checkpoint, "--testall", "-r", "sa", "--skip_bad")
    content = json.loads(next(checkpoint.parent.glob("*.all.json")).read_text())
    assert content["counts"]["photos"] == 14 and content["counts"]["skipped"] == 1


@pytest.mark.parametrize("name", ["rankings.txt", "no/such/folder/rankings.npz"])
def test_a_rankings_file_that_cannot_be_written_is_refused_before_scoring(
    data, checkpoint, tmp_path, name
):
    with pytest.raises((InputError, SystemExit)):
        run(data, "-l", checkpoint, "--save_rankings", tmp_path / name)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_torchrun_scores_in_two_processes_as_one_does(data, tmp_path):
    checkpoint = tmp_path / "best_checkpoint.pth"
    write_checkpoint(checkpoint, classes=["pig"], vit="vit_mini_patch8_48")
    alone, shared = tmp_path / "alone.npz", tmp_path / "shared.npz"
    run(data, "-l", checkpoint, "--testall", "-r", "rn", "--save_rankings", alone)
    content = json.loads(next(tmp_path.glob("*.json")).read_text())
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "test.py",
    ]
    options = ["--data_path", data, "-c", "cpu", "--num_workers", "0", "-l", checkpoint]
    options += ["--testall", "-r", "rn", "--save_rankings", shared]
    done = subprocess.run(
        [sys.executable, *command, *map(str, options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("map_all:") == 1  # only the first process prints
    assert f"map_all:{content['map_all']:.4f}" in done.stdout
    one, two = np.load(alone), np.load(shared)
    assert (one["queries"] == two["queries"]).all()
    assert np.allclose(one["similarity"], two["similarity"], atol=1e-5)


ONE_PROCESS = """
import json, os, sys
from pathlib import Path

import test
from datasets.images import Preprocessing
from model.zse.method import ZSE
from utils.errors import InputError

folder, levels, encode = Path(sys.argv[1]), Preprocessing.levels, ZSE.encode

def prepared(self, file, modality):
    read.append(str(file))
    return levels(self, file, modality)

def encoded(self, images, modality):
    count[modality] += len(images)
    return encode(self, images, modality)

Preprocessing.levels, ZSE.encode = prepared, encoded
ends = {}
for name, (port, words) in json.loads((folder / "cases.json").read_text()).items():
    os.environ["MASTER_PORT"] = port
    read, count = [], {"sketch": 0, "photo": 0}
    try:
        end = test.main(words)
    except InputError as error:
        end = str(error)
    ends[name] = {"end": end, "read": read, "count": count}
(folder / f"{os.environ['RANK']}.json").write_text(json.dumps(ends))
"""
RN, RERANK = ["-r", "rn"], ["-r", "rerank", "--shortlist", "4"]
CASES = {  # folder of the checkpoint; options
    "no cache": ("no cache", [*RN, "--no_cache"]),
    "new cache": ("new cache", RN),
    "half a cache": ("half a cache", RN),
    "whole cache": ("new cache", RERANK),
    "skip_bad": ("skip_bad", [*RN, "--skip_bad"]),
    "a bad photo, no cache": ("a bad photo, no cache", [*RN, "--no_cache"]),
    "a bad photo, whole cache": ("skip_bad", RN),
}
STOPPED_AT, BAD = 7, 5  # photos


def outcome(folder, mode):
    """What JSON and rankings say, without what differs from run to run."""
    content = json.loads(next(folder.glob(f"*.{mode}*.all.json")).read_text())
    own = ("checkpoint", "options", "environment", "seconds")
    with np.load(folder / f"{mode}.npz") as arrays:
        return {n: value for n, value in content.items() if n not in own}, dict(arrays)


@pytest.fixture(scope="module")
def photos_of(data, tmp_path_factory):
    """The photos of each case, and the folder they lie in: one is no picture where it is bad."""
    damaged = tmp_path_factory.mktemp("damaged")
    write_benchmark(damaged)

    def photos(name):
        root = damaged if "bad" in name else data
        gallery = load_benchmark("sketchy_extend", "test_class_sketchy25", root, seen=False).gallery
        return root, [str(gallery.file(number)) for number in range(len(gallery))]

    Path(photos("bad")[1][BAD]).write_bytes(b"no picture")
    return photos


@pytest.fixture(scope="module")
def ends(photos_of, tmp_path_factory):
    """Every case in two processes: a folder a case with results, and what each process did."""
    folder = tmp_path_factory.mktemp("two processes")
    write_checkpoint(folder / "checkpoint.pth", classes=["pig"])
    cases = {}
    for name, (place, options) in CASES.items():
        root, _ = photos_of(name)
        (folder / place).mkdir(exist_ok=True)
        checkpoint = folder / place / "best_checkpoint.pth"
        shutil.copy(folder / "checkpoint.pth", checkpoint)
        words = ["--data_path", root, "-c", "cpu", "--num_workers", 0, "-l", checkpoint]
        words += ["--testall", "--test_sk", 1, "--test_im", 2, *options]
        words += ["--save_rankings", folder / place / f"{options[1]}.npz"]
        cases[name] = free_port(), [str(word) for word in words]
    interrupt(cases["half a cache"][1], photos_of("half a cache")[1][STOPPED_AT])
    (folder / "cases.json").write_text(json.dumps(cases))
    script = folder / "one_process.py"
    script.write_text(ONE_PROCESS)
    end_well(start_together(script, folder))
    return folder, [json.loads((folder / f"{number}.json").read_text()) for number in (0, 1)]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def interrupt(words, photo):
    """Run test.py, which is stopped at this photo."""
    levels = Preprocessing.levels

    def stopped(self, file, modality):
        if str(file) == photo:
            raise KeyboardInterrupt
        return levels(self, file, modality)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Preprocessing, "levels", stopped)
        test.main(words)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("a bad")])
def test_two_processes_find_what_one_does_and_encode_each_image_once(
    photos_of, ends, checkpoint, tmp_path, name
):
    folder, processes = ends
    root, photos = photos_of(name)
    place, options = CASES[name]
    if name == "half a cache":
        photos = photos[STOPPED_AT // 2 * 2 :]
    if name == "whole cache":
        photos = []
    words = ["--testall", "--test_sk", 1, "--test_im", 2, *options]
    mode = options[1]
    with one_thread():
        run(root, "-l", checkpoint, *words, "--save_rankings", tmp_path / f"{mode}.npz")
    (alone, one), (together, other) = outcome(tmp_path, mode), outcome(folder / place, mode)
    assert together == alone
    for column in ("queries", "gallery", "ranking"):
        np.testing.assert_array_equal(other[column], one[column])
    np.testing.assert_allclose(other["similarity"], one["similarity"], rtol=0, atol=1e-6)
    assert [process[name]["end"] for process in processes] == [0, 0]
    read = [file for process in processes for file in process[name]["read"]]
    assert sorted(set(read) & set(photos_of(name)[1])) == sorted(photos)
    unreadable = "skip_bad" in name
    encoded = [process[name]["count"] for process in processes]
    assert sum(count["photo"] for count in encoded) == len(photos) - unreadable
    if photos:  # shared fairly, by blocks of two
        assert abs(encoded[0]["photo"] - encoded[1]["photo"]) <= 2
    sketches = [count["sketch"] for count in encoded]
    assert sketches == ([0, 0] if name == "whole cache" else [6, 6])
    assert len(set(read)) == len(read) == len(photos) + sum(sketches)
    assert together["counts"]["skipped"] == len(together["skipped"]) == unreadable
    assert not list((folder / place).glob("features/*/*.scores"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("a bad")])
def test_two_processes_refuse_an_unreadable_photo_in_the_same_words(photos_of, ends, name):
    _, processes = ends
    one, other = (process[name]["end"] for process in processes)
    assert one == other
    assert photos_of(name)[1][BAD] in one and "--skip_bad" in one


# ---- pictures


def expected_sheet(data, rankings, numbers):
    """The strips of these queries, drawn from the arrays of --save_rankings."""
    kept, folder = np.load(rankings), data / "Sketchy"
    drawn = []
    for number in numbers:
        query, photos = kept["queries"][number], kept["gallery"][kept["ranking"][number][:10]]
        classes = [path.split("/")[-2] for path in photos]
        name = query.split("/")[-2]
        images = [Image.open(folder / path) for path in photos]
        right = [each == name for each in classes]
        drawn.append(Strip(Image.open(folder / query), name, images, classes, right))
    return draw_sheet(drawn, "")


@pytest.mark.parametrize(
    ("count", "numbers"),
    [
        (1, [6]),  # of 12: 4 each of 3 classes
        (3, [2, 6, 10]),
        (5, [1, 3, 6, 8, 10]),
        pytest.param(100, range(12), marks=pytest.mark.slow),
    ],
)
def test_the_picture_shows_sketches_spread_over_the_list_with_their_photos(
    data, checkpoint, tmp_path, capsys, count, numbers
):
    rankings = tmp_path / "rankings.npz"
    more = ["--save_rankings", rankings, "--save_pictures", count]
    run(data, "-l", checkpoint, "--testall", "-r", "sa", *more)
    stem = checkpoint.with_name("best_checkpoint.test_class_sketchy25.sa.all")
    said = f"results: {stem}.json, pictures: {stem}.rankings.png, rankings: {rankings}"
    assert capsys.readouterr().out.splitlines()[-1] == said
    expected = expected_sheet(data, rankings, numbers)
    with Image.open(f"{stem}.rankings.png") as picture:
        band = picture.height - expected.height
        assert picture.width == expected.width and 0 < band < 60
        strips = picture.crop((0, band + 16, *picture.size))  # without title and margin
    assert strips.tobytes() == expected.crop((0, 16, *expected.size)).tobytes()
    assert json.loads(Path(f"{stem}.json").read_text())["options"]["save_pictures"] == count


def test_a_sheet_s_title_says_what_was_scored_and_how_well(data, checkpoint, monkeypatch):
    titles = []
    monkeypatch.setattr(
        results, "draw_sheet", lambda _, title: titles.append(title) or Image.new("RGB", (1, 1))
    )
    run(data, "-l", checkpoint, "--testall", "-r", "rn", "--save_pictures", 3)
    value = json.loads(next(checkpoint.parent.glob("*.json")).read_text())["average_precision"]
    for word in ("sketchy_extend", "test_class_sketchy25", "-r rn", f"{value:.3f}", "3 of 12"):
        assert word in titles[0]


def test_without_the_option_there_is_no_picture(data, checkpoint, capsys):
    run(data, "-l", checkpoint, "-r", "sa")
    assert "pictures" not in capsys.readouterr().out
    assert not list(checkpoint.parent.glob("*.png"))


def test_what_cannot_lie_beside_the_checkpoint_is_written_into_the_current_folder(
    data, checkpoint, tmp_path, monkeypatch, capsys, caplog
):
    names = [f"best_checkpoint.test_class_sketchy25.sa.part.{e}" for e in ("json", "rankings.png")]
    for name in names:
        checkpoint.with_name(name).mkdir()  # in the way
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    run(data, "-l", checkpoint, "-r", "sa", "--save_pictures", 2)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"results: {names[0]}, pictures: {names[1]}"
    assert sorted(file.name for file in here.iterdir()) == names
    assert json.loads((here / names[0]).read_text())["counts"]["sketches"] == 1
    with Image.open(here / names[1]) as picture:
        assert picture.format == "PNG"
    for name in names:
        assert f"{checkpoint.with_name(name)}: cannot be written" in caplog.text


@pytest.mark.parametrize("total", [1, 2, 7, 12, 625])
@pytest.mark.parametrize("count", [1, 2, 5, 12, 100])
def test_numbers_are_spread_evenly(count, total):
    numbers = results.spread(count, total)
    assert len(numbers) == min(count, total) and set(numbers) <= set(range(total))
    steps = np.diff(numbers).tolist()
    assert min(steps, default=1) > 0 and max(steps, default=1) - min(steps, default=1) <= 1
    assert abs(numbers[0] - (total - 1 - numbers[-1])) <= 1  # as far from the start as from the end


def test_relevant_is_the_target_and_not_the_name(data):
    benchmark = load_benchmark("sketchy_extend", "test_class_sketchy25", data, seen=False)
    queries, gallery = benchmark.queries, benchmark.gallery
    instances = replace(gallery, target=np.arange(len(gallery)))  # one photo each is right
    evaluation = SimpleNamespace(
        queries=replace(queries, target=np.array([3] * len(queries))),
        gallery=instances,
        rankings=np.array([[4, 3, 2, 1, 0]] * len(queries)),
    )
    [strip] = results._strips(evaluation, [1])
    assert strip.relevant == [False, True, False, False, False]
    assert strip.photo_names == [strip.query_name] * 5
