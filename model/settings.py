"""TrainingSettings, and how one of its fields becomes an option, a check and a line of help.

Imports no torch: --help answers, and a command line is checked, before torch loads.
"""

import argparse
from dataclasses import dataclass, field, fields
from typing import ClassVar

from utils.arguments import Option
from utils.errors import InputError
from utils.schema import shown

AMP = ("auto", "off", "bf16")


@dataclass(frozen=True)
class Setting(Option):
    """What is known of a setting besides its name.

    published: whether the published program has it. rebuilds: whether a checkpoint needs it to
    rebuild its model. fixed: whether a resumed run must have the same value.
    """

    published: bool = False
    rebuilds: bool = False
    fixed: bool = True


def setting(default: object, help: str, **facts) -> object:
    """A field of settings. facts: further fields of its Setting."""
    return field(default=default, metadata={"option": Setting(default, help, **facts)})


@dataclass(frozen=True)
class TrainingSettings:
    """What the training of every method has. A method's settings inherit this and add its own.

    Values are checked when settings are made: InputError. A class sets `method`, its key in
    model.METHODS, and may define recipes(). former: names of settings in older checkpoints, without
    which the model is rebuilt all the same. newer: names of settings that rebuild the model and
    older checkpoints lack: they then have their defaults.
    """

    method: ClassVar[str] = ""
    former: ClassVar[tuple[str, ...]] = ()
    newer: ClassVar[tuple[str, ...]] = ()

    draws: str = setting(
        "triplets",
        "what a draw is: two sketches and two photos (triplets), or images of one class (classes)",
        choices=("triplets", "classes"),
    )
    per_class: int = setting(
        1,
        "sketches, and as many photos, in a draw of a class; triplets do not use it",
        least=1,
        most=10000,
        metavar="K",
    )
    own_photo: float = setting(
        0.0,
        "how often a sketch of a drawn class comes with the photo it was drawn from, 0 to 1, where "
        "file names tell (Sketchy, synthetic); triplets do not use it",
        least=0,
        most=1,
        metavar="SHARE",
    )
    augment: str = setting(
        "none",
        "change training images at random: mirror them (flip); also move, shear and crop them a "
        "little (light); all that training/augment.py has, at full range (strong)",
        choices=("none", "flip", "light", "strong"),
    )
    batch: int = setting(
        15,
        "draws a batch, in each process: triplets of 4 images, or classes with --per_class "
        "sketches and as many photos",
        least=1,
        most=65536,
        published=True,
        metavar="N",
        fixed=False,  # the draws of a step may not change, see training/run.py
    )
    accumulate: int = setting(
        1,
        "batches a step: N times the draws in the memory of one batch; contrast and hard negatives "
        "stay within a batch",
        least=1,
        most=65536,
        metavar="N",
    )
    draws_an_epoch: int = setting(
        10000, "draws an epoch", least=1, most=10**9, flag="datasetLen", published=True, metavar="N"
    )
    epochs: int = setting(
        30,
        "epochs",
        least=1,
        most=10**6,
        flag="epoch",
        published=True,
        metavar="N",
        fixed=False,  # without a schedule, see options.changed_options
    )
    learning_rate: float = setting(
        1e-5, "learning rate of AdamW", least=0, most=100, published=True, metavar="RATE"
    )
    schedule: str = setting(
        "constant",
        "learning rate over the training: the same throughout (constant); or half a cosine that "
        "falls from the full rate to zero over the whole training, times a factor that rises from "
        "0 to 1 over the first tenth (cosine)",
        choices=("constant", "cosine"),
    )
    layer_decay: float = setting(
        1.0,
        "each layer of the backbone learns at D times the rate of the next one, above 0 to 1",
        least=0,
        most=1,
        excluded=0,
        metavar="D",
    )
    new_rate: float = setting(
        1.0,
        "all outside the backbone learns at M times the learning rate",
        least=0,
        most=10**6,
        metavar="M",
    )
    weight_decay: float = setting(
        1e-2, "weight decay of AdamW", least=0, most=100, published=True, metavar="RATE"
    )
    clip: float = setting(
        0.0,
        "scale the gradient down to this norm where it is larger; 0: never",
        least=0,
        most=10**9,
        metavar="NORM",
    )
    ema: float = setting(
        0.0,
        "keep a running average of the weights, decay D a step, validate it and save it as the "
        "best checkpoint; 0: no average",
        least=0,
        most=1,
        excluded=1,
        metavar="D",
    )
    amp: str = setting(
        "auto",
        "precision of the network's forward and backward pass, and of validation: fp32 (off); "
        "bfloat16 where that is safe (bf16); bfloat16 where the device is fast in it (auto). "
        "Weights, losses and the relation network are fp32 in each",
        choices=AMP,
        group="speed",
    )
    tf32: bool = setting(
        False, "let NVIDIA GPUs multiply fp32 in TF32, faster and with 10 bits", group="speed"
    )
    compile: bool = setting(
        False,
        "compile the network with torch.compile, which takes minutes and pays on GPUs",
        group="speed",
    )
    checkpoint_blocks: bool = setting(
        False,
        "keep no activations inside the network's blocks but compute them again on the way back: a "
        "fraction of the memory, a third slower, the same result",
        group="speed",
        fixed=False,
    )

    def __post_init__(self):
        for name, option in options_of(type(self)).items():
            value = getattr(self, name)
            if not option.accepts(value):
                flag = option.flag or name
                raise InputError(f"--{flag} {shown(value)}: is not {option.allowed}.")

    @classmethod
    def recipes(cls, pretrained: bool = True) -> dict[str, "TrainingSettings"]:
        """Settings by the name of their recipe, the default first.

        pretrained: whether training starts from pretrained weights.
        """
        return {"default": cls()}

    def of_model(self) -> dict:
        """The settings that rebuild the model, by name: what a checkpoint holds."""
        options = options_of(type(self)).items()
        return {name: getattr(self, name) for name, option in options if option.rebuilds}

    def by_flag(self) -> dict:
        """All settings, by the names that they have on the command line."""
        options = options_of(type(self)).items()
        return {option.flag or name: getattr(self, name) for name, option in options}


def options_of(settings: type[TrainingSettings]) -> dict[str, Setting]:
    """What is known of each setting of a class, by field."""
    return {entry.name: entry.metadata["option"] for entry in fields(settings)}


def add_settings(
    parser: argparse.ArgumentParser,
    group: argparse._ArgumentGroup,
    settings: type[TrainingSettings],
    trains: bool = True,
) -> dict[str, str]:
    """Add the settings of a method to a parser. Returns the field of each by its option's name.

    group: where the settings go that all methods have. trains: False leaves out the settings of
    training that the published program does not have.
    """
    shared, groups, flags = options_of(TrainingSettings), {"": group}, {}
    for name, option in options_of(settings).items():
        if not (trains or option.rebuilds or option.published):
            continue
        title = option.group if name in shared else f"{settings.method} alone"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        option.add_to(groups[title], name, note=_recipe_note(settings, name))
        flags[option.flag or name] = name
    return flags


def _recipe_note(settings: type[TrainingSettings], name: str) -> str:
    """The default of a setting in each recipe, for its help."""
    values = {}
    for recipe, usual in settings.recipes().items():
        values[recipe] = getattr(usual, name)
        scratch = getattr(settings.recipes(pretrained=False)[recipe], name)
        if scratch != values[recipe]:
            values["from scratch"] = scratch
    words = {True: "on", False: "off", None: "the model's"}
    shown = {r: words[v] if v is None or isinstance(v, bool) else v for r, v in values.items()}
    if len(set(values.values())) > 1:
        return "(" + ", ".join(f"{recipe}: {value}" for recipe, value in shown.items()) + ")"
    default = next(iter(shown.values()))
    return f"(default {default})" if None not in values.values() else " "
