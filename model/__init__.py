"""Table of methods (imports no torch), and how to build one or load one from a checkpoint."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from model.settings import TrainingSettings, options_of
from utils.errors import InputError
from utils.schema import ANYTHING, PLAIN, TEXT, check, maybe, named, rows, shown, table, whole

if TYPE_CHECKING:
    from model.method import Method

FORMAT = 1  # of the checkpoints that are written
DAMAGED = "The file is damaged, or another program has changed it: take another one."
METHODS = {"zse_sbir": ("model.zse.method:ZSE", "model.zse.settings:ZSESettings")}
"""Name -> the class of the method and the class of its settings, each as "module:name"."""
CHECKPOINT = table(
    {
        "settings": named(PLAIN),  # their own class checks them
        "model": named(ANYTHING),  # load_strictly does
        "epoch": maybe(whole(0)),
        "classes": maybe(rows(TEXT, least=1)),  # None: training began from a published file
    }
)
"""What our checkpoints hold besides format and method."""


def settings_class(method: str) -> type[TrainingSettings]:
    """The class of a method's settings. Loads no torch."""
    return _imported(METHODS[method][1])


def build_model(settings: TrainingSettings, classes: int | None = None) -> "Method":
    """A new, untrained method.

    classes: how many seen classes there are; None: it is not to be trained.
    """
    outline_of(settings, classes)
    return _method_class(settings.method)(settings, classes)


def outline_of(settings: TrainingSettings, classes: int | None = None) -> "Method":
    """The same without numbers in its tensors (torch's device "meta"), in no time.

    Raises InputError where its weights would not fit into the memory of this machine.
    """
    import torch

    from utils.memory import machine_memory

    with torch.device("meta"):
        outline = _method_class(settings.method)(settings, classes)
    size = sum(tensor.nbytes for tensor in outline.state_dict().values())
    if size > machine_memory():
        raise InputError(
            f"the weights of this network take {size / 1e9:,.0f} GB, and this machine has "
            f"{machine_memory() / 1e9:,.0f} GB of memory. Take a smaller one."
        )
    return outline


def load_model(path: str | Path, wanted: Mapping | None = None) -> tuple["Method", dict]:
    """The method in a checkpoint, in evaluation mode, and the checkpoint.

    See read_checkpoint() and rebuild_model().
    """
    checkpoint = read_checkpoint(path, wanted)
    return rebuild_model(checkpoint, path, wanted).eval(), checkpoint


def read_checkpoint(path: str | Path, wanted: Mapping | None = None) -> dict:
    """The content of a checkpoint file.

    Published checkpoints come back in our form; their 'classes' is None, since the file does not
    name them. wanted: settings that the user named, of which a published file may lack some. Raises
    InputError for other files.
    """
    from utils.checkpoints import load_file

    content = load_file(Path(path))
    if "format" not in content:
        for method in METHODS:
            found = _method_class(method).from_published(content, str(path), wanted or {})
            if found is not None:
                return found
        raise InputError(
            f"{path}: is neither a checkpoint of ours nor a published one of {', '.join(METHODS)}. "
            "A pretrained backbone is given with --pretrained_path."
        )
    check(content, table({"format": whole(1), "method": TEXT}), path, DAMAGED)
    if content["format"] > FORMAT:
        raise InputError(
            f"{path}: has format {content['format']}; this version reads up to {FORMAT}. Update "
            "this code."
        )
    if content["method"] not in METHODS:
        raise InputError(
            f"{path}: holds the method {shown(content['method'])}, which this version does not "
            f"know (it knows {', '.join(METHODS)}). Update this code."
        )
    check(content, CHECKPOINT, path, DAMAGED)
    return content


def rebuild_model(
    checkpoint: Mapping,
    source: str | Path,
    wanted: Mapping | None = None,
    *,
    training: TrainingSettings | None = None,
    classes: int | None = None,
    resumed: bool = False,
) -> "Method":
    """The method in a checkpoint, rebuilt from the checkpoint alone.

    source: its file, for messages. wanted: settings that the user named; InputError where the
    checkpoint has others. training: how to train on; settings that rebuild the model stay the
    checkpoint's. classes: as in build_model. resumed: load also what only training uses; else that
    starts anew.
    """
    from utils.checkpoints import check_fit, load_strictly, without_prefix

    base = training or settings_class(checkpoint["method"])()
    if base.method != checkpoint["method"]:
        raise InputError(
            f"{source}: holds the method {checkpoint['method']}, and {base.method} is wanted. "
            f"Choose --method {checkpoint['method']}."
        )
    rebuilding = _rebuilding_settings(checkpoint, source)
    try:
        settings = replace(base, **rebuilding)
    except InputError as error:
        raise InputError(f"{source}: of its settings, {error} {DAMAGED}") from error
    try:
        outline = outline_of(settings, classes)
    except InputError as error:
        raise InputError(f"{source}: its settings make no model: {error}") from error
    options = options_of(type(settings))
    for name, value in (wanted or {}).items():
        if name not in options:
            raise InputError(
                f"{source}: holds the method {settings.method}, which has no setting {name}. Leave "
                "that option out."
            )
        found = getattr(outline.settings, name)
        if options[name].rebuilds and found != value:
            raise InputError(
                f"{source}: was trained with {name} = {found}, but {value} is wanted. Leave that "
                "option out; the checkpoint brings its own."
            )
    state = without_prefix(checkpoint["model"], next(iter(outline.state_dict())), str(source))
    may_miss = ()
    if not resumed:
        may_miss, state = outline.training_only, outline.without_training(state)
    check_fit(outline, state, str(source), may_miss)  # before memory is taken
    method = _method_class(settings.method)(settings, classes)
    load_strictly(method, state, str(source), may_miss)
    return method


def checkpoint_of(method: "Method", training: bool) -> dict:
    """The part of a checkpoint from which load_model() rebuilds the method.

    training: keep what only training uses. Raises InputError where weights are not finite.
    """
    from utils.checkpoints import not_finite

    state = method.state_dict()
    if not_finite(state) is not None:
        raise InputError(
            "the weights are no longer finite and are not saved. Go on from the checkpoint before "
            "with --resume, and with --clip 1 or --amp off."
        )
    if not training:
        state = method.without_training(state)
    return {
        "format": FORMAT,
        "method": method.name,
        "settings": method.settings.of_model(),
        "model": state,
    }


def _rebuilding_settings(checkpoint: Mapping, source: str | Path) -> dict:
    """The settings of a checkpoint that rebuild its model; how it was trained does not matter."""
    settings = settings_class(checkpoint["method"])
    options, found = options_of(settings), checkpoint["settings"]
    rebuilds = [name for name, option in options.items() if option.rebuilds]
    needed = {name: ANYTHING for name in rebuilds if name not in settings.newer}
    check(checkpoint, table({"settings": table(needed)}), source, DAMAGED)
    known = {*options, *settings.former}
    unknown = [name for name, value in found.items() if value and name not in known]
    if unknown:
        raise InputError(
            f"{source}: was trained with {', '.join(unknown)}, which this version does not know. "
            "Use it with the version of this code that trained it."
        )
    return {name: found[name] for name in rebuilds if name in found}


def _method_class(method: str) -> type["Method"]:
    return _imported(METHODS[method][0])


def _imported(place: str) -> type:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)
