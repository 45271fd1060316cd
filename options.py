"""The options that all methods share, as tables, and those of each script.

A method declares its own options in its settings (model/settings.py); names and short forms of the
published ZSE-SBIR (Lin et al., CVPR 2023) are kept. Imports no torch: --help answers at once.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets import DATASETS
from model import METHODS, settings_class
from model.settings import TrainingSettings, add_settings, options_of
from utils.arguments import (
    Option,
    Parser,
    add_group,
    choice,
    count,
    device,
    device_of_process,
    switch,
    text,
)

AMP = ("off", "auto", "bf16", "fp16")
VIEWS = ("plain", "mirror", "many")
SHORTLIST = 1000
SEARCH_SHORTLIST = 200
EVERY_PHOTO = sys.maxsize  # -k all
HIGHEST_SEED = 2**32 - 1  # that numpy takes
MOST_WORKERS, MOST_WIDTH = 1024, 65536


def _count_or_all(text: str) -> int:
    """The value of -k: a whole number from 1 on, or EVERY_PHOTO for the word all."""
    return EVERY_PHOTO if text == "all" else count(None, "").parse(text)


# ---- tables: name -> Option; a dict instead holds arguments of argparse's add_argument()

DATA_PATH = {
    "data_path": text("./datasets", "folder that holds {}", "FOLDER"),
}
DATA = {
    **DATA_PATH,
    "dataset": choice("sketchy_extend", "the benchmark", *DATASETS),
    "test_class": choice(
        None,
        "the split: which classes are unseen (default: the first of the dataset)",
        *(split for dataset in DATASETS.values() for split in dataset.splits),
    ),
    "skip_bad": switch(
        "go on without missing or unreadable images, and count them; without this option the first "
        "one ends the program"
    ),
}
CLASSES = {
    "cls_number": count(
        None, "train on the first N seen classes of the list (default: all in the data)", least=2
    ),
}
MODEL = {
    "method": choice("zse_sbir", "what is trained; a checkpoint names its own", *METHODS),
    "load": text(
        None,
        "a checkpoint, ours or a published one: what test.py scores (default: best_checkpoint.pth "
        "of the save folder), what train.py starts from (default: none)",
        "FILE",
        short="l",
    ),
}
START = {
    "pretrained": switch("start from pretrained weights", default=True),
    "pretrained_path": text(
        None,
        "file of those weights: sam_ViT-B_16.pth as downloaded, timm's .pth or .safetensors, or "
        "Google's .npz; also looked for in ./model (default: sam_ViT-B_16.pth where it lies there, "
        "else from timm by name)",
        "FILE",
    ),
}
DEVICE = {
    "choose_cuda": {
        "words": ["-c", "--choose_cuda"],
        "type": device,
        "default": "0",
        "metavar": "DEVICE",
        "help": "number of the GPU, or cpu; without a GPU the CPU is used (default 0)",
    },
}
RUN = {
    "save": text(
        None,
        "where a run keeps its files (default: ./checkpoints/ and sketchy_ext, tuberlin_ext, "
        "quickdraw_ext or synthetic, as the dataset)",
        "FOLDER",
        short="s",
    ),
    "choose_cuda": DEVICE["choose_cuda"] | {"type": device_of_process},
    "num_workers": count(
        4, "processes that read images; 0: the main process does", least=0, most=MOST_WORKERS
    ),
}
SEED = {"seed": count(2021, "seed of all random numbers", least=0, most=HIGHEST_SEED)}
TRAINING_RUN = {
    "resume": switch("go on with the run in the save folder, from where it stopped"),
    "save_minutes": Option(
        10.0,
        "minutes between checkpoints within an epoch; one is also written at its end, and when the "
        "run is stopped",
        least=0,
        most=10**6,
        metavar="MIN",
    ),
    "tensorboard": switch(
        "write curves for TensorBoard to tensorboard/ in the save folder; needs the package "
        "tensorboard"
    ),
    "validate": choice(
        "seen",
        "what chooses the best checkpoint after each epoch: a tenth of the seen classes, not "
        "trained on (seen); the unseen test classes, as in the paper (test); nothing: train on all "
        "seen classes and keep the last epoch (none)",
        *("seen", "test", "none"),
    ),
    "validation_classes": count(
        None, "how many seen classes --validate seen holds out (default: a tenth)", least=2
    ),
    "cache_images": {
        "nargs": "?",
        "const": "",
        "metavar": "FOLDER",
        "help": "keep every training image there once it is prepared: later epochs and runs copy "
        "it instead of decoding it; 0.15 MB an image at 224 px, reserved at once (without FOLDER: "
        "cache_images/ beside the lists of images; default: keep none)",
    },
}
RECIPE = "values of all training options that are not given: docs/recipe.md"
EVALUATION = {
    "retrieval": choice(
        "rn",
        "what ranks the photos for a sketch: the relation network's score of each pair (rn); the "
        "similarity of retrieval vectors (sa); or sa, then rn among the first photos (rerank)",
        *("rn", "sa", "rerank"),
        short="r",
    ),
    "shortlist": count(
        None,
        "with -r rerank: how many photos of each sketch are scored as pairs; on some sketches all "
        f"are, to measure what the shortlist costs (default: {SHORTLIST})",
        metavar="K",
    ),
    "fuse": Option(
        0.0,
        "with -r rn or rerank: add W times the similarity of -r sa to the score of every pair",
        least=0,
        most=10**6,
        metavar="W",
    ),
    "views": choice(
        "plain",
        "the retrieval vector of an image: of the image as it is (plain); the mean with that of "
        "its mirror image, twice the work (mirror); the mean over 8 views of a sketch and 3 of a "
        "photo (many). -r sa and the shortlist of rerank compare it, --fuse adds its similarity, "
        "and a model with --shortcut reads it in the score of each pair",
        *VIEWS,
    ),
    "expand": count(
        0,
        "average the retrieval vector of each photo with those of the K photos nearest to it, then "
        "that of each sketch with its K nearest photos; whatever reads the vectors of --views then "
        "reads these. 0: leave all as they are",
        least=0,
        metavar="K",
    ),
    "testall": switch(
        "score all images, in train.py those of the validation classes; else a fixed part: for "
        "Sketchy every 20th sketch and 10th photo"
    ),
    "part": {
        "nargs": 2,
        "type": count(None, "").parse,
        "metavar": ("S", "P"),
        "help": "score every S-th sketch and every P-th photo instead (default: that fixed part)",
    },
    "test_sk": count(
        None, "sketches encoded and scored at a time (default: what suits the memory)"
    ),
    "test_im": count(None, "photos encoded and scored at a time (default: what suits the memory)"),
}
TESTING = {
    "allow_seen": switch(
        "score although the checkpoint was trained on some of the tested classes: the numbers are "
        "then not zero-shot"
    ),
    "save_rankings": text(
        None,
        "write the 200 best photos of every sketch: arrays queries, gallery (paths), ranking "
        "(numbers in gallery, closest first), similarity (default: none)",
        "FILE.npz",
    ),
    "save_pictures": count(
        None,
        "draw N sketches (1 to 100), spread evenly over the list, with their best ten photos, in "
        "one picture beside the results; green frames: right class, red: wrong (default: none)",
        most=100,
    ),
    "no_cache": switch(
        "encode all images anew and keep nothing; else their features lie in features/ beside the "
        "checkpoint, and the next test reads them there"
    ),
    "cache_precision": choice(
        "fp16",
        "of the tokens kept there, which -r rn and rerank read; retrieval vectors are fp32",
        *("fp16", "fp32"),
    ),
}
PRECISION = {
    "amp": choice(
        "off",
        "number format of the network: fp32 without TF32 (off); bfloat16 (bf16) or float16 (fp16), "
        "with fp32 where these are not safe; as suits the device (auto): bf16 where it is fast, "
        "else fp16 on a GPU and off on a CPU. Scores are always ranked in fp32",
        *AMP,
    ),
}
COMPILE = {
    "compile": switch(
        "compile the network that scores pairs with torch.compile, which takes a minute and pays "
        "on GPUs"
    ),
}
INDEX = {
    "photos": text(
        None,
        "folder of photos, with all folders in it; no labels are needed (required)",
        "DIR",
        required=True,
    ),
    "load": text(None, "checkpoint to encode with (required)", "FILE", short="l", required=True),
    "out": text(
        None, "folder of the gallery: made, or brought up to date (required)", "G", required=True
    ),
    "index": choice(
        None,
        "how the nearest vectors are found: all compared (exact), or approximately by FAISS's IVF, "
        "with its recall measured and printed (default: as the gallery has it, a new one exact)",
        *("exact", "ivf"),
    ),
    "tokens": switch(
        "keep patch tokens in fp16, 0.3 MB a photo at ViT-B: -r rn and rerank then need not encode "
        "photos for each search"
    ),
    "num_workers": RUN["num_workers"],
    **PRECISION,
    **DEVICE,
}
SEARCH = {
    "gallery": text(None, "folder that index has written (required)", "G", required=True),
    "sketch": {
        "nargs": "+",
        "required": True,
        "metavar": "FILE",
        "help": "sketches, or folders of them: any image, also a photo of a drawing, and SVG where "
        "cairosvg is installed (required)",
    },
    "out": text(
        None, "where ranking.json, pictures and the page go (required)", "DIR", required=True
    ),
    "k": {
        "words": ["-k"],
        "type": _count_or_all,
        "default": 10,
        "metavar": "K",
        "help": "how many photos of each sketch, or all (default 10)",
    },
    "retrieval": replace(EVALUATION["retrieval"], default="sa"),
    "shortlist": count(
        None,
        f"with -r rerank: photos of each sketch (default: {SEARCH_SHORTLIST})",
        metavar="K",
    ),
    "clean": choice(
        "auto",
        "remove the paper's shading from a photo of a drawing, and make coloured lines dark: where "
        "the sketch looks like one, always, or never",
        *("auto", "always", "never"),
    ),
    "load": text(
        None,
        "the checkpoint, where it lies elsewhere than when the gallery was built (default: the one "
        "that the gallery names)",
        "FILE",
        short="l",
    ),
    "test_sk": count(None, "sketches at a time (default: what suits the memory)"),
    "num_workers": replace(RUN["num_workers"], default=0),
    **PRECISION,
    **DEVICE,
}
DRAWING = {
    "instances": count(40, "of each category, each as photo and as sketch", least=2, most=999),
    "size": count(96, "side of the pictures, 32 to 1024 px", least=32, most=1024, metavar="PX"),
    "seed": count(0, "of the drawings", least=0, most=HIGHEST_SEED),
    "sheet": text(None, "show some of it in one picture (default: none)", "FILE.png"),
}
QUICKSTART = {
    "save": text(
        "./checkpoints/quickstart",
        "where everything is kept; a stopped run goes on there",
        "FOLDER",
        short="s",
    ),
    "seed": count(1, "of training", least=0, most=HIGHEST_SEED),
    **DEVICE,
}

_JSON = {"json": text(None, "keep all figures there (default: none)", "FILE")}
_NETWORK = {
    "vit": text("vit_base_patch16_224", "timm's name of the ViT, with random weights", "NAME"),
    "downsampling": choice("published", "as in train.py", "published", "spatial"),
    **PRECISION,
}
_REPEAT = {"repeat": count(5, "measurements, of which the median counts")}
BENCH = {
    "encode": ("benches.evaluation:encode", "images to features", _NETWORK | _REPEAT),
    "pairs": (
        "benches.evaluation:pairs",
        "scores of pairs by the relation network",
        _NETWORK | _REPEAT | COMPILE,
    ),
    "metrics": (
        "benches.evaluation:metrics",
        "all metrics of -r sa, beside the matrix product",
        {
            "queries": count(92_291, "query vectors: QuickDraw's"),
            "photos": count(54_151, "photo vectors: QuickDraw's"),
            "width": count(768, "numbers of a vector: ViT-B's", most=MOST_WIDTH),
            "classes": count(30, "classes, of equal size: QuickDraw's"),
        },
    ),
    "evaluate": (
        "benches.evaluation:evaluate",
        "a whole evaluation by vectors, and by all pairs",
        {
            **(_NETWORK | COMPILE),
            "images": count(625, "sketches, and photos"),
            "sample": count(16, "sketches whose pairs are scored; the rest is extrapolated"),
        },
    ),
    "loader": (
        "benches.training:loader",
        "image files to the pictures of training",
        {
            "images": count(200, "sketches and photos, half of each", least=4),
            "size": count(256, "side of their files", least=64, most=10000, metavar="PX"),
            "side": count(224, "side of the network's input", least=8, most=10000, metavar="PX"),
            "num_workers": count(
                1, "data workers, beside the measurement without", least=0, most=MOST_WORKERS
            ),
            "augment": replace(options_of(TrainingSettings)["augment"], help="as in train.py"),
        },
    ),
    "train": (
        "benches.training:train",
        "whole steps of training, beside plain fp32",
        {
            "vit": _NETWORK["vit"],
            **{n: o for n, o in options_of(TrainingSettings).items() if o.group == "speed"},
            "recipe": choice("strong", "what is trained, and on which batches", "strong", "paper"),
            "batch": count(8, "draws a step", least=3),
            "steps": count(5, "steps measured after the first; the median counts"),
            "num_workers": count(1, "data workers", least=0, most=MOST_WORKERS),
        },
    ),
    "gallery": (
        "benches.gallery:gallery",
        "nearest vectors: exact, and by IVF",
        {
            "count": count(1_000_000, "vectors in the gallery"),
            "width": count(192, "numbers of a vector", most=MOST_WIDTH),
            "queries": count(200, "queries by which recall is measured"),
            "timed": count(100, "how many of these queries are timed"),
        },
    ),
}
"""Stages of bench.py: by name, the function that measures it, what it is, and its options."""

_FIXED = ("dataset", "test_class", "cls_number", "seed", "validate", "validation_classes")
"""Options, besides settings, that may not change when a run is resumed."""
_FIXED_WITH_VALIDATION = ("retrieval", "shortlist", "fuse", "views", "expand", "testall", "part")


# ---- scripts


def train_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of train.py, checked. Exits with a message where they make no sense.

    settings: those of the method. given: by field, those that were on the command line.
    """
    words = sys.argv[1:] if arguments is None else arguments
    method = _method_in(words)
    settings = settings_class(method)
    parser = Parser(
        partial(_option_of_another_method, method),
        description="Train one method for zero-shot sketch-based image retrieval.",
        prog="train.py",
    )
    data = DATA | CLASSES
    add_group(parser, "data", _with_folder(data, "Sketchy/, TUBerlin/, QuickDraw/, Synthetic/"))
    add_group(parser, "model", MODEL | START)
    add_group(parser, "run", RUN | SEED | TRAINING_RUN)
    add_group(parser, "validation, as test.py scores", EVALUATION)
    group = parser.add_argument_group("recipe")
    recipes = tuple(settings.recipes())
    choice(recipes[0], RECIPE, *recipes).add_to(group, "recipe")
    flags = add_settings(parser, group, settings)
    args = _parsed(parser, words, flags)
    pretrained = args.pretrained or bool(args.load)
    args.settings = replace(settings.recipes(pretrained)[args.recipe], **args.given)
    if args.validation_classes and args.validate != "seen":
        parser.error(f"--validation_classes goes with --validate seen, not {args.validate}")
    if args.settings.draws == "classes" and args.settings.batch < 3:
        parser.error(
            f"--batch {args.settings.batch}: draws of classes need 3 or more, so that two classes "
            "meet"
        )
    return args


def test_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of test.py, checked. Exits with a message where they make no sense.

    given: by field, the settings that were on the command line.
    """
    words = sys.argv[1:] if arguments is None else arguments
    method = _method_in(words)
    settings = settings_class(method)
    parser = Parser(
        partial(_option_of_another_method, method),
        description="Score a checkpoint on the unseen classes of a benchmark.",
        prog="test.py",
    )
    add_group(parser, "data", _with_folder(DATA, "Sketchy/, TUBerlin/, QuickDraw/, Synthetic/"))
    add_group(parser, "model", MODEL)
    add_group(parser, "run", RUN)
    add_group(parser, "evaluation", EVALUATION | TESTING)
    add_group(parser, "speed", PRECISION | COMPILE)
    ignored = parser.add_argument_group(
        "training", "Ignored: one command line serves train.py and test.py."
    )
    add_group(ignored, "", CLASSES | START | SEED)
    flags = add_settings(parser, ignored, settings, trains=False)
    args = _parsed(parser, words, flags)
    if args.save_rankings and not args.save_rankings.endswith(".npz"):
        parser.error(f"--save_rankings {args.save_rankings}: the name must end in .npz")
    return args


def retrieve_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of retrieve.py; `task` is the subcommand's name. Exits where they are wrong."""
    parser = Parser(
        description="Search a folder of photos with one's own sketches.", prog="retrieve.py"
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="task")
    index = _task(tasks, "index", "encode a folder of photos; later, only what is new or changed")
    add_group(index, "index", INDEX)
    search = _task(tasks, "search", "find the photos that show what a sketch shows")
    add_group(search, "search", SEARCH)
    args = parser.parse_args(arguments)
    if args.task == "search":
        _check_shortlist(args, parser, SEARCH_SHORTLIST)
    return args


def prepare_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of prepare.py; `task` is the subcommand's name."""
    parser = Parser(description="Make data ready.", prog="prepare.py")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="task")
    about = "draw the built-in benchmark: objects made of named parts, as photos and as sketches"
    task = _task(tasks, "synthetic", about)
    add_group(task, "drawing", _with_folder(DATA_PATH, "Synthetic/, which is drawn there"))
    add_group(task, "", DRAWING)
    return parser.parse_args(arguments)


def quickstart_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of quickstart.py; `training` holds those that it passes on to train.py."""
    parser = Parser(
        description="Draw data, train a small network on it, score it, and show what it finds. "
        "Further options are train.py's.",
        prog="quickstart.py",
    )
    add_group(parser, "", _with_folder(DATA_PATH, "Synthetic/, drawn there where it is absent"))
    add_group(parser, "", QUICKSTART)
    args, args.training = parser.parse_some(arguments)
    return args


def bench_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of bench.py; `stage` is the subcommand's name."""
    parser = Parser(
        description="How fast is this machine, as a share of what it could do?", prog="bench.py"
    )
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, (_, about, options) in BENCH.items():
        add_group(_task(stages, name, about), "", options | DEVICE | _JSON)
    return parser.parse_args(arguments)


# ---- what the scripts pass on


def benchmark_settings(args: argparse.Namespace) -> dict:
    """Keyword arguments of datasets.load_benchmark(), from the options of train.py."""
    return {
        "unseen": args.validate == "test",
        "validation": args.validate == "seen",
        "validation_classes": args.validation_classes,
        "seed": args.seed,
        "classes": args.cls_number,
        "skip_bad": args.skip_bad,
    }


def ranker_settings(args: argparse.Namespace) -> dict:
    """Keyword arguments of the ranker that -r names (retrieval.scoring.RANKERS)."""
    names = {
        "sa": ("expand",),
        "rn": ("fuse", "expand"),
        "rerank": ("fuse", "expand", "shortlist"),
    }[args.retrieval]
    return {name: getattr(args, name) for name in names if name in args}


def encoder_settings(args: argparse.Namespace) -> dict:
    """The options that retrieval.encoder.Encoder takes, by its names."""
    return {"views": args.views, "workers": args.num_workers, "skip_bad": args.skip_bad}


def block_settings(args: argparse.Namespace) -> dict:
    """The options that retrieval.evaluate.evaluate() takes, by its names."""
    return {"query_block": args.test_sk, "gallery_block": args.test_im}


def scored_part(args: argparse.Namespace, published: Mapping[str, int]) -> dict[str, int]:
    """By modality, a number n: every n-th image is scored.

    published: these numbers where neither --testall nor --part is given.
    """
    if args.testall:
        return dict.fromkeys(published, 1)
    return dict(zip(("sketch", "photo"), args.part, strict=True)) if args.part else dict(published)


def result_name(args: argparse.Namespace, checkpoint: str, ending: str) -> str:
    """The name of a file of results of test.py: all options that change numbers are in it.

    checkpoint: name of the file that was scored. ending: of the new name, without its first dot.
    """
    mode = args.retrieval
    if mode == "rerank":
        mode = f"{mode}{args.shortlist}"
    if args.fuse:
        mode = f"{mode}+{args.fuse:g}sa"
    if args.views != "plain":
        mode = f"{mode}-{args.views}"
    if args.expand:
        mode = f"{mode}-expand{args.expand}"
    if args.amp != "off":
        mode = f"{mode}-{args.amp}"
    usual = TESTING["cache_precision"].default
    if args.retrieval != "sa" and args.cache_precision != usual:
        mode = f"{mode}-tokens_{args.cache_precision}"
    part = "all" if args.testall else "part"
    if args.part:
        part = "{}x{}".format(*args.part)
    return f"{Path(checkpoint).stem}.{args.test_class}.{mode}.{part}.{ending}"


def run_settings(args: argparse.Namespace, root: Path) -> dict:
    """Keyword arguments of training.run.Run, from the options of train.py.

    root: the folder of the lists of images.
    """
    cache = None
    if args.cache_images is not None:
        cache = Path(args.cache_images) if args.cache_images else root / "cache_images"
    return {
        "seed": args.seed,
        "workers": args.num_workers,
        "skip_bad": args.skip_bad,
        "cache_images": cache,
        "save_minutes": args.save_minutes,
        "tensorboard": args.tensorboard,
    }


def changed_options(args: argparse.Namespace, then: Mapping) -> list[str]:
    """The options that may not change when a run is resumed and did: "--name then (now ...)" each.

    then: plain_options() of the run; a setting that did not exist then had its default. --batch is
    checked by training.run.Run, and settings that rebuild the model by model.rebuild_model().
    """
    names = list(_FIXED)
    if args.validate != "none":
        names += _FIXED_WITH_VALIDATION
    for name, option in options_of(type(args.settings)).items():
        if option.fixed and not option.rebuilds:
            names.append(option.flag or name)
    if args.settings.schedule != "constant":
        names.append("epoch")
    now, then = plain_options(args), {**type(args.settings)().by_flag(), **then}
    return [f"--{n} {then[n]} (now {now[n]})" for n in names if then.get(n, now[n]) != now[n]]


def plain_options(args: argparse.Namespace) -> dict:
    """All options as plain values, for JSON and checkpoints; settings by their options' names."""
    kept = {name: v for name, v in vars(args).items() if name not in ("given", "settings")}
    return {**kept, **(args.settings.by_flag() if "settings" in args else {})}


def _task(tasks, name: str, about: str) -> Parser:
    return tasks.add_parser(name, help=about, description=about)


def _with_folder(options: dict[str, Option], holds: str) -> dict[str, Option]:
    """The options, with the content of --data_path in its help."""
    path = options["data_path"]
    return {**options, "data_path": replace(path, help=path.help.format(holds))}


def _method_in(words: Sequence[str]) -> str:
    """The method that a command line names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--method", default=MODEL["method"].default)
    try:
        method = parser.parse_known_args(words)[0].method
    except argparse.ArgumentError:  # the whole parser will say so
        method = None
    return method if method in METHODS else MODEL["method"].default


def _parsed(parser: Parser, words: Sequence[str], flags: Mapping[str, str]) -> argparse.Namespace:
    """The options, checked against each other, and with what the dataset decides.

    flags: fields of settings by their options; `given` holds those on the command line.
    """
    args = parser.parse_args(words)
    args.given = {name: vars(args).pop(f) for f, name in flags.items() if f in vars(args)}
    dataset = DATASETS[args.dataset]
    if args.test_class is None:
        args.test_class = next(iter(dataset.splits))
    elif args.test_class not in dataset.splits:
        pairs = "; ".join(f"--dataset {n}: {' or '.join(d.splits)}" for n, d in DATASETS.items())
        parser.error(
            f"--test_class {args.test_class} is no split of {args.dataset}. Right are: {pairs}"
        )
    if args.save is None:
        args.save = f"./checkpoints/{dataset.save}"
    if args.pretrained_path and not args.pretrained:
        parser.error("--pretrained_path names weights that --no-pretrained forbids: drop one")
    _check_evaluation(args, parser)
    return args


def _check_evaluation(args: argparse.Namespace, parser: Parser) -> None:
    """Refuse options that change nothing in the way of retrieval that is chosen."""
    if args.fuse and args.retrieval == "sa":
        parser.error(f"--fuse {args.fuse:g} adds to the scores of pairs: it needs -r rn or rerank")
    _check_shortlist(args, parser, SHORTLIST)
    if args.retrieval == "rn" and not args.fuse:
        for option, value, off in (("--views", args.views, "plain"), ("--expand", args.expand, 0)):
            if value != off:
                parser.error(
                    f"{option} {value} changes the vectors that -r sa compares: choose -r sa or "
                    "rerank, or add --fuse"
                )
    if args.part and args.testall:
        parser.error("--part scores a part of what --testall scores: drop one")


def _check_shortlist(args: argparse.Namespace, parser: Parser, usual: int) -> None:
    if args.shortlist and args.retrieval != "rerank":
        parser.error(
            f"--shortlist {args.shortlist} limits what -r rerank scores: -r is {args.retrieval}"
        )
    args.shortlist = args.shortlist or usual


def _option_of_another_method(chosen: str, word: str) -> str | None:
    """A sentence for an option that the chosen method lacks and another one has."""
    flag = word.split("=")[0]
    for method in METHODS:
        known = {
            spelling
            for name, option in options_of(settings_class(method)).items()
            for spelling in option.spellings(name)
        }
        if method != chosen and flag in known:
            return f"{flag} is an option of the method {method}: add --method {method}"
    return None
