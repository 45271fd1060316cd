"""Errors of training with a cause outside the code, as sentences for the user."""

from pathlib import Path

import torch

from utils.distributed import is_lost_process
from utils.errors import InputError


def explain_error(
    error: Exception, device: torch.device, last_checkpoint: Path
) -> InputError | None:
    """The meaning of an error of torch; None: it is not known, and may be a mistake of the code."""
    reason = str(error).split("\n")[0] or type(error).__name__
    if is_lost_process(error):
        return InputError(
            f"another process of this run has gone ({reason}). Go on from {last_checkpoint} with "
            "--resume."
        )
    no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if no_memory or "can't allocate memory" in reason:
        return InputError(
            f"{device}: its memory does not suffice ({reason}). Lower --batch (with --accumulate a "
            "step has as many draws all the same), or add --checkpoint_blocks or --amp bf16."
        )
    return None
