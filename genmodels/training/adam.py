"""Adam (Kingma & Ba 2015) by torch's fused kernel.

Without `torch.optim.Optimizer`, whose first instance imports torch's compiler into every worker: 900 modules, before
its first step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from genmodels.models import base


class Adam:
    """The moments of some parameters' gradients, and the step that follows from them.

    Args:
        parameters: what it moves, on one device; in an order that is the same in every process.
        settings: of an update; its learning rate is given with each step, as schedules ask.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: base.Adam):
        self._parameters, self._settings = list(parameters), settings
        self._moments: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Moves all parameters that have a gradient; the others keep their value and their moments."""
        moved = [place for place, parameter in enumerate(self._parameters) if parameter.grad is not None]
        moments = [self._moments.get(place) or self._begin(place) for place in moved]
        adam(
            [self._parameters[place] for place in moved],
            [self._parameters[place].grad for place in moved],  # pyright: ignore[reportArgumentType]
            [each["exp_avg"] for each in moments],
            [each["exp_avg_sq"] for each in moments],
            [],
            [each["step"] for each in moments],
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=learning_rate,
            beta1=self._settings.betas[0],
            beta2=self._settings.betas[1],
            eps=self._settings.eps,
            weight_decay=self._settings.weight_decay,
        )

    def state_dict(self) -> dict[str, Any]:
        """The moments by the place of their parameter, as `torch.optim.Adam` has them; the live tensors."""
        return {"state": {place: dict(moments) for place, moments in self._moments.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a copy of the moments of a `state_dict`, be they on this device or another."""
        self._moments = {
            place: {name: value.to(self._parameters[place].device, copy=True) for name, value in moments.items()}
            for place, moments in state["state"].items()
        }

    def _begin(self, place: int) -> dict[str, Tensor]:
        parameter = self._parameters[place]
        self._moments[place] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
        return self._moments[place]
