"""`BatchNorm2d`: torch's, which keeps no input while it is frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class BatchNorm2d(nn.BatchNorm2d):
    """The batch norm of torch, bit for bit, with less memory where it is frozen above a block that learns.

    There its gradient is a product with constants, and yet torch keeps the input of every norm for the backward: up to
    a fourth of the peak memory of a step of SE-ResNet50 (docs/performance.md). This one keeps its own parameters and
    statistics alone. `torch.jit.script` and a second derivative through a frozen one are refused.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised (N, C, H, W), by the running statistics in `eval()`."""
        constant = self.track_running_stats and not self.training and not _learns(self)
        if not (constant and torch.is_grad_enabled() and x.requires_grad and x.dim() == 4 and x.numel()):
            return super().forward(x)  # which also refuses other shapes; the kernel below ends the process on no pixels
        return _Frozen.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps)


def keep_no_frozen_input(net: nn.Module) -> None:
    """Make every `torch.nn.BatchNorm2d` of a net a `BatchNorm2d`; subclasses, as timm has, and SyncBatchNorm stay."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNorm2d  # keeps tensors, hooks and places; no random number is drawn


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


class _Frozen(torch.autograd.Function):
    """Batch norm by constants."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(weight, mean, variance)
        ctx.eps = eps
        return nn.functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the input alone."""
        weight, mean, variance = ctx.saved_tensors
        # Of the input torch reads type, shape and layout alone here, as the parameters need no gradients.
        x = grad
        # Of the statistics of the batch, which there are none of, CUDA wants to see the type that it adds up in.
        # A CPU wants that of the parameters, which are halves in 16-true and bf16-true.
        summed = torch.float64 if grad.dtype == torch.float64 else torch.float32
        none = grad.new_empty(0, dtype=mean.dtype if grad.device.type == "cpu" else summed)
        grad_x, _, _ = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, none, none, False, ctx.eps, [True, False, False]
        )
        return grad_x, None, None, None, None, None
