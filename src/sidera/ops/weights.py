"""What must hold of weights before they become a model's: after this, loading cannot fail half-way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
        if state[name].dtype != tensor.dtype and not (
            state[name].is_floating_point() and tensor.is_floating_point()  # another precision is rounded
        ):
            raise InputError(
                f"the new weights have {name!r} as {state[name].dtype}",
                allowed=str(tensor.dtype),
                fix="give the weights of the same model",
            )
        if tensor.is_floating_point() and not state[name].isfinite().all():
            raise InputError(f"the new weights have numbers in {name!r} that are not finite", fix="use an older state")


def put_weights(model: nn.Module, state: Mapping[str, Tensor], damaged: Callable[[str], InputError]) -> None:
    """Make the tensors of an artifact the model's own; what ``damaged`` makes of the problem when they are not of this
    model. Nothing is copied where the precision is the same; tensors that the model shares stay shared."""
    try:
        check_weights(model, state)
    except InputError as error:
        allowed = f", its recipe implies {error.allowed}" if error.allowed else ""
        raise damaged(f"it does not fit its recipe: {error.problem}{allowed}".replace("the new", "the")) from None
    own = model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(own.items())}
    put: dict[str, Tensor] = {}
    for name, tensor in own.items():
        new = state[name].to(tensor.dtype)
        is_parameter = isinstance(tensor, nn.Parameter)
        put[name] = put.get(first[id(tensor)], nn.Parameter(new, tensor.requires_grad) if is_parameter else new)
    model.load_state_dict(put, assign=True)
