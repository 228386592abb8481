"""Targets: normalised outputs of the teacher's last K blocks, averaged. All in fp32, no affine."""

import torch
from torch import Tensor
from torch.nn import functional

from model.sections import TargetConfig

_NORM_EPS = 1e-5


class TargetAccumulator:
    """Sum over teacher blocks; small enough to travel through pipeline stages."""

    def __init__(self, config: TargetConfig, total: Tensor | None = None) -> None:
        """Args: what to average and how to normalise; the sum of earlier blocks, if they ran elsewhere."""
        self._config = config
        self.total = total

    def add(self, block_output: Tensor) -> None:
        """Add one block's (B, T, D), without extra tokens; T counts padding, as the reference does."""
        config, x = self._config, block_output.float()
        if config.batch_norm_layer:
            x = _normalise(x, (0, 1))
        if config.instance_norm_layer:
            x = _normalise(x, (1,))
        if config.layer_norm_layer:
            x = functional.layer_norm(x, x.shape[-1:], eps=_NORM_EPS)
        self.total = x if self.total is None else self.total + x

    def finish(self) -> Tensor:
        """The target (B, T, D) fp32."""
        assert self.total is not None, "no block was added"
        x = self.total / self._config.top_k
        if self._config.layer_norm:
            x = functional.layer_norm(x, x.shape[-1:], eps=_NORM_EPS)
        if self._config.instance_norm:
            x = _normalise(x, (1,))
        return x


def _normalise(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + _NORM_EPS)
