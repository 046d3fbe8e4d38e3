"""What must hold of new weights before they replace those that answer: after this, loading cannot fail half-way."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from sidera.core import InputError


def check_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """InputError naming the first tensor of ``state`` that ``model`` cannot take."""
    own = model.state_dict()
    for names, problem in ((own.keys() - state.keys(), "lack"), (state.keys() - own.keys(), "have unknown")):
        if names:
            raise InputError(f"the new weights {problem} {min(names)!r}", fix="give the weights of the same model")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise InputError(
                f"the new weights have {name!r} of shape {tuple(state[name].shape)}",
                allowed=str(tuple(tensor.shape)),
                fix="give the weights of the same model",
            )
        if tensor.is_floating_point() and not state[name].isfinite().all():
            raise InputError(f"the new weights have numbers in {name!r} that are not finite", fix="use an older state")
