"""Every command-line option: groups, help, checks across options.

Names and short forms of ZSE-SBIR (Lin et al., CVPR 2023) are kept; the help text tells where one
was repaired. Defaults of training are the recipe's. Imports no torch: --help answers at once.
"""

import argparse
import difflib
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from datasets import DATASETS, SPLITS
from model.recipes import RECIPES, values_of

SAVE_FOLDERS = {
    "sketchy_extend": "./checkpoints/sketchy_ext",
    "tu_berlin": "./checkpoints/tuberlin_ext",
    "Quickdraw": "./checkpoints/quickdraw_ext",
    "synthetic": "./checkpoints/synthetic",
}
ARCHITECTURE = {
    "vit": "vit",
    "d_model": "width",
    "d_ff": "hidden",
    "head": "heads",
    "number": "layers",
    "anchor_number": "anchors",
    "downsampling": "downsampling",
    "shortcut": "shortcut",
    "keep_rate": "keep_rate",
    "whitening": "whitening",
}
"""Option -> setting of the model; a checkpoint brings its own."""

TRAINING_SETTINGS = (
    "draws",
    "triplet_weight",
    "relation_weight",
    "relation_loss",
    "contrastive_weight",
    "temperature",
    "learn_temperature",
    "classification_weight",
    "distillation_weight",
    "dropout",
)
"""Options that tell the model how to train, whatever a checkpoint's are; its settings by name."""

LOSSES = {
    "triplet": "triplet loss of the retrieval tokens after cross-attention",
    "relation": "loss of the relation network, which -r rn compares by",
    "contrastive": "class-wise contrastive loss between the retrieval tokens before "
    "cross-attention, which -r sa compares",
    "classification": "cross-entropy of the seen classes, told from those same tokens",
    "distillation": "distance (1 - cosine) of the photos' tokens from what the tokenizer said of "
    "them before training",
}
"""What the losses are; the option of their weight is --<name>_weight."""

AMP = ("off", "auto", "bf16", "fp16")
AUGMENT = ("none", "flip", "light", "strong")
SHORTLIST = 1000
SEARCH_SHORTLIST = 200
EVERY_PHOTO = sys.maxsize  # -k all

_ARCHITECTURE_DEFAULTS = {
    "vit": "vit_base_patch16_224",
    "head": 8,
    "number": 1,
    "keep_rate": 1.0,
}
RESULT_OPTIONS = (
    "dataset",
    "test_class",
    "cls_number",
    *(name for name in RECIPES["paper"] if name not in ("epoch", "batch")),
    "amp",
    "tf32",
    "compile",
    "accumulate",
    "clip",
    "seed",
    "validate",
    "validation_classes",
)
"""Training options that may not change when a run is resumed; of --batch, see train.py."""

_NEWER_THAN_RUNS = {"amp": "off", "tf32": False, "compile": False, "accumulate": 1, "clip": 0.0}

VALIDATION_OPTIONS = ("retrieval", "shortlist", "fuse", "views", "expand", "testall", "part")
"""Nor may these, where something is validated."""


def train_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of train.py, checked. Exits with a message where they make no sense."""
    parser = _parser("Train ZSE-SBIR for zero-shot sketch-based image retrieval.", "train.py")
    _add_shared(parser)
    group = parser.add_argument_group("training, beyond the published options")
    _add_recipe(group)
    group.add_argument(
        "--validate",
        choices=("seen", "test", "none"),
        default="seen",
        help="what chooses the best checkpoint after each epoch: a tenth of the seen classes, "
        "not trained on (seen); the unseen test classes, as the paper did (test); nothing, train "
        "on all seen classes and keep the last epoch (none) (default %(default)s)",
    )
    group.add_argument(
        "--validation_classes",
        type=_count(2),
        metavar="N",
        help="how many seen classes --validate seen holds out (default: a tenth)",
    )
    _add_speed(group)
    group.add_argument(
        "--accumulate",
        type=_count(1),
        default=1,
        metavar="N",
        help="batches a step: N times the draws in the memory of one batch; contrast and hard "
        "negatives stay within a batch (default %(default)s)",
    )
    group.add_argument(
        "--clip",
        type=_number(0),
        default=0.0,
        metavar="NORM",
        help="scale the gradient down to this norm where it is larger; 0: never "
        "(default %(default)g)",
    )
    group.add_argument(
        "--save_minutes",
        type=_number(0),
        default=10.0,
        metavar="MIN",
        help="minutes between checkpoints within an epoch; one is also written at its end, and "
        "when the run is stopped (default %(default)g)",
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="write curves for TensorBoard to tensorboard/ in the save folder; needs the package "
        "tensorboard (default: off)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in the save folder, from where it stopped (default: off)",
    )
    group.add_argument(
        "--cache_images",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="keep every training image there once it is prepared, so that later epochs and runs "
        "copy it instead of decoding it: 0.15 MB an image at 224 px, reserved at once (without "
        "FOLDER: cache_images/ beside the lists of images; default: keep none)",
    )
    args = _parsed(parser, arguments)
    for name, value in values_of(args.recipe, args.pretrained or bool(args.load)).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    _check_recipe(args, parser)
    return args


def test_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of test.py, checked. Exits with a message where they make no sense."""
    parser = _parser("Score a checkpoint on the unseen classes of a benchmark.", "test.py")
    _add_shared(parser)
    group = parser.add_argument_group("testing, beyond the published options")
    group.add_argument(
        "--amp",
        choices=AMP,
        default="off",
        help="what the network computes in: fp32 without TF32 (off); bfloat16 or fp16 where that "
        "is safe; auto: bfloat16 where the device is fast in it, else fp16 on a GPU and fp32 on a "
        "CPU. Scores are ranked in fp32 either way (default %(default)s)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the network that scores pairs with torch.compile, which takes a minute and "
        "pays on GPUs (default: off)",
    )
    group.add_argument(
        "--allow_seen",
        action="store_true",
        help="score although the checkpoint was trained on some of the tested classes: the "
        "numbers are then not zero-shot (default: off)",
    )
    group.add_argument(
        "--no_cache",
        action="store_true",
        help="encode all images anew and keep nothing; else their features lie in features/ "
        "beside the checkpoint, and the next test reads them there (default: off)",
    )
    group.add_argument(
        "--cache_precision",
        choices=("fp16", "fp32"),
        default="fp16",
        help="of the tokens kept there, which -r rn and rerank read; retrieval vectors are fp32 "
        "(default %(default)s)",
    )
    group.add_argument(
        "--save_rankings",
        metavar="FILE.npz",
        help="keep the 200 best photos of every sketch: arrays queries, gallery (paths), ranking "
        "(numbers in gallery, closest first), similarity (default: none)",
    )
    group.add_argument(
        "--save_pictures",
        type=_count(1, 100),
        metavar="N",
        help="N sketches (1 to 100), spread evenly over the list whatever was found, with their "
        "best ten photos in one picture beside the results; green frames: right class, red: wrong "
        "(default: none)",
    )
    args = _parsed(parser, arguments)
    if args.save_rankings and not args.save_rankings.endswith(".npz"):
        parser.error(f"--save_rankings {args.save_rankings}: the name must end in .npz")
    return args


def prepare_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of prepare.py; `task` is the subcommand's name."""
    parser = _parser("Make data ready.", "prepare.py")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="task")
    text = "draw the built-in benchmark: objects made of named parts, as photos and as sketches"
    group = tasks.add_parser("synthetic", help=text, description=text, allow_abbrev=False)
    _add_data_path(group, "Synthetic/, which is drawn there")
    group.add_argument(
        "--instances",
        type=_count(2, 999),
        default=40,
        help="of each category, each as photo and as sketch (default %(default)s)",
    )
    group.add_argument(
        "--size",
        type=_count(32, 1024),
        default=96,
        metavar="PX",
        help="side of the pictures, 32 to 1024 px (default %(default)s)",
    )
    group.add_argument(
        "--seed", type=_count(0), default=0, help="of the drawings (default %(default)s)"
    )
    group.add_argument(
        "--sheet", metavar="FILE.png", help="show some of it in one picture (default: none)"
    )
    return parser.parse_args(arguments)


def quickstart_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of quickstart.py; `training` holds those that it hands on to train.py."""
    parser = _parser(
        "Draw data, train a small network on it, score it, and show what it finds. Further options "
        "are train.py's.",
        "quickstart.py",
    )
    _add_data_path(parser, "Synthetic/, drawn there where it is absent")
    parser.add_argument(
        "-s",
        "--save",
        metavar="FOLDER",
        default="./checkpoints/quickstart",
        help="where everything is kept; a stopped run goes on there (default %(default)s)",
    )
    parser.add_argument(
        "--seed", type=_count(0), default=1, help="of training (default %(default)s)"
    )
    _add_device(parser)
    args, args.training = parser.parse_known_args(arguments)
    return args


def bench_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of bench.py; `stage` is the subcommand's name."""
    parser = _parser("How fast is this machine, as a share of what it could do?", "bench.py")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    encode = stages.add_parser("encode", help="images to features")
    pairs = stages.add_parser("pairs", help="scores of pairs by the relation network")
    metrics = stages.add_parser("metrics", help="all metrics of -r sa, beside the matrix product")
    evaluate = stages.add_parser("evaluate", help="a whole evaluation by vectors, and by all pairs")
    loader = stages.add_parser("loader", help="image files to the pictures of training")
    train = stages.add_parser("train", help="whole steps of training, beside plain fp32")
    gallery = stages.add_parser("gallery", help="nearest vectors: exact, by HNSW, by IVF")
    for stage in (encode, pairs, metrics, evaluate, loader, train, gallery):
        _add_device(stage)
        stage.add_argument("--json", metavar="FILE", help="keep all figures there (default: none)")
    for stage in (encode, pairs, evaluate, train):
        stage.add_argument(
            "--vit",
            default="vit_base_patch16_224",
            metavar="NAME",
            help="timm's name of the ViT, with random weights (default %(default)s)",
        )
    for stage in (encode, pairs, evaluate):
        stage.add_argument(
            "--downsampling",
            choices=("published", "spatial"),
            default="published",
            help="as in train.py (default %(default)s)",
        )
        stage.add_argument(
            "--amp", choices=AMP, default="off", help="as in test.py (default %(default)s)"
        )
    _add_speed(train)
    train.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="strong",
        help="what is trained, and on which batches (default %(default)s)",
    )
    for option, least, default, what in (
        ("--batch", 3, 8, "draws a step"),
        ("--steps", 1, 5, "steps measured after the first; the median counts"),
        ("--num_workers", 0, 1, "data workers"),
    ):
        train.add_argument(
            option,
            type=_count(least),
            default=default,
            metavar="N",
            help=f"{what} (default %(default)s)",
        )
    for stage in (encode, pairs):
        stage.add_argument(
            "--repeat",
            type=_count(1),
            default=5,
            metavar="N",
            help="measurements, of which the median counts (default %(default)s)",
        )
    for stage in (pairs, evaluate):
        stage.add_argument("--compile", action="store_true", help="as in test.py (default: off)")
    for option, what, number in (
        ("--queries", "query vectors", 92_291),
        ("--photos", "photo vectors", 54_151),
        ("--width", "numbers of a vector", 768),
        ("--classes", "classes, of equal size", 30),
    ):
        metrics.add_argument(
            option,
            type=_count(1),
            default=number,
            metavar="N",
            help=f"{what} (default %(default)s: QuickDraw at ViT-B)",
        )
    for option, what, number in (
        ("--count", "vectors in the gallery", 1_000_000),
        ("--width", "numbers of a vector", 192),
        ("--queries", "queries, to measure recall", 200),
        ("--timed", "queries of these, to measure time", 100),
    ):
        gallery.add_argument(
            option,
            type=_count(1),
            default=number,
            metavar="N",
            help=f"{what} (default %(default)s)",
        )
    evaluate.add_argument(
        "--images",
        type=_count(1),
        default=625,
        metavar="N",
        help="sketches, and photos (default %(default)s)",
    )
    evaluate.add_argument(
        "--sample",
        type=_count(1),
        default=16,
        metavar="N",
        help="sketches whose pairs are scored; the rest is extrapolated (default %(default)s)",
    )
    for option, least, default, unit, what in (
        ("--images", 4, 200, "N", "sketches and photos, half of each"),
        ("--size", 64, 256, "PX", "side of their files"),
        ("--side", 8, 224, "PX", "side of what the network takes"),
        ("--num_workers", 0, 1, "N", "data workers, beside the measurement without; 0: none"),
    ):
        loader.add_argument(
            option,
            type=_count(least),
            default=default,
            metavar=unit,
            help=f"{what} (default %(default)s)",
        )
    loader.add_argument(
        "--augment", choices=AUGMENT, default="none", help="as in train.py (default %(default)s)"
    )
    return parser.parse_args(arguments)


def retrieve_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of retrieve.py; `task` is the subcommand's name. Exits where they are wrong."""
    parser = _parser("Search a folder of photos with one's own sketches.", "retrieve.py")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="task")
    text = "encode a folder of photos; a second time, only what is new or changed"
    index = tasks.add_parser("index", help=text, description=text, allow_abbrev=False)
    text = "find the photos that show what a sketch shows"
    search = tasks.add_parser("search", help=text, description=text, allow_abbrev=False)
    _add_index(index)
    _add_search(search)
    for task, workers in ((index, 4), (search, 0)):
        task.add_argument(
            "--num_workers",
            type=_count(0),
            default=workers,
            help="processes that read images (default %(default)s)",
        )
        task.add_argument(
            "--amp", choices=AMP, default="off", help="as in test.py (default %(default)s)"
        )
        _add_device(task)
    args = parser.parse_args(arguments)
    if args.task == "search":
        if args.shortlist and args.retrieval != "rerank":
            parser.error(
                f"--shortlist {args.shortlist} is what -r rerank scores: -r is {args.retrieval}"
            )
        args.shortlist = args.shortlist or SEARCH_SHORTLIST
    return args


def loss_settings(args: argparse.Namespace) -> dict:
    """The settings of the model that tell how to train, whatever a checkpoint's are."""
    return {name: getattr(args, name) for name in TRAINING_SETTINGS}


def draw_settings(args: argparse.Namespace) -> dict:
    """The options that datasets.batches.build_batches() takes, under its names."""
    return {
        "seed": args.seed,
        "skip_bad": args.skip_bad,
        "augmentation": args.augment,
        "per_class": args.per_class,
        "own_photo": args.own_photo,
    }


def cache_folder(args: argparse.Namespace, root: Path) -> Path | None:
    """Where prepared training images are kept; root: the folder of their lists. None: nowhere."""
    if args.cache_images is None:
        return None
    return Path(args.cache_images) if args.cache_images else root / "cache_images"


def changed_options(args: argparse.Namespace, then: dict) -> list[str]:
    """What of a run's former options may not be other now, as "--name value (now value)".

    Options that are newer than the run had the value that they have by default, or in the paper's
    recipe.
    """
    then = {**_NEWER_THAN_RUNS, **RECIPES["paper"], **then}
    names = list(RESULT_OPTIONS)
    if args.validate != "none":
        names += VALIDATION_OPTIONS
    if args.schedule != "constant":
        names.append("epoch")
    now = vars(args)
    return [f"--{n} {then[n]} (now {now[n]})" for n in names if then.get(n, now[n]) != now[n]]


def settings_of(args: argparse.Namespace) -> dict:
    """The model's settings by name, defaults included (None: the model works it out)."""
    return {ARCHITECTURE[name]: getattr(args, name) for name in ARCHITECTURE}


def named_settings(args: argparse.Namespace) -> dict:
    """Only those settings that the user wrote on the command line."""
    return {ARCHITECTURE[name]: getattr(args, name) for name in ARCHITECTURE if name in args.given}


def evaluation_settings(args: argparse.Namespace) -> dict:
    """The options that retrieval.evaluate.evaluate() takes, under its names."""
    return {
        "mode": args.retrieval,
        "fuse": args.fuse,
        "views": args.views,
        "expand": args.expand,
        "shortlist": args.shortlist,
        "query_block": args.test_sk,
        "gallery_block": args.test_im,
        "workers": args.num_workers,
        "skip_bad": args.skip_bad,
    }


def scored_part(args: argparse.Namespace, published: dict[str, int]) -> dict[str, int]:
    """Every how many-th image is scored, by modality; published: without an option that tells."""
    if args.testall:
        return dict.fromkeys(published, 1)
    return dict(zip(("sketch", "photo"), args.part, strict=True)) if args.part else published


def result_name(args: argparse.Namespace, checkpoint: str, ending: str) -> str:
    """What test.py with these options calls a file of results of the checkpoint of this name."""
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
    part = "all" if args.testall else "part"
    if args.part:
        part = "{}x{}".format(*args.part)
    return f"{Path(checkpoint).stem}.{args.test_class}.{mode}.{part}.{ending}"


def resolved(args: argparse.Namespace, settings: dict, classes: int | None = None) -> str:
    """The values of the options whose defaults follow from something else, as a line to print."""
    values = {"test_class": args.test_class, "save": args.save, "cls_number": classes}
    for name in ("d_model", "d_ff", "anchor_number"):
        values[name] = settings[ARCHITECTURE[name]]
    return " ".join(f"{name}={value}" for name, value in values.items() if value is not None)


def plain_options(args: argparse.Namespace) -> dict:
    """The options as JSON and checkpoints take them."""
    return {name: value for name, value in vars(args).items() if name != "given"}


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser(description: str, program: str) -> argparse.ArgumentParser:
    return _Parser(prog=program, description=description, allow_abbrev=False)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_training(
        parser.add_argument_group(
            "training", "test.py takes these too and ignores them: one list of flags serves both."
        )
    )
    _add_evaluation(parser.add_argument_group("retrieval and evaluation"))
    _add_running(parser.add_argument_group("files and machine"))


def _add_data_path(group: argparse._ActionsContainer, holds: str) -> None:
    group.add_argument(
        "--data_path",
        default="./datasets",
        help=f"folder that holds {holds} (default %(default)s)",
    )


def _add_device(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "-c",
        "--choose_cuda",
        type=_device,
        default="0",
        metavar="DEVICE",
        help="number of the GPU, or cpu (default %(default)s; without a GPU the CPU is used; "
        "repaired: published, CUDA or nothing)",
    )


def _add_data(group: argparse._ArgumentGroup) -> None:
    _add_data_path(group, "Sketchy/, TUBerlin/, QuickDraw/, Synthetic/")
    group.add_argument(
        "--dataset", choices=list(DATASETS), default="sketchy_extend", help="(default %(default)s)"
    )
    group.add_argument(
        "--test_class",
        choices=[split for splits in SPLITS.values() for split in splits],
        help="the split: which classes are unseen (default: the first of the dataset; repaired: "
        "published, a wrong pair of dataset and split went unnoticed)",
    )
    group.add_argument(
        "--cls_number",
        type=_count(2),
        metavar="N",
        help="train on the first N seen classes of the list (default: all that the data has; "
        "repaired: published, 100 whatever the data)",
    )
    group.add_argument(
        "--skip_bad",
        action="store_true",
        help="go on without missing or unreadable images, and count them (default: stop and name "
        "the first)",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    defaults = _ARCHITECTURE_DEFAULTS
    group.add_argument(
        "--vit",
        metavar="NAME",
        help="timm name of the tokenizer's Vision Transformer, or vit_mini_patch8_48, a small one "
        f"for the built-in benchmark (default {defaults['vit']})",
    )
    group.add_argument(
        "--d_model",
        type=_count(1),
        metavar="D",
        help="width of the tokens; must be the ViT's (default: the ViT's; 768 for ViT-B)",
    )
    group.add_argument(
        "--d_ff",
        type=_count(1),
        metavar="D",
        help="hidden width of the cross-attention's network (default: 4/3 of d_model; 1024 for "
        "ViT-B)",
    )
    group.add_argument(
        "--head",
        type=_count(1),
        metavar="H",
        help=f"heads of the cross-attention (default {defaults['head']})",
    )
    group.add_argument(
        "--number",
        type=_count(1),
        metavar="N",
        help=f"layers of the cross-attention (default {defaults['number']})",
    )
    group.add_argument(
        "-a",
        "--anchor_number",
        type=_count(1),
        metavar="A",
        help="local tokens compared per image (default: a quarter of the patch tokens, 49 of 196; "
        "all of them is the other choice; repaired: published, 144 and 196 crash)",
    )
    group.add_argument(
        "--downsampling",
        choices=("published", "spatial"),
        help="how patch tokens become anchors: as released weights need it, each anchor mixing "
        f"all patches, or as regions of the image {_of_recipes('downsampling')}",
    )
    group.add_argument(
        "--shortcut",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let the relation network also weigh three cosines: of the retrieval tokens, and of "
        "each side's anchors with their best partners; cross-attention then starts as the identity "
        f"{_of_recipes('shortcut')}",
    )
    group.add_argument(
        "--whitening",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="before -r sa compares retrieval tokens, take away the mean of each modality and even "
        f"out their covariance, both over the training images {_of_recipes('whitening')}",
    )
    group.add_argument(
        "--keep_rate",
        type=_number(0, 1, without=0),
        metavar="RATE",
        help="share of the patch tokens that each of three blocks keeps, above 0 to 1; 0.9 is the "
        f"paper's: 196 > 177 > 160 > 144 (default {defaults['keep_rate']}: all)",
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="start the tokenizer from pretrained weights (default: on; repaired: published, it "
        "could not be switched off)",
    )
    group.add_argument(
        "--pretrained_path",
        metavar="FILE",
        help="those weights: sam_ViT-B_16.pth as downloaded, or timm's .pth or .safetensors; also "
        "looked for in ./model (default: sam_ViT-B_16.pth where it lies there, else timm by name)",
    )
    group.add_argument(
        "--batch",
        type=_count(1),
        metavar="N",
        help="draws a step: triplets of 4 images each, or classes with --per_class sketches and as "
        f"many photos {_of_recipes('batch')}",
    )
    group.add_argument(
        "--epoch", type=_count(1), metavar="N", help=f"epochs {_of_recipes('epoch')}"
    )
    group.add_argument(
        "--datasetLen",
        type=_count(1),
        metavar="N",
        help=f"draws an epoch {_of_recipes('datasetLen')}",
    )
    group.add_argument(
        "--learning_rate",
        type=_number(0),
        metavar="RATE",
        help=f"of AdamW {_of_recipes('learning_rate')}",
    )
    group.add_argument(
        "--weight_decay",
        type=_number(0),
        metavar="RATE",
        help=f"of AdamW {_of_recipes('weight_decay')}",
    )


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    """The options that a recipe sets, those of the published program excepted."""
    group.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="strong",
        help="where every option of training that is not given takes its value from: what was "
        "measured to work best (docs/recipe.md), or the published values (default %(default)s)",
    )
    group.add_argument(
        "--draws",
        choices=("triplets", "classes"),
        help="what a draw is: two sketches and two photos, as published, or images of one class "
        f"{_of_recipes('draws')}",
    )
    group.add_argument(
        "--per_class",
        type=_count(1),
        metavar="K",
        help="sketches, and as many photos, of a draw of a class; triplets do not use it "
        f"{_of_recipes('per_class')}",
    )
    group.add_argument(
        "--own_photo",
        type=_number(0, 1),
        metavar="SHARE",
        help="how often a sketch of a drawn class comes with the photo it was drawn from, 0 to 1, "
        "where the file names tell (Sketchy, synthetic); triplets do not use it "
        f"{_of_recipes('own_photo')}",
    )
    group.add_argument(
        "--augment",
        choices=AUGMENT,
        help="change training images at random: mirror them; also move, shear and crop them a "
        "little; or all that datasets/augment.py has, at full range "
        f"{_of_recipes('augment')}",
    )
    for name, meaning in LOSSES.items():
        group.add_argument(
            f"--{name}_weight",
            type=_number(0),
            metavar="W",
            help=f"weight of the {meaning} (no unit) {_of_recipes(f'{name}_weight')}",
        )
    group.add_argument(
        "--relation_loss",
        choices=("mse", "logistic"),
        help="of the relation network: squared distance of the score from 0.99 and 0.01, or the "
        f"logistic loss of the logit {_of_recipes('relation_loss')}",
    )
    group.add_argument(
        "--temperature",
        type=_number(0.01, 1, without=1),
        metavar="T",
        help="the contrastive loss divides cosines by it, 0.01 to below 1 "
        f"{_of_recipes('temperature')}",
    )
    group.add_argument(
        "--learn_temperature",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let training change the temperature, down to 0.01 "
        f"{_of_recipes('learn_temperature')}",
    )
    group.add_argument(
        "--dropout",
        type=_number(0, 1, without=1),
        metavar="P",
        help="probability of dropping an activation, 0 to below 1; 0 suits small ViTs, which were "
        f"pretrained without {_of_recipes('dropout')}",
    )
    group.add_argument(
        "--schedule",
        choices=("constant", "cosine"),
        help="of the learning rate: the same throughout, or rising over the first tenth of the "
        f"training and falling to zero along a cosine {_of_recipes('schedule')}",
    )
    group.add_argument(
        "--layer_decay",
        type=_number(0, 1, without=0),
        metavar="D",
        help="each layer of the tokenizer learns at D times the rate of the next one, above 0 to 1 "
        f"{_of_recipes('layer_decay')}",
    )
    group.add_argument(
        "--new_rate",
        type=_number(0),
        metavar="M",
        help="what is not the tokenizer learns at M times the learning rate "
        f"{_of_recipes('new_rate')}",
    )
    group.add_argument(
        "--ema",
        type=_number(0, 1, without=1),
        metavar="D",
        help="keep a running average of the weights, decay D a step, and validate and save that; "
        f"0: no average {_of_recipes('ema')}",
    )


def _add_speed(group: argparse._ActionsContainer) -> None:
    """What a step of training is computed in, and kept for the way back."""
    group.add_argument(
        "--amp",
        choices=("auto", "off", "bf16"),
        default="auto",
        help="precision of the network's forward and backward pass, and of validation: fp32 (off); "
        "bfloat16 where that is safe; auto: bfloat16 where the device is fast in it. Weights, "
        "losses and the relation network are fp32 either way (default %(default)s)",
    )
    group.add_argument(
        "--tf32",
        action="store_true",
        help="let NVIDIA GPUs multiply fp32 in TF32, faster and with 10 bits (default: off)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the network with torch.compile, which takes minutes and pays on GPUs "
        "(default: off)",
    )
    group.add_argument(
        "--checkpoint_blocks",
        action="store_true",
        help="keep no activations inside the network's blocks but compute them again on the way "
        "back: a fraction of the memory, a third slower, the same result (default: off)",
    )


def _add_index(task: argparse.ArgumentParser) -> None:
    """The options of retrieve.py index."""
    task.add_argument(
        "--photos",
        required=True,
        metavar="DIR",
        help="folder of photos, with all folders in it; no labels are needed (required)",
    )
    task.add_argument(
        "-l", "--load", required=True, metavar="FILE", help="checkpoint to encode with (required)"
    )
    task.add_argument(
        "--out",
        required=True,
        metavar="G",
        help="folder of the gallery: made, or brought up to date (required)",
    )
    task.add_argument(
        "--index",
        choices=("exact", "hnsw", "ivf"),
        help="how the nearest vectors are found: all compared (exact), or approximately by FAISS's "
        "HNSW or IVF, whose recall is measured and told (default: as the gallery has it, a new one "
        "exact)",
    )
    task.add_argument(
        "--tokens",
        action="store_true",
        help="keep patch tokens in fp16, 0.3 MB a photo at ViT-B: -r rn and rerank then need not "
        "encode photos when a sketch asks (default: off)",
    )


def _add_search(task: argparse.ArgumentParser) -> None:
    """The options of retrieve.py search."""
    task.add_argument(
        "--gallery", required=True, metavar="G", help="folder that index has written (required)"
    )
    task.add_argument(
        "--sketch",
        required=True,
        nargs="+",
        metavar="FILE",
        help="sketches, or folders of them: any image, also a photo of a drawing, and SVG where "
        "cairosvg is installed (required)",
    )
    task.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="where ranking.json, pictures and the page go (required)",
    )
    task.add_argument(
        "-k",
        type=_count_or_all,
        default=10,
        metavar="K",
        help="how many photos of each sketch, or all (default %(default)s)",
    )
    task.add_argument(
        "-r",
        "--retrieval",
        choices=("rn", "sa", "rerank"),
        default="sa",
        help="compare retrieval tokens (sa), score every pair with the relation network (rn), or "
        "the pairs of those photos alone that sa puts first (rerank) (default %(default)s)",
    )
    task.add_argument(
        "--shortlist",
        type=_count(1),
        metavar="K",
        help=f"with -r rerank: how many photos of each sketch (default: {SEARCH_SHORTLIST})",
    )
    task.add_argument(
        "--clean",
        choices=("auto", "always", "never"),
        default="auto",
        help="take the paper's shading from a photo of a drawing and make coloured lines dark: "
        "where the sketch looks like it, in any case, or never (default %(default)s)",
    )
    task.add_argument(
        "-l",
        "--load",
        metavar="FILE",
        help="the checkpoint, where it lies elsewhere than when the gallery was built (default: "
        "what the gallery names)",
    )
    task.add_argument(
        "--test_sk",
        type=_count(1),
        metavar="N",
        help="sketches at a time (default: what suits the memory)",
    )


def _of_recipes(option: str) -> str:
    """What the recipes say of an option, for its help."""
    values = {name: recipe[option] for name, recipe in RECIPES.items()}
    scratch = values_of("strong", pretrained=False)[option]
    if scratch != values["strong"]:
        values = {"strong": values["strong"], "from scratch": scratch, "paper": values["paper"]}
    words = {True: "on", False: "off"}
    shown = {n: words[v] if isinstance(v, bool) else v for n, v in values.items()}
    return "(" + ", ".join(f"{name}: {value}" for name, value in shown.items()) + ")"


def _check_recipe(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse what cannot be trained, or would do nothing."""
    if args.validation_classes and args.validate != "seen":
        parser.error(f"--validation_classes goes with --validate seen, not {args.validate}")
    if args.draws == "classes" and args.batch < 3:
        parser.error(
            f"--batch {args.batch}: draws of classes need 3 or more, so that two classes meet"
        )
    if args.distillation_weight and not (args.pretrained or args.load):
        parser.error(
            "--distillation_weight keeps what pretraining knows, which --no-pretrained forbids"
        )


def _add_evaluation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-r",
        "--retrieval",
        choices=("rn", "sa", "rerank"),
        default="rn",
        help="score every pair with the relation network (rn), compare retrieval tokens (sa), or "
        "score the pairs of those photos alone that sa puts first (rerank) (default %(default)s)",
    )
    group.add_argument(
        "--shortlist",
        type=_count(1),
        metavar="K",
        help="with -r rerank: how many photos of each sketch; what is lost against all pairs is "
        f"measured on some sketches (default: {SHORTLIST})",
    )
    group.add_argument(
        "--fuse",
        type=_number(0),
        default=0.0,
        metavar="W",
        help="with -r rn or rerank: add W times what -r sa compares to every pair's score "
        "(default %(default)s: no)",
    )
    group.add_argument(
        "--views",
        choices=("plain", "mirror", "many"),
        default="plain",
        help="what -r sa compares of an image: itself; the mean of itself and its mirror image, "
        "twice the work; of 8 views of a sketch and 3 of a photo (default %(default)s)",
    )
    group.add_argument(
        "--expand",
        type=_count(0),
        default=0,
        metavar="K",
        help="before -r sa compares, average each photo with the K photos nearest to it, then each "
        "sketch with its K nearest photos; 0: compare each as it is (default %(default)s)",
    )
    group.add_argument(
        "--testall",
        action="store_true",
        help="score all images, in train.py those of the validation classes (default: a fixed "
        "part; for Sketchy every 20th sketch and 10th photo)",
    )
    group.add_argument(
        "--part",
        nargs=2,
        type=_count(1),
        metavar=("S", "P"),
        help="score every S-th sketch and every P-th photo instead (default: that fixed part)",
    )
    group.add_argument(
        "--test_sk",
        type=_count(1),
        metavar="N",
        help="sketches encoded and scored at a time (default: what suits the memory)",
    )
    group.add_argument(
        "--test_im",
        type=_count(1),
        metavar="N",
        help="photos encoded and scored at a time (default: what suits the memory)",
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-s",
        "--save",
        metavar="FOLDER",
        help="where a run keeps its files (default: ./checkpoints/ and sketchy_ext, tuberlin_ext, "
        "quickdraw_ext or synthetic, as the dataset)",
    )
    group.add_argument(
        "-l",
        "--load",
        metavar="FILE",
        help="a checkpoint, ours or a published one: what test.py scores (default: "
        "best_checkpoint.pth of the save folder), what train.py starts from (default: none)",
    )
    group.add_argument(
        "--num_workers", type=_count(0), default=4, help="processes that read images (default 4)"
    )
    _add_device(group)
    group.add_argument("--seed", type=_count(0), default=2021, help="of every draw (default 2021)")


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, without stray words and impossible pairs, and with what the dataset decides."""
    words = sys.argv[1:] if arguments is None else arguments
    for word in words:  # argparse would read -save as -s ave
        if word.startswith("-") and f"-{word.split('=')[0]}" in parser._option_string_actions:
            parser.error(_about_stray(word, parser))
    args, stray = parser.parse_known_args(words)
    stray = [word for word in stray if word != "--"] or stray
    if stray:
        parser.error(_about_stray(stray[0], parser))
    if args.test_class is None:
        args.test_class = SPLITS[args.dataset][0]
    elif args.test_class not in SPLITS[args.dataset]:
        pairs = "; ".join(f"--dataset {d}: {' or '.join(SPLITS[d])}" for d in SPLITS)
        parser.error(
            f"--test_class {args.test_class} is no split of {args.dataset}. Right are: {pairs}"
        )
    if args.save is None:
        args.save = SAVE_FOLDERS[args.dataset]
    if args.pretrained_path and not args.pretrained:
        parser.error("--pretrained_path names weights that --no-pretrained forbids: drop one")
    if args.fuse and args.retrieval == "sa":
        parser.error(f"--fuse {args.fuse:g} adds to the scores of pairs: it needs -r rn or rerank")
    if args.shortlist and args.retrieval != "rerank":
        parser.error(
            f"--shortlist {args.shortlist} is what -r rerank scores: -r is {args.retrieval}"
        )
    args.shortlist = args.shortlist or SHORTLIST
    if args.retrieval == "rn" and not args.fuse:
        for option, value, off in (("--views", args.views, "plain"), ("--expand", args.expand, 0)):
            if value != off:
                parser.error(
                    f"{option} {value} changes what -r sa compares: it needs -r sa or --fuse"
                )
    if args.part and args.testall:
        parser.error("--part scores a part of what --testall scores: drop one")
    args.given = {name for name in ARCHITECTURE if getattr(args, name) is not None}
    for name, value in _ARCHITECTURE_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def _about_stray(word: str, parser: argparse.ArgumentParser) -> str:
    """What is wrong with a word that is no option's, and the right spelling where one is near."""
    known = [o.lstrip("-") for action in parser._actions for o in action.option_strings]
    plain = word.lstrip("-–—").split("=")[0]
    near = difflib.get_close_matches(plain, known, n=1)
    if not near:
        return f"{word!r} is no option; --help lists them all"
    dashes = "--" if len(near[0]) > 1 else "-"
    return f"{word!r} is no option: write {dashes}{near[0]} (two dashes, no blank after them)"


def _count(least: int, most: int | None = None):
    """A type for whole numbers from `least` on, or to `most`."""
    allowed = f"from {least} on" if most is None else f"from {least} to {most}"

    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {allowed}")
        return value

    return whole_number


def _count_or_all(text: str) -> int:
    """A type for whole numbers from 1 on, and for "all"."""
    return EVERY_PHOTO if text == "all" else _count(1)(text)


def _number(least: float, most: float = math.inf, without: float | None = None):
    """A type for numbers from `least` to `most`; without: the end that is not allowed itself."""
    allowed = f"from {least} on" if most == math.inf else f"from {least} to {most}"
    if without is not None:
        allowed += f" and not {without}"

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most) or value in (without, math.inf):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {allowed}")
        return value

    return number


def _device(text: str) -> str:
    """'cpu' or a GPU's number; for several, tell how torchrun starts one process each."""
    if text == "cpu" or text.isdecimal():
        return text
    numbers = text.split(",")
    if len(numbers) > 1 and all(number.isdecimal() for number in numbers):
        rest = _without_device(sys.argv[1:])
        line = [
            "torchrun",
            f"--nproc_per_node={len(numbers)}",
            Path(sys.argv[0]).name,
            *rest,
        ]
        raise argparse.ArgumentTypeError(
            "several GPUs take one process each. Start them with:\n"
            f"CUDA_VISIBLE_DEVICES={text} {shlex.join(line)}"
        )
    raise argparse.ArgumentTypeError(f"{text!r} is neither the number of a GPU nor cpu")


def _without_device(arguments: list[str]) -> list[str]:
    """A command line without its -c option."""
    kept, skip = [], False
    for argument in arguments:
        is_device = argument.startswith(("-c", "--choose_cuda")) and not skip
        if not skip and not is_device:
            kept.append(argument)
        skip = is_device and argument in ("-c", "--choose_cuda")
    return kept
