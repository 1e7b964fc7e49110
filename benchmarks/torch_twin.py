"""The ResNet of PyTorch's own layers with the weights of one of ours."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.models.layers import BasicBlock
from experiments.models.resnet import ResNet


def twin_of(torch: Any, network: Any, ours: ResNet) -> Any:
    """Copies weights and running statistics into a PyTorch network of the same form.

    Args:
      torch: the module.
      network: as ``benchmarks.training_throughput.torch_network`` builds it; changed in place.
      ours: a ResNet of basic blocks with norms that have running statistics.

    Returns:
      The network, in evaluation mode, on inputs (B, C, H, W).
    """
    layers = list(network)
    _conv(torch, layers[0], ours.stem)
    _norm(torch, layers[1], ours.stem_norm)
    blocks = [layer for layer in layers if hasattr(layer, "shortcut")]
    for theirs, block in zip(blocks, ours.blocks, strict=True):
        assert isinstance(block, BasicBlock)
        _conv(torch, theirs.main[0], block.conv1)
        _norm(torch, theirs.main[1], block.norm1)
        _conv(torch, theirs.main[3], block.conv2)
        _norm(torch, theirs.main[4], block.norm2)
        if block.project:
            _conv(torch, theirs.shortcut[0], block.shortcut)
            _norm(torch, theirs.shortcut[1], block.shortcut_norm)
    _put(torch, layers[-1].weight, np.asarray(ours.head.kernel[...]).T)
    assert ours.head.bias is not None
    _put(torch, layers[-1].bias, np.asarray(ours.head.bias[...]))
    return network.eval()


def _put(torch: Any, place: Any, values: np.ndarray) -> None:
    with torch.no_grad():
        place.copy_(torch.tensor(np.ascontiguousarray(values)))


def _conv(torch: Any, theirs: Any, ours: Any) -> None:
    _put(torch, theirs.weight, np.asarray(ours.kernel[...]).transpose(3, 2, 0, 1))


def _norm(torch: Any, theirs: Any, ours: Any) -> None:
    _put(torch, theirs.weight, np.asarray(ours.scale[...]))
    _put(torch, theirs.bias, np.asarray(ours.bias[...]))
    _put(torch, theirs.running_mean, np.asarray(ours.mean[...]))
    _put(torch, theirs.running_var, np.asarray(ours.var[...]))
