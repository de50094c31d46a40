"""Replacing the transposed convolutions of a model."""

from __future__ import annotations

import copy
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ._activation import of_module
from .modules import ConvTranspose1d, ConvTranspose2d

Model = TypeVar("Model", bound=nn.Module)

_LOGGER = logging.getLogger("convt_ext")
_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
}
_NORMALIZATIONS: dict[type[nn.Module], type[nn.Module]] = {
    ConvTranspose1d: nn.BatchNorm1d,
    ConvTranspose2d: nn.BatchNorm2d,
}
_KINDS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass
class ConversionReport:
    """What :func:`convert` did to a model, by the names of its modules. The root's is ``""``."""

    replaced: list[str] = field(default_factory=list)
    #: The names of batch normalizations that are part of a transposed convolution now, and its name.
    folded: dict[str, str] = field(default_factory=dict)
    #: The names of activations that a transposed convolution applies now, and its name.
    fused: dict[str, str] = field(default_factory=dict)
    #: What stays as it was although it is, or follows, a transposed convolution; and why.
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        def named(name: str) -> str:
            return name or "the model itself"

        lines = [f"{len(self.replaced)} replaced: {', '.join(map(named, self.replaced)) or '-'}"]
        lines += [f"{named(norm)} folded into {named(conv)}" for norm, conv in self.folded.items()]
        lines += [f"{named(activation)} fused into {named(conv)}" for activation, conv in self.fused.items()]
        lines += [f"{named(name)} left: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def convert(model: Model, inplace: bool = False, fuse: bool = True) -> Model:
    """Replaces every transposed convolution of a model in one and two dimensions by this package's.

    What is replaced keeps its parameters, ``state_dict`` keys, hooks, mode, device and dtype: it is the same module of
    another class. Modules of a subclass, parametrized, lazy or scripted ones and those in three dimensions stay as they
    are; :func:`conversion_report` names them, and so does the logger ``convt_ext`` at level INFO.

    With `fuse`, a batch normalization right behind a transposed convolution in a :class:`torch.nn.Sequential` is folded
    into it, and an :class:`torch.nn.Identity` takes its place, if both are in eval mode, called from there alone and
    without hooks. The weight and bias are new parameters then, and the normalization's entries of the ``state_dict``
    are gone. Likewise it applies the activation behind it in its own launch: ReLU, LeakyReLU, ELU, SiLU, GELU, Mish,
    Sigmoid, Tanh, Hardtanh, ReLU6 or Hardswish. An activation may be used elsewhere too, and stays there.

    A sequence is taken to be called as a whole: for a model that calls parts of one by itself, or reads what lies
    between them, use ``fuse=False``.

    Args:
        model: any module, a transposed convolution itself included.
        inplace: change `model`, rather than a copy that shares its parameters and buffers.
        fuse: fold batch normalizations and apply activations.

    Returns:
        The converted model.

    Raises:
        TypeError: `model` is no module.
        ValueError: a part of `model` is wrapped in DistributedDataParallel or sharded by fully_shard already.

    Example:
        >>> import torch, convt_ext
        >>> model = torch.nn.Sequential(torch.nn.ConvTranspose2d(8, 4, 4, 2, 1), torch.nn.ReLU()).eval()
        >>> print(convt_ext.conversion_report(convt_ext.convert(model)))
        1 replaced: 0
        1 fused into 0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _refuse_parallel(model)
    if not inplace:
        model = _copy_sharing_tensors(model)
    report = ConversionReport()
    for name, module in model.named_modules():
        if (reason := _reason_to_leave(module)) is not None:
            report.left[name] = reason
        elif type(module) in _REPLACEMENTS:
            # The same module of another class: whatever hangs on it stays.
            module.__class__ = _REPLACEMENTS[type(module)]
            report.replaced.append(name)
    if fuse:
        _fold_normalizations(model, report)
        _fuse_activations(model, report)
    model._convt_report = report  # type: ignore[assignment]
    _LOGGER.info("convert: %s", report)
    return model


def conversion_report(model: nn.Module) -> ConversionReport:
    """What :func:`convert` did when it returned `model`.

    Raises:
        ValueError: `model` does not come from :func:`convert`.
    """
    report = getattr(model, "_convt_report", None)
    if not isinstance(report, ConversionReport):
        raise ValueError("model must be what convt_ext.convert returned")
    return report


def _refuse_parallel(model: nn.Module) -> None:
    """Raises ValueError for a model whose parameters are bound to a process group: a copy's would be bound twice."""
    wrappers: tuple[type, ...] = (nn.parallel.DistributedDataParallel,)
    # Without the import, which takes its time, no module is of these classes.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        wrappers += (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    for name, module in model.named_modules():
        if isinstance(module, wrappers):
            what = f"module {name!r} of it" if name else "it"
            raise ValueError(
                "model must be converted before it is wrapped in DistributedDataParallel or sharded by fully_shard, got"
                f" one in which {what} is a {type(module).__name__}"
            )


def _copy_sharing_tensors(model: Model) -> Model:
    memo: dict[int, object] = {}
    for module in model.modules():
        # weight_norm keeps the weight that it computes as an attribute, which cannot be copied.
        attributes = (value for value in vars(module).values() if isinstance(value, Tensor))
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False), *attributes):
            memo[id(tensor)] = tensor
        # An object whose method is a hook hears from the copy as well.
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            owner = getattr(hook, "__self__", None)
            if owner is not None and not isinstance(owner, nn.Module):
                memo[id(owner)] = owner
    return copy.deepcopy(model, memo)


def _reason_to_leave(module: nn.Module) -> str | None:
    """Why a transposed convolution cannot be replaced; None for what is none, or is this package's."""
    if isinstance(module, torch.jit.ScriptModule):
        scripted = {kind.__name__ for kind in _KINDS}
        name = getattr(module, "original_name", "")
        return "it is TorchScript: convert the model before scripting it" if name in scripted else None
    if not isinstance(module, _KINDS) or isinstance(module, tuple(_REPLACEMENTS.values())):
        return None
    if isinstance(module, LazyModuleMixin):
        return "it is lazy: run the model once, then convert it"
    if parametrize.is_parametrized(module):
        return "it is parametrized: remove the parametrizations first"
    if isinstance(module, nn.ConvTranspose3d):
        return "it has three dimensions"
    if type(module) not in _REPLACEMENTS:
        return f"it is of a subclass, {type(module).__qualname__}"
    if _has_own_forward(module):
        return "its forward has been replaced"
    for name in ("activation", "params"):
        if hasattr(module, name):
            return f"it has an attribute {name!r} of its own"
    return None


@dataclass
class _Pair:
    """A transposed convolution without an activation, and what comes right behind it, both in eval mode."""

    sequence: nn.Sequential
    conv: ConvTranspose1d | ConvTranspose2d
    conv_name: str  # in the model
    follower: nn.Module
    follower_name: str
    place: str  # of the follower in the sequence

    def replace_follower(self) -> None:
        setattr(self.sequence, self.place, nn.Identity().eval())


def _pairs(model: nn.Module) -> Iterator[_Pair]:
    """All pairs in sequences of the model. An identity between the two does not part them."""
    for name, sequence in list(model.named_modules()):
        if not isinstance(sequence, nn.Sequential) or type(sequence).forward is not nn.Sequential.forward:
            continue
        if _has_own_forward(sequence):
            continue
        # In the order of calls: named_children leaves out what comes again.
        children = [
            (child_name, child)
            for child_name, child in sequence._modules.items()
            if child is not None and not (type(child) is nn.Identity and _reason_to_call(child) is None)
        ]
        for (conv_name, conv), (place, follower) in pairwise(children):
            if type(conv) not in _NORMALIZATIONS or conv.training or follower.training:
                continue
            assert isinstance(conv, (ConvTranspose1d, ConvTranspose2d))
            if not conv.activates:
                full_names = [".".join(filter(None, (name, child))) for child in (conv_name, place)]
                yield _Pair(sequence, conv, full_names[0], follower, full_names[1], place)


def _uses(model: nn.Module) -> Counter[int]:
    """How many places of a model a module has, by its id."""
    return Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))


def _has_own_forward(module: nn.Module) -> bool:
    """Whether somebody has set another `forward` on the module itself."""
    return "forward" in vars(module)


def _reason_to_call(module: nn.Module) -> str | None:
    """What a call of a module does beside its class's forward, if anything."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, hook) for hook in hooks):
        return "has hooks"
    return "has another forward" if _has_own_forward(module) else None


def _reason_not_to_change(module: nn.Module, what: str, uses: Counter[int]) -> str | None:
    if (reason := _reason_to_call(module)) is not None:
        return f"{what} {reason}"
    if uses[id(module)] > 1:
        return f"{what} is used more than once"
    return None


_BEFORE = "the transposed convolution before it"


def _fold_normalizations(model: nn.Module, report: ConversionReport) -> None:
    uses = _uses(model)
    for pair in _pairs(model):
        norm = pair.follower
        if type(norm) is not _NORMALIZATIONS[type(pair.conv)]:
            continue
        assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
        if (reason := _reason_not_to_fold(pair.conv, norm, uses)) is not None:
            report.left[pair.follower_name] = reason
            continue
        _fold(pair.conv, norm)
        pair.replace_follower()
        report.folded[pair.follower_name] = pair.conv_name


def _reason_not_to_fold(
    conv: ConvTranspose1d | ConvTranspose2d, norm: nn.BatchNorm1d | nn.BatchNorm2d, uses: Counter[int]
) -> str | None:
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if norm.num_features != conv.out_channels:
        return f"it has {norm.num_features} features, the transposed convolution {conv.out_channels} channels"
    return _reason_not_to_change(conv, _BEFORE, uses) or _reason_not_to_change(norm, "it", uses)


def _fuse_activations(model: nn.Module, report: ConversionReport) -> None:
    uses = _uses(model)
    for pair in _pairs(model):
        described = of_module(pair.follower)
        if described is None:
            continue
        reason = _reason_not_to_change(pair.conv, _BEFORE, uses)
        if reason is None and (does := _reason_to_call(pair.follower)) is not None:
            reason = f"it {does}"
        if reason is not None:
            report.left[pair.follower_name] = reason
            continue
        pair.conv.activation, pair.conv.params = described
        pair.replace_follower()
        report.fused[pair.follower_name] = pair.conv_name


@torch.no_grad()
def _fold(conv: nn.ConvTranspose1d | nn.ConvTranspose2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Makes the normalization's scale and shift part of the weight [Cin, Cout/groups, ...] and the bias."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = conv.weight.double()
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    grouped = weight.reshape(conv.groups, -1, *weight.shape[1:])
    scaled = grouped * scale.reshape(conv.groups, 1, -1, *[1] * (weight.dim() - 2))
    needs_grad = conv.weight.requires_grad
    conv.weight = nn.Parameter(scaled.reshape(weight.shape).to(conv.weight), requires_grad=needs_grad)
    conv.bias = nn.Parameter(shift.to(conv.weight), requires_grad=needs_grad)
