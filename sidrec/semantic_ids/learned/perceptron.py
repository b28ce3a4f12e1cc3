"""A multi-layer perceptron as plain tensors: what remains of a network once it is trained."""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Layer = tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]  # weight [out, in], bias [out]


def perceptron(sizes: tuple[int, ...]) -> nn.Sequential:
    """Return linear layers between these widths, with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def layers_of(network: nn.Sequential) -> tuple[Layer, ...]:
    """Return the weights and biases of what ``perceptron`` made, without gradient."""
    linear = [part for part in network if isinstance(part, nn.Linear)]
    return tuple((part.weight.detach(), part.bias.detach()) for part in linear)


def apply_layers(rows: Float[Tensor, "row _"], layers: tuple[Layer, ...]) -> Float[Tensor, "row _"]:
    """Return what the network of these layers makes of the rows."""
    for number, (weight, bias) in enumerate(layers, start=1):
        rows = F.linear(rows, weight, bias)
        if number < len(layers):
            rows = F.relu(rows)
    return rows


def layer_tensors(name: str, layers: tuple[Layer, ...]) -> dict[str, Tensor]:
    """Return ``NAME_N.weight`` and ``NAME_N.bias``, layers counted from 1."""
    found = {f"{name}_{n}.weight": weight for n, (weight, _) in enumerate(layers, start=1)}
    return found | {f"{name}_{n}.bias": bias for n, (_, bias) in enumerate(layers, start=1)}


def layers_from(name: str, tensors: dict[str, Tensor]) -> tuple[Layer, ...]:
    """Return the layers that ``layer_tensors`` named."""
    count = sum(key.startswith(f"{name}_") and key.endswith(".weight") for key in tensors)
    numbers = range(1, max(count, 1) + 1)
    return tuple((tensors[f"{name}_{n}.weight"], tensors[f"{name}_{n}.bias"]) for n in numbers)
