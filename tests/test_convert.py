"""convt_ext.convert: what it replaces, what it keeps, what it leaves, and that the results stay."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import convt_ext


class Subclass(nn.ConvTranspose2d):
    pass


class UNet(nn.Module):
    """Modules by attribute, a skip connection, and one transposed convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.ModuleDict({"up": self.up, "image": nn.ConvTranspose2d(8, 3, 3, padding=1, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.up(self.down(x)))
        return self.last["image"](self.last["up"](torch.relu(y))[..., ::2, ::2]) + x


def dcgan() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.ConvTranspose2d(16, 12, 4, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose2d(12, 8, 4, 2, 1, groups=4), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()),
    )


def vocoder() -> nn.Sequential:
    return nn.Sequential(
        nn.utils.weight_norm(nn.ConvTranspose1d(16, 8, 8, 4, 2)),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose1d(8, 4, 4, 2, 1, groups=2),
        nn.BatchNorm1d(4),
    )


MODELS: dict[str, tuple[Any, tuple[int, ...], list[str]]] = {
    "unet": (UNet, (2, 3, 8, 8), ["up", "last.image"]),
    "dcgan": (dcgan, (2, 16, 1, 1), ["0.0", "1.0", "2.0"]),
    "vocoder": (vocoder, (2, 16, 10), ["0", "2"]),
    "the layer itself": (lambda: nn.ConvTranspose2d(4, 3, 3), (1, 4, 5, 5), [""]),
}
models = pytest.mark.parametrize(("make", "shape", "names"), MODELS.values(), ids=MODELS)


def made(make: Any) -> nn.Module:
    """A model whose normalizations have seen something."""
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@models
@pytest.mark.parametrize("inplace", [False, True])
def test_every_layer_is_replaced(make: Any, shape: tuple[int, ...], names: list[str], inplace: bool) -> None:
    model = made(make).train()
    before, x = model.state_dict(keep_vars=True), torch.randn(shape)
    expected = copy.deepcopy(model)(x) if make is not vocoder else model(x)
    converted = convt_ext.convert(model, inplace=inplace)
    assert (converted is model) == inplace
    assert convt_ext.conversion_report(converted).replaced == names
    for name, module in converted.named_modules():
        ours = isinstance(module, (convt_ext.ConvTranspose1d, convt_ext.ConvTranspose2d))
        assert ours == (name in names or (name == "last.up" and "up" in names))
        assert module.training
    after = converted.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before), "tensors are shared, not copied"
    if not inplace:
        assert not any(isinstance(m, (convt_ext.ConvTranspose1d, convt_ext.ConvTranspose2d)) for m in model.modules())
    assert_close(converted(x), expected)


@models
def test_results_in_eval_mode(make: Any, shape: tuple[int, ...], names: list[str]) -> None:
    model, x = made(make).eval(), torch.randn(shape)
    for fuse in (False, True):
        converted = convt_ext.convert(model, fuse=fuse)
        assert not any(module.training for module in converted.modules())
        assert_close(converted(x), model(x))
        assert bool(convt_ext.conversion_report(converted).folded) == (fuse and make in (dcgan, vocoder))


def test_normalizations_are_folded() -> None:
    model = made(dcgan).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    converted = convt_ext.convert(model)
    report = convt_ext.conversion_report(converted)
    assert report.folded == {"0.1": "0.0", "1.1": "1.0"}
    assert report.fused == {"0.2": "0.0", "1.2": "1.0", "2.1": "2.0"}
    assert report.left == {}
    assert [type(converted.get_submodule(name)) for name in (*report.folded, *report.fused)] == [nn.Identity] * 5
    assert converted.get_submodule("0.0").bias is not None
    # The model that was converted is as before.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    x = torch.randn(2, 16, 1, 1)
    converted(x).sum().backward()
    assert all(parameter.grad is not None for parameter in converted.parameters())


def with_hook(model: nn.Sequential) -> nn.Sequential:
    model[1].register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def twice(first: nn.Module, second: nn.Module) -> nn.Sequential:
    """Called in the order first, second, first, normalization: the second is not before the normalization."""
    return nn.Sequential(first, second, first, nn.BatchNorm2d(4))


def layer(channels: int = 4) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(4, channels, 3)


shared = nn.BatchNorm2d(4)
NOT_FOLDED = {
    "statistics": (lambda: nn.Sequential(layer(), nn.BatchNorm2d(4, track_running_stats=False)), "no running statis"),
    "hooks": (lambda: with_hook(nn.Sequential(layer(), nn.BatchNorm2d(4))), "it has hooks"),
    "shared": (lambda: nn.Sequential(layer(), shared, layer(), shared), "it is used more than once"),
    "shared layer": (lambda: twice(layer(), layer()), "the transposed convolution before it is used more than once"),
    "features": (lambda: nn.Sequential(layer(), nn.BatchNorm2d(5)), "it has 5 features"),
    "training": (lambda: nn.Sequential(layer(), nn.BatchNorm2d(4).train()), None),
}


@pytest.mark.parametrize(("make", "reason"), NOT_FOLDED.values(), ids=NOT_FOLDED)
def test_normalizations_that_stay(make: Any, reason: str | None) -> None:
    model = make().eval()
    if reason is None:
        model[1].train()
    converted = convt_ext.convert(model)
    report = convt_ext.conversion_report(converted)
    assert report.folded == {}
    assert any(isinstance(module, nn.BatchNorm2d) for module in converted)
    assert (reason is None) == (not report.left)
    assert all(reason is not None and reason in text for text in report.left.values())


ACTIVATIONS = {
    "relu": (nn.ReLU(), ("relu", ())),
    "relu in place": (nn.ReLU(inplace=True), ("relu", ())),
    "leaky_relu": (nn.LeakyReLU(0.2), ("leaky_relu", (0.2,))),
    "elu": (nn.ELU(1.5), ("elu", (1.5,))),
    "silu": (nn.SiLU(), ("silu", ())),
    "gelu": (nn.GELU(), ("gelu", ())),
    "gelu by tanh": (nn.GELU(approximate="tanh"), ("gelu_tanh", ())),
    "mish": (nn.Mish(), ("mish", ())),
    "sigmoid": (nn.Sigmoid(), ("sigmoid", ())),
    "tanh": (nn.Tanh(), ("tanh", ())),
    "hardtanh": (nn.Hardtanh(-2, 3), ("hardtanh", (-2.0, 3.0))),
    "relu6": (nn.ReLU6(), ("hardtanh", (0.0, 6.0))),
    "hardswish": (nn.Hardswish(), ("hardswish", ())),
}


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize(("activation", "expected"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_are_fused(activation: nn.Module, expected: tuple[str, tuple[float, ...]], dimensions: int) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dimensions - 1]
    model, x = nn.Sequential(kind(4, 3, 3), activation, nn.Tanh()).eval(), 3 * torch.randn(2, 4, *[5] * dimensions)
    converted = convt_ext.convert(model)
    assert (converted[0].activation, converted[0].params) == expected
    assert [type(module) for module in converted[1:]] == [nn.Identity, nn.Tanh]
    assert convt_ext.conversion_report(converted).fused == {"1": "0"}
    assert_close(converted(x), model(x))
    assert type(model[1]) is type(activation)
    again = convt_ext.convert(converted)
    assert convt_ext.conversion_report(again).fused == {}
    assert_close(again(x), model(x))


def test_a_fused_model_still_trains() -> None:
    model, x = made(dcgan).eval(), torch.randn(2, 16, 1, 1)
    kept, fused = convt_ext.convert(copy.deepcopy(model), fuse=False), convt_ext.convert(model)
    fused(x).square().sum().backward()
    kept(x).square().sum().backward()
    assert_close(fused[2][0].weight.grad, kept[2][0].weight.grad)
    assert_close(fused.train()(x), model(x))


def test_an_activation_elsewhere_stays() -> None:
    activation = nn.ReLU()
    model = nn.Sequential(layer(), activation, nn.Conv2d(4, 4, 1), activation, layer(), activation).eval()
    converted = convt_ext.convert(model)
    assert convt_ext.conversion_report(converted).fused == {"1": "0", "5": "4"}
    assert type(converted[3]) is nn.ReLU
    x = torch.randn(1, 4, 5, 5)
    assert_close(converted(x), model(x))


class SubclassedReLU(nn.ReLU):
    pass


def with_own_forward(module: nn.Module) -> nn.Module:
    """As accelerate's hooks and others do: the module's own forward, and something more."""
    forward = module.forward
    module.forward = lambda x: forward(x) + 1  # type: ignore[method-assign]
    return module


NOT_FUSED = {
    "hooks": (lambda: with_hook(nn.Sequential(layer(), nn.ReLU())), "it has hooks"),
    "hooks of the layer": (
        lambda: nn.Sequential(with_hook(nn.Sequential(nn.Identity(), layer()))[1], nn.ReLU()),
        "the transposed convolution before it has hooks",
    ),
    "shared layer": (
        lambda: (lambda up: nn.Sequential(up, nn.ReLU(), up))(layer()),
        "the transposed convolution before it is used more than once",
    ),
    "another forward": (lambda: nn.Sequential(layer(), with_own_forward(nn.ReLU())), "it has another forward"),
    "another forward of the layer": (
        lambda: nn.Sequential(with_own_forward(layer()), nn.ReLU()),
        "its forward has been replaced",
    ),
    "another forward of the sequence": (lambda: with_own_forward(nn.Sequential(layer(), nn.ReLU())), None),
    "a slope that is no number": (lambda: nn.Sequential(layer(), nn.LeakyReLU(float("nan"))), None),
    "subclass": (lambda: nn.Sequential(layer(), SubclassedReLU()), None),
    "unknown": (lambda: nn.Sequential(layer(), nn.Softplus()), None),
    "not behind it": (lambda: nn.Sequential(layer(), nn.MaxPool2d(2), nn.ReLU()), None),
}


@pytest.mark.parametrize(("make", "reason"), NOT_FUSED.values(), ids=NOT_FUSED)
def test_activations_that_stay(make: Any, reason: str | None) -> None:
    model = make().eval()
    converted = convt_ext.convert(model)
    report = convt_ext.conversion_report(converted)
    assert report.fused == {}
    assert list(report.left.values()) == ([] if reason is None else [reason])
    assert not any(isinstance(module, nn.Identity) for module in converted)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(converted(x), model(x), equal_nan=True)


def test_nothing_is_fused_in_training_mode_or_unasked() -> None:
    for converted in (convt_ext.convert(made(dcgan).train()), convt_ext.convert(made(dcgan).eval(), fuse=False)):
        report = convt_ext.conversion_report(converted)
        assert (report.fused, report.folded, report.left) == ({}, {}, {})


def test_a_normalization_behind_an_activation_stays() -> None:
    """The second conversion does not mistake it for one right behind the layer."""
    model, x = made(lambda: nn.Sequential(layer(), nn.ReLU(), nn.BatchNorm2d(4))).eval(), torch.randn(2, 4, 5, 5)
    once = convt_ext.convert(model)
    twice = convt_ext.convert(once)
    assert convt_ext.conversion_report(twice).folded == {}
    assert_close(twice(x), model(x))


LEFT = {
    "subclass": (lambda: Subclass(4, 3, 3), "it is of a subclass, Subclass"),
    "lazy": (lambda: nn.LazyConvTranspose2d(3, 3), "it is lazy: run the model once, then convert it"),
    "parametrized": (
        lambda: parametrizations.weight_norm(layer()),
        "it is parametrized: remove the parametrizations first",
    ),
    "scripted": (
        lambda: torch.jit.script(layer()),
        "it is TorchScript: convert the model before scripting it",
    ),
    "3d": (lambda: nn.ConvTranspose3d(4, 3, 3), "it has three dimensions"),
    "another forward": (lambda: with_own_forward(layer()), "its forward has been replaced"),
    "a note": (lambda: with_attribute("activation", "relu"), "it has an attribute 'activation' of its own"),
    "a child": (lambda: with_attribute("params", nn.ReLU()), "it has an attribute 'params' of its own"),
}


def with_attribute(name: str, value: object) -> nn.Module:
    module = layer()
    setattr(module, name, value)
    return module


@pytest.mark.parametrize(("make", "reason"), LEFT.values(), ids=LEFT)
def test_what_is_left_is_named(make: Any, reason: str) -> None:
    model = nn.Sequential(make(), layer())
    converted = convt_ext.convert(model, inplace=True)
    report = convt_ext.conversion_report(converted)
    assert report.left == {"0": reason}
    assert report.replaced == ["1"]
    assert str(report) == f"1 replaced: 1\n0 left: {reason}"


class Extractor:
    """Keeps what a layer gives, by a hook that is a method."""

    def __init__(self, module: nn.Module) -> None:
        self.features: list[torch.Tensor] = []
        module.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.features.append(output)


def test_hooks_tell_the_same_object() -> None:
    model, x = nn.Sequential(layer()), torch.randn(1, 4, 5, 5)
    extractor = Extractor(model[0])
    expected = model(x)
    assert_close(convt_ext.convert(model)(x), expected)
    assert_close(extractor.features[1], expected)


def test_hooks_and_attributes_stay() -> None:
    model = nn.Sequential(layer().half().to(memory_format=torch.channels_last))
    model[0].register_forward_hook(lambda module, inputs, output: output * 0)
    model[0].note = "mine"
    model[0].weight.requires_grad_(False)
    converted = convt_ext.convert(model)
    assert converted[0].note == "mine"
    assert converted[0].weight is model[0].weight
    assert not converted[0].weight.requires_grad
    assert not converted(torch.randn(1, 4, 5, 5).half()).any()


def test_again_changes_nothing() -> None:
    once = convt_ext.convert(made(dcgan).eval())
    twice = convt_ext.convert(once)
    report = convt_ext.conversion_report(twice)
    assert (report.replaced, report.folded, report.fused, report.left) == ([], {}, {}, {})
    assert str(report) == "0 replaced: -"


def test_a_converted_model_is_saved_scripted_and_exported() -> None:
    model, x = convt_ext.convert(made(dcgan).eval()), torch.randn(2, 16, 1, 1)
    expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert_close(torch.load(buffer, weights_only=False)(x), expected)
    scripted = torch.jit.script(model)
    assert str(scripted.inlined_graph).count("convt::conv_transpose2d_act") == 3
    assert_close(scripted(x), expected)
    exported = torch.export.export(model, (x,)).module()
    assert_close(exported(x), expected)


def test_the_report_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="convt_ext"):
        convt_ext.convert(nn.Sequential(layer()))
    assert caplog.messages == ["convert: 1 replaced: 0"]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        convt_ext.convert([])  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"model must be what convt_ext\.convert returned"):
        convt_ext.conversion_report(nn.ReLU())
