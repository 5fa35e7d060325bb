"""AdamW with warm-up, linear decay and clipping, whose state goes into checkpoints and comes back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dpr.train.checkpoints import State
from dpr.train.train_recipe import Optimiser
from dpr.train.training_step import gradient_length

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Descent:
    """Changes weights step by step. The learning rate is a function of the step's number alone."""

    def __init__(self, weights: Mapping[str, nn.Parameter], settings: Optimiser, steps: int) -> None:
        self._weights, self._settings, self._steps = dict(weights), settings, steps
        # a bias, or the scale of a layer normalisation, has one dimension
        plain = [weight for weight in weights.values() if weight.ndim == 1]
        decaying = [weight for weight in weights.values() if weight.ndim > 1]
        groups: list[dict[str, object]] = [{"params": decaying}, {"params": plain, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm_up = round(self._settings.warm_up * self._steps)
        if step < warm_up:
            return self._settings.learning_rate * (step + 1) / warm_up
        return self._settings.learning_rate * (self._steps - step) / max(1, self._steps - warm_up)

    def clip(self) -> float:
        """Scale the gradients to the longest allowed length; return how long they were."""
        length = gradient_length(self._weights.values())
        nn.utils.clip_grads_with_norm_(self._weights.values(), self._settings.clip, length)
        return float(length)

    def step(self, step: int) -> None:
        """Change the weights by their gradients."""
        for group in self._adam.param_groups:
            group["lr"] = self.learning_rate(step)
        self._adam.step()

    def moments(self) -> dict[str, Tensor]:
        """Return the state of all weights, by the name that a checkpoint gives it."""
        return {
            f"{moment}.{name}": self._adam.state[weight][moment]
            for name, weight in self._weights.items()
            for moment in _MOMENTS
            if weight in self._adam.state
        }

    def restore(self, state: State) -> None:
        """Set weights and moments to those of a checkpoint."""
        steps = float(len(state.curve_S3))
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(state.weights[name])
                if f"{_MOMENTS[0]}.{name}" in state.moments:
                    moments = {moment: state.moments[f"{moment}.{name}"].to(weight.device) for moment in _MOMENTS}
                    device = weight.device if weight.device.type == "cuda" else "cpu"
                    self._adam.state[weight] = {"step": torch.tensor(steps, device=device), **moments}
