"""`PullToStart`: the L2-SP term, which pulls a net towards the weights it started from (arXiv 1802.01483)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class PullToStart:
    """alpha / 2 times the squared distance of all parameters taken over from where they started.

    As in the paper, norms' scales and shifts are pulled as well, and the term takes the place of their weight decay. A
    head of another shape has no start: its block keeps its weight decay, a pull towards 0 (the paper's beta). Running
    statistics are no parameters. A frozen block adds nothing: until it first trains its distance is 0, later constant.

    The start is no part of the net's state, or every checkpoint would hold the net twice; it is read again on resume.

    Args:
        net: holds the start already.
        taken_over: names of its tensors that were taken over; others, and buffers, are left alone.
        alpha: the strength.
    """

    def __init__(self, net: nn.Module, taken_over: Iterable[str], alpha: float) -> None:
        self.alpha, names = alpha, set(taken_over)
        self._pairs = [(p, p.detach().clone()) for name, p in net.named_parameters() if name in names]

    def __call__(self) -> Tensor:
        """The term as a scalar; 0 without a gradient where all of it is frozen."""
        if not self._pairs:
            return torch.zeros(())
        device = self._pairs[0][0].device
        if self._pairs[0][1].device != device:
            self._pairs = [(parameter, start.to(device)) for parameter, start in self._pairs]
        moving = [(p - start).square().sum() for p, start in self._pairs if p.requires_grad]
        return self.alpha / 2 * (torch.stack(moving).sum() if moving else torch.zeros((), device=device))

    def without_decay(self, groups: Iterable[Mapping]) -> list[dict]:
        """Optimizer groups, those that the term pulls as a whole without weight decay."""
        pulled = {id(parameter) for parameter, _ in self._pairs}
        return [
            {**group, "weight_decay": 0.0} if all(id(p) in pulled for p in group["params"]) else dict(group)
            for group in groups
        ]
