"""How much autograd keeps for the way back."""

import torch


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Within: counts the numbers of activations that are kept. Parameters are there anyway."""

    def __init__(self):
        self.numbers = 0
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            self.numbers += tensor.numel()
        return tensor
