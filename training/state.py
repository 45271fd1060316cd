"""What a last checkpoint holds beside the weights, checked before a run goes on from it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from utils.checkpoints import not_finite
from utils.schema import (
    ANYTHING,
    PLAIN,
    Schema,
    check,
    kind,
    maybe,
    named,
    number,
    rows,
    table,
    whole,
)

STATE = table(
    {
        "options": named(PLAIN),
        "optimizer": table(
            {"param_groups": rows(table({"params": rows(whole(0)), "lr": number(0)}))}
        ),
        "average": maybe(named(ANYTHING)),
        "epoch": whole(0),
        "step": whole(0),
        "draws": whole(0),
        "processes": whole(1),
        "seconds": number(0),
        "best": maybe(table({"epoch": whole(1)}, {"map_all": number()})),
    }
)
REMEDY = (
    "The file is no checkpoint to go on from, or it is damaged. A new run can start from its "
    "weights: --load FILE and another --save."
)


def check_state(checkpoint: Mapping, source: object) -> None:
    """Raise InputError where a checkpoint is none to resume from. source: its file."""
    check(checkpoint, STATE, source, REMEDY)
    check(checkpoint, table({"options": table({"batch": whole(1)})}), source, REMEDY)


def load_moments(optimizer: torch.optim.Optimizer, saved: Mapping, source: object) -> None:
    """Go on with the moments of AdamW, from its state_dict() in a checkpoint.

    Of its groups, the current rate alone is taken: all else follows from the settings. Raises
    InputError where moments are absent, of other shapes or not finite.
    """
    groups = optimizer.state_dict()["param_groups"]
    order = [group["params"] for group in groups]
    parameters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    moments = {
        number: table({"exp_avg": like(p.shape), "exp_avg_sq": like(p.shape), "step": like(())})
        for number, p in enumerate(parameters)
    }
    same = kind("those of this model", lambda found: [list(g["params"]) for g in found] == order)
    none_yet = saved.get("state") == {}  # no step was done
    schema = table({"param_groups": same, "state": PLAIN if none_yet else table(moments)})
    check({"optimizer": saved}, table({"optimizer": schema}), source, REMEDY)
    state = {} if none_yet else {number: saved["state"][number] for number in moments}
    for group, former in zip(groups, saved["param_groups"], strict=True):
        group |= {"initial_lr": group["lr"], "lr": former["lr"]}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def like(shape: tuple[int, ...]) -> Schema:
    """A tensor of finite floating numbers of this shape."""
    return kind(
        f"a tensor of {tuple(shape)} finite numbers",
        lambda value: (
            isinstance(value, Tensor)
            and value.shape == torch.Size(shape)
            and value.is_floating_point()
            and value.device.type == "cpu"
            and value.layout == torch.strided
            and not_finite({"it": value}) is None
        ),
    )
