"""From nothing to a result: draw data, train a small network, score it, and show what it finds.

Runs the same commands that one would type, and prints each; the first draws the data.
"""

if __name__ == "__main__":
    from utils.hold import hold_signals

    hold_signals()  # until run_script()

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from options import quickstart_options, result_name, test_options
from utils.errors import InputError, run_script
from utils.files import reason
from utils.logs import duration, write_json
from utils.run_folder import BEST, LAST
from utils.signals import SIGNALS, handled_by, held_signals, status_after, waiting_signals
from utils.unreadable import check_name

NETWORK = "--vit vit_mini_patch8_48 --no-pretrained"
TRAINING = "--anchor_number 36 --batch 32 --datasetLen 3200 --epoch 8 --validate none --amp off"
PAPER = "--recipe paper --batch 16 --datasetLen 1600 --learning_rate 1e-3"
COLUMNS = {"mAP": "average_precision", "precision@10": "precision@10", "accuracy@1": "accuracy@1"}
PICTURES = ("--save_pictures", "10")


def main(arguments: list[str] | None = None) -> int:
    """Run the stages as the command line says; the exit status."""
    args = quickstart_options(arguments)
    started = time.monotonic()
    save = Path(args.save)
    data = ["--data_path", args.data_path]
    device = args.choose_cuda if _has_gpu() else "cpu"
    shared = ["--dataset", "synthetic", *data, "-c", device, "--num_workers", "2"]
    training = [*shared, *shlex.split(NETWORK), *shlex.split(TRAINING), "--seed", str(args.seed)]
    untrained = shlex.split("--learning_rate 0 --no-whitening --batch 3 --datasetLen 3 --epoch 1")
    _train(save / "untrained", [*training, *args.training, *untrained])
    _train(save / "trained", [*training, *args.training])
    scored = {
        "untrained, -r sa": _score(save / "untrained", [*shared, "-r", "sa", "--testall"]),
        "trained, -r sa": _score(save / "trained", [*shared, "-r", "sa", "--testall", *PICTURES]),
        "trained, -r rn": _score(save / "trained", [*shared, "-r", "rn", *PICTURES]),
    }
    rows = {name: _read(file) for name, file in scored.items()}
    rows = {"random ranking": rows["untrained, -r sa"]["chance"], **rows}
    table = {name: {c: row[key] for c, key in COLUMNS.items()} for name, row in rows.items()}
    write_json(save / "table.json", table)
    _show(table)
    results = [file for file in scored.values() if file.parent.name == "trained"]
    print(f"\nDone in {duration(time.monotonic() - started)}.")
    print("pictures:", *(file.with_suffix(".rankings.png") for file in results))
    print("results:", save / "table.json", *results)
    print("checkpoint:", save / "trained" / BEST)
    _suggest(args.data_path, save)
    return 0


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _train(folder: Path, options: list[str]) -> None:
    """Train, or go on where an earlier call was stopped."""
    resume = ["--resume"] if check_name(folder / LAST) else []
    _run("train.py", *options, "--save", str(folder), *resume)


def _score(folder: Path, options: list[str]) -> Path:
    """Score what was trained there; the file of results."""
    words = [*options, "--save", str(folder)]
    _run("test.py", *words)
    return folder / result_name(test_options(words), BEST, "json")


def _read(file: Path) -> dict:
    """The results that test.py has written. Raises InputError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: test.py left no results there ({reason(error)}); what it said stands above."
        ) from error


def _run(script: str, *options: str) -> None:
    """Print a command and run it. Raises InputError where it fails; ends where it is stopped."""
    print(f"\n$ python {script} {shlex.join(options)}", flush=True)
    place = Path(__file__).resolve().parent / script
    status = _status_of([sys.executable, str(place), *options])
    number = -status if status < 0 else status - 128  # of the signal that ended it, if one did
    if number in SIGNALS:
        print(f"{script} was stopped; the same command goes on from there.", file=sys.stderr)
        sys.exit(status_after(number))
    if status < 0:
        raise InputError(
            f"{script} was ended by signal {number} ({signal.strsignal(number)}); the same command "
            "goes on from there."
        )
    if status:
        raise InputError(f"{script} ended with exit status {status}; what it said stands above.")


def _status_of(command: list[str]) -> int:
    """Run a command to its end; its exit status, or less than 0: the signal that ended it.

    What Ctrl-C and SIGTERM mean is for the command to decide; where it was about to end well
    anyway, the status is that after the signal.
    """
    process, received = None, []

    def pass_on(number: int, _) -> None:
        received.append(number)
        if process is not None and number == signal.SIGTERM:  # a terminal sends Ctrl-C to both
            process.send_signal(number)

    with handled_by(dict.fromkeys(SIGNALS, pass_on)):
        with held_signals():  # in the command too, until its run_script(): twice there is once
            process = subprocess.Popen(command)
            for number in {*received, *waiting_signals()}:
                process.send_signal(number)
        status = process.wait()
    return status_after(received[0]) if received and status == 0 else status


def _show(table: dict) -> None:
    """Print the table."""
    wide = max(map(len, table))
    print(f"\n{'Unseen classes':{wide}}" + "".join(f"{column:>14}" for column in COLUMNS))
    for name, row in table.items():
        print(f"{name:{wide}}" + "".join(f"{value:14.3f}" for value in row.values()))


def _suggest(data_path: str, save: Path) -> None:
    """Commands to go on with."""
    data, beside = shlex.join(["--data_path", data_path]), shlex.quote(str(save))
    drawn = Path(data_path) / "Synthetic"
    photos, sketches = (shlex.quote(str(drawn / name)) for name in ("photo", "sketch/guitar"))
    checkpoint, gallery = f"{beside}/trained/{BEST}", "galleries/synthetic"
    print(f"""
What to try next:
# search a folder of photos with sketches: found/index.html shows what was found
python retrieve.py index --photos {photos} -l {checkpoint} --out {gallery} --tokens
python retrieve.py search --gallery {gallery} --sketch {sketches} --out found
# more sketches and what is found for them
python test.py --dataset synthetic {data} --save {beside}/trained -r sa --save_pictures 100
# the published recipe
python quickstart.py {data} --save {beside}_paper {PAPER}
# three times as long
python quickstart.py {data} --save {beside}_longer --epoch 24""")


if __name__ == "__main__":
    run_script(main)
