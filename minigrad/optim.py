"""Optimisers, gradient clipping and learning-rate schedules.

An optimiser moves its parameters into one flat array and their gradients into another; each parameter becomes a view.
A step is then one kernel over flat arrays, whatever the number of layers, at addresses that never change.

A parameter with `requires_grad = False` is frozen: its values and moments do not change and its gradient is ignored
until this is True again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

from .backend import Array, Backend, backend_of, in_memory, quietly, to_device
from .backend.reference import AdamOptions
from .nn import Parameter
from .tensor import Tensor

Schedule = Callable[[int], float]  # learning rate of step 1, 2, 3, ...
Rate = float | Schedule


class Flat:
    """The values and gradients of parameters as two flat arrays, in the order of the parameters."""

    def __init__(self, parameters: Any) -> None:
        one = isinstance(parameters, Tensor) or not isinstance(parameters, Iterable)
        given = [parameters] if one else list(parameters)
        for p in given:
            if not isinstance(p, Parameter) and not (isinstance(p, Tensor) and p.requires_grad and p.creator is None):
                raise TypeError(
                    "optimizer: expected parameters, such as model.parameters(), or Tensors that require a gradient "
                    f"and are no operation's result; found a {type(p).__name__}"
                )
        if not given:
            raise ValueError("optimizer: there are no parameters")
        self.parameters: list[Tensor] = list(dict.fromkeys(given))  # one that two models share is given twice
        if len({p.dtype for p in self.parameters}) > 1:
            raise TypeError("optimizer: some parameters are float32 and some float64; convert with model.to(dtype=...)")
        k = backend_of(*(p.data for p in self.parameters), what="optimizer")
        self.values = k.xp.concatenate([p.data.ravel() for p in self.parameters])
        self.gradients = k.xp.zeros_like(self.values)
        self.views: list[tuple[Array, Array]] = []
        start = 0
        for p in self.parameters:
            data, grad = (x[start : start + p.size].reshape(p.shape) for x in (self.values, self.gradients))
            if p.grad is not None:
                grad[...] = p.grad
            p.data, p.grad, p.version = data, grad, [0]
            self.views.append((data, grad))
            start += p.size

    @property
    def intact(self) -> bool:
        """Whether the parameters are still views of these arrays."""
        pairs = zip(self.parameters, self.views, strict=True)
        return all(p.data is data and p.grad is grad for p, (data, grad) in pairs)

    def check(self) -> None:
        """Raise RuntimeError unless the parameters are still views of these arrays."""
        if not self.intact:
            raise RuntimeError(
                "optimizer: the parameters have moved (model.to, or a newer optimizer took them) or data or grad was "
                "assigned; make a new optimizer, and write into the arrays instead of assigning them"
            )

    def mark_written(self) -> None:
        """Record that all parameters but the frozen ones were changed; see `Tensor.mark_written`."""
        for p in self.parameters:
            if p.requires_grad:
                p.mark_written()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copies and pickles: the copy moves its parameters into arrays of its own, if they are intact here."""
        return (Flat, (self.parameters,)) if self.intact else super().__reduce_ex__(protocol)


class Optimizer:
    """Base of the optimisers.

    Args:
        parameters: for example `model.parameters()`, or Tensors that require a gradient. A newer optimiser of the same
            parameters makes this one unusable.
        learning_rate: a number, or a function of the step, which counts from 1.

    Attributes:
        steps: the number of steps taken.
        moments: the optimiser's state between steps, flat arrays by name.
    """

    def __new__(cls, *_: Any, **options: Any) -> Any:
        if "lr" in options:
            raise TypeError(f"{cls.__name__}: lr is called learning_rate here")
        return super().__new__(cls)

    def __init__(self, parameters: Iterable[Tensor], learning_rate: Rate, moments: tuple[str, ...]) -> None:
        if not callable(learning_rate) and not 0 <= learning_rate < math.inf:
            raise ValueError(f"optimizer: learning_rate is {learning_rate} but must be a number >= 0")
        self.flat = Flat(parameters)
        self.learning_rate = learning_rate
        self.steps = 0
        self.moments: dict[str, Array] = {name: self.k.xp.zeros_like(self.flat.values) for name in moments}

    @property
    def k(self) -> Backend:
        """The kernels of the parameters' device."""
        return backend_of(self.flat.values)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.moments = {name: in_memory(x) for name, x in self.moments.items()}

    def rate(self, step: int) -> float:
        """The learning rate of a step, which counts from 1."""
        return float(self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate)

    def scalars(self, step: int) -> tuple[float, ...]:
        """The numbers that `update` needs for this step, computed on the host in float64."""
        return (self.rate(step),)

    def update(self, scalars: Array) -> None:
        """Update the arrays of `trained` by their gradients. The caller increments `steps`.

        scalars: the result of `self.scalars(step)` as an array on the device. A CUDA graph, which replays a recorded
        step, reads it anew each time, whereas a Python number would be a constant.
        """
        raise NotImplementedError

    def trained(self) -> Iterator[Any]:
        """[values, moments..., gradients] of each stretch of neighbouring parameters that are not frozen.
        A CUDA graph replays the stretches with which it was recorded."""
        start = 0
        for trained, group in groupby(self.flat.parameters, lambda p: p.requires_grad):
            part = slice(start, start + sum(p.data.size for p in group))
            if trained:
                yield [x[part] for x in (self.flat.values, *self.moments.values(), self.flat.gradients)]
            start = part.stop

    @quietly
    def step(self) -> None:
        """Take the next step."""
        self.flat.check()
        self.steps += 1
        self.update(self.k.xp.asarray(self.scalars(self.steps), dtype=self.flat.values.dtype))
        self.flat.mark_written()

    def zero_grad(self) -> None:
        """Set all gradients to zero. `backward` adds to them, so call this before each backward pass."""
        self.flat.gradients[...] = 0

    def state_dict(self) -> dict[str, Any]:
        """{"steps": int, name of moment: flat NumPy array}."""
        return {"steps": self.steps, **{name: self.k.to_host(x).copy() for name, x in self.moments.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`, in place.

        Raises:
            ValueError: names or shapes differ.
        """
        expected = {name: x.shape for name, x in self.moments.items()}
        found = {name: x.shape for name, x in state.items() if name != "steps"}
        if found != expected or "steps" not in state:
            raise ValueError(f"optimizer: state holds {found} but must hold steps and {expected}")
        self.steps = int(state["steps"])
        for name, x in self.moments.items():
            x[...] = to_device(state[name], self.k.device_of(x))


class SGD(Optimizer):
    """velocity = momentum * velocity + g; parameter -= rate * velocity, with Nesterov rate * (g + momentum * velocity).

    Source: Sutskever et al., On the importance of initialization and momentum, 2013; the form is PyTorch's.
    """

    def __init__(
        self, parameters: Iterable[Tensor], learning_rate: Rate, *, momentum: float = 0.0, nesterov: bool = False
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"SGD: momentum is {momentum} but must lie in [0, 1)")
        super().__init__(parameters, learning_rate, ("velocity",))
        self.momentum, self.nesterov = float(momentum), nesterov

    def update(self, scalars: Array) -> None:
        for values, velocity, gradients in self.trained():
            self.k.sgd_step_(values, velocity, gradients, scalars, self.momentum, self.nesterov)


class Adam(Optimizer):
    """m = beta_1 * m + (1 - beta_1) * g; v = beta_2 * v + (1 - beta_2) * g^2;
    m_hat = m / (1 - beta_1^t); v_hat = v / (1 - beta_2^t); parameter -= rate * m_hat / (sqrt(v_hat) + epsilon).

    Files call the first moment m mean and the second moment v variance.

    Source: Kingma and Ba, Adam, 2015, Algorithm 1, with epsilon after the bias correction, as in PyTorch (Keras puts it
    before). t counts all steps of the optimiser, including those in which a parameter was frozen.
    """

    weight_decay = 0.0

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: Rate = 1e-3,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        if not (0 <= beta_1 < 1 and 0 <= beta_2 < 1 and epsilon > 0):
            raise ValueError(f"Adam: betas must lie in [0, 1) and epsilon above 0, found {beta_1}, {beta_2}, {epsilon}")
        super().__init__(parameters, learning_rate, ("mean", "variance"))
        self.beta_1, self.beta_2, self.epsilon = float(beta_1), float(beta_2), float(epsilon)

    def scalars(self, step: int) -> tuple[float, ...]:
        return self.rate(step), 1 / (1 - self.beta_1**step), 1 / (1 - self.beta_2**step)

    def update(self, scalars: Array) -> None:
        options = AdamOptions(self.beta_1, self.beta_2, self.epsilon, self.weight_decay)
        for values, first_moment, second_moment, gradients in self.trained():
            self.k.adam_step_(values, first_moment, second_moment, gradients, scalars, options)


class AdamW(Adam):
    """Adam with decoupled weight decay: each step also does parameter -= rate * weight_decay * parameter.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization, 2019.
    """

    def __init__(
        self, parameters: Iterable[Tensor], learning_rate: Rate = 1e-3, *, weight_decay: float = 0.01, **options: float
    ) -> None:
        super().__init__(parameters, learning_rate, **options)
        self.weight_decay = float(weight_decay)


@quietly
def clip_grad_norm(optimizer: Optimizer, limit: float) -> Array:
    """Scale all gradients by min(1, limit / norm), where norm is their common Euclidean norm. Gradients of frozen
    parameters are left out.

    Nothing is read back from the device. A NaN makes all gradients NaN; an infinite gradient becomes NaN and the others
    0.

    Returns:
        the norm before clipping, a float64 array of shape (1,) on the device.
    Raises:
        ValueError: limit is not positive.
    """
    if not (limit := float(limit)) > 0:
        raise ValueError(f"clip_grad_norm: limit is {limit} but must be positive")
    xp = optimizer.k.xp
    parts = [gradients for *_, gradients in optimizer.trained()]
    # in float32 the squares would overflow from 2e19 on
    norm = xp.sqrt(sum((xp.square(g, dtype="float64").sum() for g in parts), start=xp.zeros(1, dtype="float64")))
    for g in parts:
        g *= (limit / xp.maximum(norm, limit)).astype(g.dtype)
    return norm


def cosine_schedule(peak: float, steps: int, *, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Linear from 0 to peak over `warmup` steps, then half a cosine from peak at step warmup + 1 to final, which step
    `steps` + 1 would reach.

    Source: Loshchilov and Hutter, SGDR, 2017, eq. 5.
    """
    return partial(_cosine, float(peak), int(steps), int(warmup), float(final))  # which can be pickled


def _cosine(peak: float, steps: int, warmup: int, final: float, step: int) -> float:
    if step <= warmup:
        return peak * step / warmup
    progress = min((step - 1 - warmup) / max(steps - warmup, 1), 1.0)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def step_schedule(peak: float, every: int, *, factor: float = 0.1, warmup: int = 0) -> Schedule:
    """Linear from 0 to peak over `warmup` steps, then multiplied by factor after each `every` steps."""
    return partial(_step_rate, float(peak), int(every), float(factor), int(warmup))


def _step_rate(peak: float, every: int, factor: float, warmup: int, step: int) -> float:
    return peak * step / warmup if step <= warmup else peak * factor ** ((step - 1 - warmup) // every)
