"""What changes the weights: AdamW, and their running average."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def build_optimizer(method: nn.Module) -> torch.optim.Optimizer:
    """AdamW over a method's parameter groups, with its learning rate and weight decay."""
    settings = method.settings
    return torch.optim.AdamW(
        method.parameter_groups(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )


class Average(AveragedModel):
    """A running average of weights and buffers, which starts as a short one.

    decay: of each step; step n has (1 + n) / (10 + n) where that is less.
    """

    def __init__(self, method: nn.Module, decay: float):
        super().__init__(method, multi_avg_fn=self._follow, use_buffers=True)
        self.decay = decay
        self.count = 0  # of updates: as a Python number, it makes no GPU wait

    def update_parameters(self, method: nn.Module) -> None:
        """Move towards the method as it is now."""
        super().update_parameters(method)
        self.count += 1

    def load_state_dict(self, state: dict, *arguments, **more):
        """As usual, with the count of updates."""
        result = super().load_state_dict(state, *arguments, **more)
        self.count = int(self.n_averaged)
        return result

    @torch.no_grad()
    def _follow(self, averages: list[Tensor], currents: list[Tensor], _: Tensor | int) -> None:
        """Tensors of one device and type."""
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, currents)
            return
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(averages, currents, 1 - decay)
