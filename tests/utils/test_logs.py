"""Console, log file, JSON, environment and progress."""

import io
import json
import logging
import re
import shutil
import sys
import warnings
from datetime import datetime

import pytest

from utils import logs
from utils.errors import InputError
from utils.logs import duration, environment, log, progress, write_json


@pytest.fixture(autouse=True)
def loggers_restored():
    loggers = [logging.getLogger(), log, logging.getLogger("py.warnings")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = []
    yield
    logging.captureWarnings(False)
    for logger, handlers, level in before:
        for handler in logger.handlers[:]:
            handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)


def say_everything():
    log.debug("a detail")
    log.info("epoch %d", 1)
    log.warning("no GPU")
    log.error("it failed")


def test_console_shows_messages_and_says_what_is_a_warning(capsys):
    logs.start_logging()
    say_everything()
    captured = capsys.readouterr()
    assert captured.err == "epoch 1\nwarning: no GPU\nerror: it failed\n"
    assert captured.out == ""


def test_quiet_console_shows_warnings_only(capsys):
    logs.start_logging(quiet=True)
    say_everything()
    assert capsys.readouterr().err == "warning: no GPU\nerror: it failed\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_file_keeps_all_messages_with_time_and_level(tmp_path, quiet):
    logs.start_logging(tmp_path / "train.log", quiet)
    say_everything()
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", line) for line in lines] == [
        "INFO epoch 1",
        "WARNING no GPU",
        "ERROR it failed",
    ]


def test_file_is_added_to_not_begun_anew(tmp_path):
    (tmp_path / "train.log").write_text("of the run before\n")
    logs.start_logging(tmp_path / "train.log")
    log.info("of the resumed run")
    first, second = (tmp_path / "train.log").read_text().splitlines()
    assert first == "of the run before" and second.endswith("of the resumed run")


def test_a_warning_of_python_is_one_line_without_code(capsys, tmp_path):
    logs.start_logging(tmp_path / "train.log")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("empty.png: no stroke found.", stacklevel=1)
    assert capsys.readouterr().err == "warning: empty.png: no stroke found.\n"
    assert "empty.png: no stroke found." in (tmp_path / "train.log").read_text()


def test_starting_twice_says_everything_once(capsys):
    logs.start_logging()
    logs.start_logging()
    log.info("once")
    assert capsys.readouterr().err == "once\n"


# ---- a log file in trouble


def in_file(path):
    return [line.split(" ", 3)[3] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_log_file_that_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"away/train\.log: cannot be written \(No such file"):
        logs.start_logging(tmp_path / "away" / "train.log")
    with pytest.raises(InputError, match="Is a directory"):
        logs.start_logging(tmp_path)
    assert not log.handlers


def test_a_log_without_its_folder_is_one_warning_and_goes_on_where_it_is_back(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    logs.start_logging(folder / "train.log")
    log.info("before")
    shutil.move(folder, tmp_path / "away")
    log.info("without %d", 1)
    log.info("without %d", 2)
    folder.mkdir()
    log.info("after")
    log.info("later")
    file = folder / "train.log"
    assert capsys.readouterr().err.splitlines() == [
        "before",
        "without 1",
        f"warning: {file} cannot be written (No such file or directory): until it can, only the "
        "console says everything.",
        "without 2",
        "after",
        f"{file} is written again.",
        "later",
    ]
    assert in_file(tmp_path / "away" / "train.log") == ["before"]
    assert in_file(file) == ["after", f"{file} is written again.", "later"]


def test_a_log_file_that_is_moved_away_is_begun_anew_without_a_word(tmp_path, capsys):
    file = tmp_path / "train.log"
    logs.start_logging(file)
    log.info("first")
    file.rename(tmp_path / "train.log.1")
    log.info("second")
    assert capsys.readouterr().err == "first\nsecond\n"
    assert in_file(tmp_path / "train.log.1") == ["first"] and in_file(file) == ["second"]


def test_a_mistake_in_a_message_is_no_full_disk(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(log, "propagate", False)  # to pytest, which raises what it meets
    logs.start_logging(tmp_path / "train.log")
    log.info("%d", "no number")
    said = capsys.readouterr().err
    assert "TypeError" in said and "cannot be written" not in said
    log.info("after")
    assert in_file(tmp_path / "train.log") == ["after"]


# ---- progress


def test_progress_yields_the_items_as_they_come(capsys):
    seen = []

    def items():
        for i in range(3):
            seen.append(i)
            yield i

    shown = progress(items(), 3, "photos")
    assert next(shown) == 0 and seen == [0]
    assert list(shown) == [1, 2]
    assert capsys.readouterr() == ("", "")  # under a minute nothing is said


def test_progress_without_a_terminal_says_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 40.0, 70.0, 120.0, 131.0])
    monkeypatch.setattr(logs.time, "monotonic", lambda: next(clock))
    logs.start_logging()
    assert list(progress("abcd", 4, "photos")) == list("abcd")
    assert capsys.readouterr().err == (
        "photos: 2 of 4, 1 min 10 s left\n"  # at 70 s; the next line is due at 130 s
        "photos: 4 of 4, 0 s left\n"
    )


def test_progress_with_no_time_between_lines_says_one_for_each_item(monkeypatch, capsys):
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_LINES", 0)
    logs.start_logging()
    list(progress(range(3), 3, "epoch 1 of 2"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"epoch 1 of 2: {i} of 3" for i in (1, 2, 3)]


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(iter(range(3)), 3, "photos")) == [0, 1, 2]
    assert "photos" in terminal.getvalue() and "\r" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.7, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (100 * 3600 + 59, "100 h 0 min"),
    ],
)
def test_duration_is_in_words(seconds, words):
    assert duration(seconds) == words


# ---- files


def test_json_is_written_whole(tmp_path):
    content = {"map_all": 0.25, "names": ["é"], "none": None}
    write_json(tmp_path / "run.json", content)
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == content
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_json_that_cannot_be_written_leaves_the_former_file(tmp_path):
    write_json(tmp_path / "run.json", {"epoch": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "run.json", {"epoch": object()})
    assert json.loads((tmp_path / "run.json").read_text()) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


# ---- environment


def test_environment_tells_what_a_number_depends_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", "-d", "Quickdraw", "-s", "a run"])
    found = environment("cpu")
    assert set(found) == {
        "command",
        "started",
        "commit",
        "python",
        "platform",
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "pillow",
        "device",
        "gpu",
        "threads",
    }
    assert found["command"] == "train.py -d Quickdraw -s 'a run'"  # to be typed as it is
    assert found["device"] == "cpu" and found["gpu"] is None
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["commit"] is None or re.fullmatch(r"[0-9a-f]{12}\+?", found["commit"])
    assert json.loads(json.dumps(found)) == found


def test_started_is_the_time_of_the_start_and_not_of_the_question(monkeypatch):
    monkeypatch.setattr(logs, "_started", None)
    assert environment("cpu")["started"] is None
    logs.start_logging()
    start = datetime.now().astimezone()
    monkeypatch.setattr(logs, "datetime", None)  # what is asked for later asks for no time
    found = datetime.fromisoformat(environment("cpu")["started"])
    assert abs((found - start).total_seconds()) < 5 and found.tzinfo is not None


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    def version(package):
        raise logs.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(logs.metadata, "version", version)
    assert environment("cpu")["timm"] is None


def test_commit_is_unknown_without_git(monkeypatch):
    def run(*arguments, **settings):
        raise FileNotFoundError("git")

    monkeypatch.setattr(logs.subprocess, "run", run)
    assert environment("cpu")["commit"] is None
