"""Optimizers by name, fp32 master copies of half-precision weights, and the moving average of the weights.

torch is imported inside the functions, so that the table can be listed anywhere. Everything that steps here has the
surface of a torch optimizer and a state of plain tensors, which a checkpoint holds as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tiebreak.records import InputError
from tiebreak.registry import Row, Table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Groups = list[dict[str, Any]]
"""Parameter groups as torch has them: ``params`` and ``weight_decay``, and ``embedding`` where they are tables."""

ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices with a fused AdamW kernel in torch."""
INSTEAD = "use adamw, or adafactor where memory is short"

OPTIMIZERS = Table(
    "optimizers",
    "optimizer",
    [
        Row(
            name="adamw",
            does="Adam with decoupled weight decay; two moments per weight",
            target="tiebreak.train.optimizers:adamw",
            knobs=ADAM,
            paper="Loshchilov and Hutter 2019, arXiv 1711.05101",
        ),
        Row(
            name="adamw_8bit",
            does="AdamW with its moments in 8 bits; CUDA and bitsandbytes",
            target="tiebreak.train.optimizers:adamw_8bit",
            knobs={**ADAM, "paged": False},
            paper="Dettmers et al. 2022, arXiv 2110.02861",
        ),
        Row(
            name="paged_adamw_8bit",
            does="adamw_8bit whose moments move to the host's memory when the device's is short",
            target="tiebreak.train.optimizers:adamw_8bit",
            knobs={**ADAM, "paged": True},
            paper="Dettmers et al. 2023, arXiv 2305.14314",
        ),
        Row(
            name="adafactor",
            does="Adafactor at the given learning rate; one row and one column of moments per matrix",
            target="tiebreak.train.optimizers:adafactor",
            knobs={"decay_rate": -0.8, "clip_threshold": 1.0},
            paper="Shazeer and Stern 2018, arXiv 1804.04235",
        ),
        Row(
            name="sgd",
            does="plain gradient steps, with momentum if asked; no moments without it",
            target="tiebreak.train.optimizers:sgd",
            knobs={"momentum": 0.0},
            paper="Robbins and Monro 1951",
        ),
    ],
)


def make_optimizer(
    model: torch.nn.Module,
    name: str,
    knobs: Mapping[str, Any],
    *,
    learning_rate: float,
    weight_decay: float,
    master: bool = False,
) -> Any:
    """Return the optimizer ``name`` over the weights that are trained (``requires_grad``).

    Weight decay pulls on matrices only (``ndim >= 2``, embeddings among them), never on biases and norms, whose scale
    is what they are for; of the usual architectures these are the weights transformers' Trainer decays too.

    Args:
        model: its parameters are grouped as they are now; freeze first.
        name: a row of :data:`OPTIMIZERS`, or your own as module:function: groups and keywords to an optimizer.
        knobs: the row's own; what is not given is its default.
        learning_rate: of every group, until the loop sets ``param_groups`` anew.
        weight_decay: of the matrices.
        master: step fp32 copies of half-precision weights (:class:`Master`), which small updates need.

    Raises:
        InputError: an unknown name or knob, a value torch refuses, nothing to train, or a package or device missing.
    """
    row = OPTIMIZERS[name]
    settled = row.settle(knobs, where="optimizer")
    groups = parameter_groups(model, weight_decay)
    if not groups:
        raise InputError("No weight of the model is trained: requires_grad is off for all of them.")

    def make(given: Groups) -> Any:
        return row.load()(given, learning_rate=learning_rate, weight_decay=weight_decay, **settled)

    try:
        return Master(groups, make) if master else make(groups)
    except ValueError as error:
        raise InputError(f"optimizer: {name!r} cannot be set up so: {error}.") from error


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> Groups:
    """Return the trained weights as up to three groups: matrices, embeddings, and what is not decayed."""
    import torch

    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wide = [parameter for parameter in trained if parameter.ndim >= 2]
    groups: Groups = [
        {"params": [p for p in wide if id(p) not in tables], "weight_decay": weight_decay, "embedding": False},
        {"params": [p for p in wide if id(p) in tables], "weight_decay": weight_decay, "embedding": True},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "embedding": False},
    ]
    return [group for group in groups if group["params"]]


def adamw(
    groups: Groups, *, learning_rate: float, weight_decay: float, beta1: float, beta2: float, epsilon: float
) -> torch.optim.Optimizer:
    """Return torch's AdamW as one fused kernel where the device has it, else over lists of tensors (foreach)."""
    import torch

    fused = all(parameter.device.type in FUSED for parameter in _flat(groups))
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(float(beta1), float(beta2)),
        eps=float(epsilon),
        weight_decay=weight_decay,
        fused=fused,
        foreach=not fused,
    )


def adamw_8bit(
    groups: Groups,
    *,
    learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    paged: bool,
) -> Plain:
    """Return bitsandbytes' AdamW, two bytes of moments per weight; embeddings keep fp32 moments, as its paper says.

    ``paged`` moments live in unified memory; those that a resumed run reads from disk stay on the device.
    """
    import torch

    name = "paged_adamw_8bit" if paged else "adamw_8bit"
    if places := {parameter.device.type for parameter in _flat(groups)} - {"cuda"}:
        raise InputError(f"{name!r} needs the weights on a CUDA device, not on {', '.join(places)}; {INSTEAD}.")
    try:
        optim = import_module("bitsandbytes.optim")
    except ImportError as error:
        raise InputError(f"{name!r} needs bitsandbytes: pip install bitsandbytes; or {INSTEAD}.") from error
    kind = optim.PagedAdamW8bit if paged else optim.AdamW8bit
    betas = (float(beta1), float(beta2))
    optimizer = kind(groups, lr=learning_rate, betas=betas, eps=float(epsilon), weight_decay=weight_decay)
    for parameter in _flat([group for group in groups if group.get("embedding")]):
        moments = {key: optimizer.get_state_buffer(parameter, dtype=torch.float32) for key in ("state1", "state2")}
        optimizer.state[parameter] = {"step": 0, **moments}  # it steps at the precision that it finds
    return Plain(optimizer)


def adafactor(
    groups: Groups, *, learning_rate: float, weight_decay: float, decay_rate: float, clip_threshold: float
) -> Plain:
    """Return transformers' Adafactor with its own schedule off (no relative step, no scaling by the weights)."""
    from transformers.optimization import Adafactor

    rate = {"lr": learning_rate, "relative_step": False, "scale_parameter": False}
    bounds = {"decay_rate": decay_rate, "clip_threshold": clip_threshold}
    return Plain(Adafactor(groups, weight_decay=weight_decay, **rate, **bounds))


def sgd(groups: Groups, *, learning_rate: float, weight_decay: float, momentum: float) -> torch.optim.Optimizer:
    """Return torch's SGD; its weight decay is added to the gradient, so momentum carries it too."""
    import torch

    return torch.optim.SGD(groups, lr=learning_rate, momentum=float(momentum), weight_decay=weight_decay)


def _flat(groups: Groups) -> list[Tensor]:
    """Return the parameters in the order that numbers them in a torch state dict."""
    return [parameter for group in groups for parameter in group["params"]]


class Plain:
    """An optimizer whose state is tensors alone, at the precision it has, for a file to hold and give back.

    Counts become tensors and come back as numbers. torch's loader would cast moments to the weights' precision, and
    bitsandbytes nests its state, which safetensors cannot hold.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> Groups:
        """The inner optimizer's groups, whose learning rates may be set."""
        return list(self.inner.param_groups)

    def step(self) -> None:
        """Take one step from the gradients."""
        self.inner.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or fill them with zeros."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return ``state`` as {number: {name: tensor}} and ``param_groups``; the tensors are the living ones."""
        import torch

        state = {
            number: {name: torch.as_tensor(value) for name, value in self.inner.state[parameter].items()}
            for number, parameter in enumerate(_flat(self.param_groups))
            if self.inner.state.get(parameter)
        }
        return {"state": state, "param_groups": self.inner.state_dict()["param_groups"]}

    def load_state_dict(self, given: Mapping[str, Any]) -> None:
        """Take a state of :meth:`state_dict`, bit for bit."""
        import torch

        for number, parameter in enumerate(_flat(self.param_groups)):
            self.inner.state.pop(parameter, None)
            if number in given["state"]:
                self.inner.state[parameter] = {
                    name: value.item() if value.dtype == torch.int64 and not value.ndim else value.to(parameter.device)
                    for name, value in given["state"][number].items()
                }
        for group, saved in zip(self.param_groups, given["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})


class Master:
    """An optimizer over fp32 copies of half-precision weights, for bfloat16 loses updates under 1/512 of a weight.

    ``make`` builds the inner optimizer from groups of copies; weights that are fp32 already are stepped themselves.
    The copies decide: weights changed from outside are overwritten by the next step.
    """

    def __init__(self, groups: Groups, make: Callable[[Groups], Any]) -> None:
        copies = [{**group, "params": [_wide(parameter) for parameter in group["params"]]} for group in groups]
        self._pairs = list(zip(_flat(groups), _flat(copies), strict=True))
        self.inner = make(copies)

    @property
    def param_groups(self) -> Groups:
        """The inner optimizer's groups, whose learning rates may be set; their parameters are the copies."""
        return list(self.inner.param_groups)

    def step(self) -> None:
        """Step the copies from the weights' gradients in fp32 and write them back, rounded to nearest."""
        import torch

        apart = [(narrow, copy) for narrow, copy in self._pairs if narrow is not copy]
        for narrow, copy in apart:
            copy.grad = None if narrow.grad is None else narrow.grad.to(copy.dtype)
        self.inner.step()
        with torch.no_grad():
            for narrow, copy in apart:
                if copy.grad is not None:
                    narrow.copy_(copy)
                    copy.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the model's weights, or fill them with zeros."""
        for narrow, _ in self._pairs:
            if set_to_none:
                narrow.grad = None
            elif narrow.grad is not None:
                narrow.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the inner state with each copy beside its moments as ``master``; the tensors are the living ones."""
        inner = self.inner.state_dict()
        state = {number: dict(values) for number, values in inner["state"].items()}
        for number, (narrow, copy) in enumerate(self._pairs):
            if narrow is not copy:
                state.setdefault(number, {})["master"] = copy
        return {"state": state, "param_groups": inner["param_groups"]}

    def load_state_dict(self, given: Mapping[str, Any]) -> None:
        """Take a state of :meth:`state_dict`, bit for bit, and write the weights from the copies.

        Raises:
            InputError: the state has no copies, being that of an optimizer without them.
        """
        import torch

        moments = {number: dict(values) for number, values in given["state"].items()}
        copies = {number: values.pop("master") for number, values in moments.items() if "master" in values}
        apart = {number: pair for number, pair in enumerate(self._pairs) if pair[0] is not pair[1]}
        if set(copies) != set(apart):
            raise InputError(
                f"The optimizer's state holds {len(copies)} fp32 master copies and {len(apart)} weights need one; it "
                "was written by a training at another precision, so train in another folder."
            )
        kept = {number: values for number, values in moments.items() if values}
        self.inner.load_state_dict({"state": kept, "param_groups": given["param_groups"]})
        with torch.no_grad():
            for number, (narrow, copy) in apart.items():
                copy.copy_(copies[number])
                narrow.copy_(copy)


def _wide(parameter: Tensor) -> Tensor:
    """Return an fp32 copy of a half-precision parameter, and any other as it is."""
    import torch

    half = parameter.dtype in (torch.bfloat16, torch.float16)
    return parameter.detach().to(torch.float32) if half else parameter


class Ema:
    """The exponential moving average of the trained weights, in fp32 whatever their precision.

    After each update the average is ``decay`` of itself and ``1 - decay`` of the weights.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        import torch

        if not 0 <= decay < 1:
            raise InputError(f"The decay of the moving average is {decay}; it has to be at least 0 and less than 1.")
        self.decay = decay
        self._averages: dict[str, Tensor] = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def _beside(self, model: torch.nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
        weights = dict(model.named_parameters())
        return ((name, weights[name], average) for name, average in self._averages.items())

    def update(self, model: torch.nn.Module) -> None:
        """Move the averages towards the weights of ``model``; to be called after each optimizer step."""
        import torch

        with torch.no_grad():
            for _, parameter, average in self._beside(model):
                average.lerp_(parameter.to(average.dtype), 1 - self.decay)

    @contextmanager
    def swapped(self, model: torch.nn.Module) -> Iterator[None]:
        """Lend ``model`` the averages, rounded to its precision; its own weights come back bit for bit."""
        import torch

        own: dict[str, Tensor] = {}
        try:
            with torch.no_grad():
                for name, parameter, average in self._beside(model):
                    own[name] = parameter.detach().clone()
                    parameter.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for name, parameter, _ in self._beside(model):
                    if name in own:
                        parameter.copy_(own[name])

    def state(self) -> dict[str, Tensor]:
        """Return the averages by the weights' names; they are the living ones, so copy what has to stay."""
        return dict(self._averages)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take averages that :meth:`state` returned.

        Raises:
            InputError: they are of other weights.
        """
        if {name: a.shape for name, a in state.items()} != {name: a.shape for name, a in self._averages.items()}:
            raise InputError(
                f"The moving average on disk is of {len(state)} weights and the model trains {len(self._averages)} of "
                "other names or shapes; it belongs to another training."
            )
        for name, average in self._averages.items():
            average.copy_(state[name])
