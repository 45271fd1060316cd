"""Table of methods (imports no torch), and how to build one or load one from a checkpoint."""

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.method import Method

FORMAT = 1  # of the checkpoints that are written
METHODS = {"zse_sbir": "model.zse:ZSE"}


def build_model(method: str, **settings) -> "Method":
    """A new, untrained method; `settings` are its constructor's arguments."""
    return _class_of(method)(**settings)


def load_model(
    path: Path,
    wanted: dict | None = None,
    replaced: dict | None = None,
    resumed: bool = False,
) -> tuple["Method", dict]:
    """The method a checkpoint holds, rebuilt from the checkpoint alone, and the checkpoint.

    Reads our own checkpoints and published ones, which come back in our form (their 'classes' is
    None: the file does not say). wanted: settings that the user named; where the checkpoint's are
    others, InputError. `heads` is not written in a published file and is taken from `wanted`.
    replaced: settings that tell how to train on, which take the place of the checkpoint's.
    resumed: load what only training uses too; else that starts anew.
    """
    from utils.checkpoints import load_file, load_strictly, plain_state
    from utils.errors import InputError

    wanted = wanted or {}
    checkpoint = load_file(path)
    if "format" not in checkpoint:
        from model.published import from_published

        heads, vit = wanted.get("heads", 8), wanted.get("vit")
        checkpoint = from_published(checkpoint, str(path), heads=heads, vit=vit)
    elif checkpoint["format"] > FORMAT:
        raise InputError(
            f"{path}: has format {checkpoint['format']}; this version reads up to {FORMAT}. Update "
            "this code."
        )
    elif checkpoint.get("method") not in METHODS:
        known = ", ".join(METHODS)
        raise InputError(
            f"{path}: holds the method {checkpoint.get('method')!r}, which this version does not "
            f"know (it knows {known}). Update this code."
        )
    accepted = inspect.signature(_class_of(checkpoint["method"])).parameters
    strange = [n for n, value in checkpoint["settings"].items() if value and n not in accepted]
    if strange:
        raise InputError(
            f"{path}: was trained with {', '.join(strange)}, which this version does not know. Use "
            "it with the version of this code that trained it."
        )
    settings = {n: value for n, value in checkpoint["settings"].items() if n in accepted}
    settings |= replaced or {}
    method = build_model(checkpoint["method"], **settings)
    for name, value in wanted.items():
        if method.settings[name] != value:
            raise InputError(
                f"{path}: was trained with {name} = {method.settings[name]}, but {value} was asked "
                "for. Leave that option out; the checkpoint brings its own."
            )
    state, may_miss = plain_state(checkpoint["model"]), ()
    if not resumed:
        may_miss = method.training_only
        state = {name: t for name, t in state.items() if not name.startswith(may_miss)}
    load_strictly(method, state, str(path), may_miss)
    return method, checkpoint


def checkpoint_of(method: "Method", training: bool) -> dict:
    """What of a checkpoint load_model() rebuilds the method from.

    training: keep what only training uses. Raises InputError where weights are not finite.
    """
    from utils.checkpoints import all_finite
    from utils.errors import InputError

    state = method.state_dict()
    if not all_finite(state.values()):
        raise InputError(
            "the weights are no longer finite and are not saved. Go on from the checkpoint before "
            "with --resume, and with --clip 1 or --amp off."
        )
    if not training:
        state = {n: t for n, t in state.items() if not n.startswith(method.training_only)}
    return {"format": FORMAT, "method": method.name, "settings": method.settings, "model": state}


def _class_of(method: str) -> type["Method"]:
    module, name = METHODS[method].split(":")
    return getattr(importlib.import_module(module), name)
