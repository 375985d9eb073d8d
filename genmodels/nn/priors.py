"""Distributions of codes by name, as functions of noise, so that a loss and a sampler may each bring its own.

N rows, D dimensions of a code, K components.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PETAL = (2.0, 0.5, 0.1)  # distance of a component from the origin, its deviations along that line and across it
ROLL_TURNS = 1.5
ROLL_RADIUS = 3.0
ROLL_DEVIATION = 0.03


@dataclass(frozen=True)
class Prior:
    """Codes (N, D) of normal and uniform noise, (N, D) each, and of components (N,), int64; -1 draws the component from
    the noise. `multiple` divides every D that the prior can have; those `by_component` have parts to condition on."""

    codes: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    multiple: int = 1
    by_component: bool = False


def gaussian(normal: Tensor, uniform: Tensor, component: Tensor, components: int) -> Tensor:
    """N(0, 1) in every dimension."""
    return normal


def uniform_cube(normal: Tensor, uniform: Tensor, component: Tensor, components: int) -> Tensor:
    """Uniform on [-1, 1] in every dimension."""
    return 2 * uniform - 1


def mixture_of_gaussians(normal: Tensor, uniform: Tensor, component: Tensor, components: int) -> Tensor:
    """K long Gaussians around the origin like petals, in each pair of dimensions (Makhzani et al. 2016, figure 4)."""
    distance, along, across = PETAL
    angle = 2 * math.pi * _drawn(component, uniform, components)[:, None] / components
    radial, tangential = distance + along * normal[:, 0::2], across * normal[:, 1::2]
    x = radial * angle.cos() - tangential * angle.sin()
    y = radial * angle.sin() + tangential * angle.cos()
    return torch.stack((x, y), dim=2).flatten(1)


def swiss_roll(normal: Tensor, uniform: Tensor, component: Tensor, components: int) -> Tensor:
    """A spiral from the origin, evenly covered, in each pair of dimensions; its K components are stretches of it, one
    after the other (Makhzani et al. 2016, figure 4)."""
    within = uniform[:, 1::2]
    way = (_drawn(component, uniform, components)[:, None] + within) / components
    share = way.sqrt()  # the length of a spiral grows with the square of its angle
    angle, radius = 2 * math.pi * ROLL_TURNS * share, ROLL_RADIUS * share
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=2).flatten(1) + ROLL_DEVIATION * normal


PRIORS: dict[str, Prior] = {
    "gaussian": Prior(gaussian),
    "uniform": Prior(uniform_cube),
    "mixture_of_gaussians": Prior(mixture_of_gaussians, multiple=2, by_component=True),
    "swiss_roll": Prior(swiss_roll, multiple=2, by_component=True),
}


def _drawn(component: Tensor, uniform: Tensor, components: int) -> Tensor:
    """The components, those that are -1 drawn from the first column of the noise."""
    return torch.where(component < 0, (uniform[:, 0] * components).long(), component)
