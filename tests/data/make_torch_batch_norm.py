"""Writes the files of tests/test_torch_weights.py with PyTorch; needs torch and numpy only.

    python tests/data/make_torch_batch_norm.py

Written with torch 2.13.0 (CPU) and numpy 2.4.6. The files, beside this script:

- torch_batch_norm.pt: the state dict of a small trained model, by torch.save.
- torch_batch_norm.npz: the same tensors by numpy.savez, because a .pt file cannot be read without
  torch. Names: "before/KEY" the state dict, "after/KEY" the state dict after one more training
  step, "LAYER/train_x", "LAYER/train_y" what the layer took and gave in that step and
  "LAYER/train_dy" the gradient that came back to its output, "LAYER/eval_x", "LAYER/eval_y" the
  same in eval mode with the state dict of before. Channels are on axis 1, as in PyTorch.
"""

import pathlib
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

LEARNING_RATE = 0.5
FOLDER = pathlib.Path(__file__).parent


def build():
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(2, 4, 3, padding=1),
            bn1=nn.BatchNorm2d(4),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(4, 3, 3, stride=2),
            plain=nn.BatchNorm2d(3, affine=False),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(3, 3, 1),
            untracked=nn.BatchNorm2d(3, track_running_stats=False),
            relu3=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            no_bias=nn.BatchNorm1d(3, eps=1e-3, momentum=0.3, bias=False),
            head=nn.Linear(3, 2),
        )
    )


def train_step(model, optimiser):
    x = 3 * torch.randn(12, 2, 6, 6) + 1
    y = (x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))).long()
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimiser.step()


def watch(model, tensors, mode):
    """Keeps what each norm takes, gives and gets back; returns the hooks."""

    def keep(name):
        def forward(_, inputs, output):
            tensors[f"{name}/{mode}_x"] = inputs[0].detach().clone()
            tensors[f"{name}/{mode}_y"] = output.detach().clone()
            if output.requires_grad and mode == "train":
                output.register_hook(
                    lambda grad: tensors.update({f"{name}/train_dy": grad.clone()})
                )

        return forward

    norms = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)
    }
    return [module.register_forward_hook(keep(name)) for name, module in norms.items()]


def snapshot(model):
    return OrderedDict((name, value.clone()) for name, value in model.state_dict().items())


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build()
    optimiser = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    for _ in range(5):
        train_step(model, optimiser)
    before = snapshot(model)
    torch.save(before, FOLDER / "torch_batch_norm.pt")

    tensors = {f"before/{name}": value for name, value in before.items()}
    hooks = watch(model.eval(), tensors, "eval")
    with torch.no_grad():
        model(3 * torch.randn(3, 2, 6, 6) + 1)
    for hook in hooks:
        hook.remove()
    hooks = watch(model.train(), tensors, "train")
    train_step(model, optimiser)
    for hook in hooks:
        hook.remove()
    tensors |= {f"after/{name}": value for name, value in snapshot(model).items()}
    np.savez(
        FOLDER / "torch_batch_norm.npz", **{name: value.numpy() for name, value in tensors.items()}
    )


if __name__ == "__main__":
    main()
