"""thin_simt: few output channels of float32 in NCHW and filters that it is compiled for; what it computes."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference import (
    LAYOUTS,
    LISTED_FILTERS,
    NEEDS_CUDA,
    Geometry,
    assert_accurate,
    check_activation,
    embed,
    every_second,
    off_by_one,
    poison,
    skip_beyond_limits,
    tf32_allowed,
    with_gaps,
)
from torch import Tensor

import convt_ext

G = Geometry
KERNEL = "thin_simt"
# The paddings along W of each filter and number of output channels, by how much of them is compiled in.
PADDINGS: dict[tuple[int, int, int, int], tuple[int, ...]] = {
    **{(4, 2, couts, 1): (1, 2, 7) for couts in (1, 2, 3, 4)},
    **{(4, 2, couts, 0): (0,) for couts in (1, 2, 3, 4)},
    **{(3, 2, couts, 1): (1, 3, 6) for couts in (1, 3)},
    **{(3, 2, couts, 0): (0,) for couts in (1, 3)},
    (5, 2, 3, 2): (2, 5, 8),
    (5, 2, 3, 0): (0, 1),
    (5, 2, 1, 0): (0, 2, 7),
    (9, 2, 1, 0): (0, 4, 9),
    (9, 3, 1, 0): (0, 4, 11),
    (9, 4, 1, 0): (0, 4, 13),
}
FILTERS = tuple(PADDINGS)  # side, stride, output channels of a group, padding along W that is compiled in


def geometries_of(side: int, stride: int, couts: int, cropped: int) -> tuple[Geometry, ...]:
    """Rows of one four of columns and of many, few rows and odd ones, channels for some warps or for several totals."""
    paddings = PADDINGS[side, stride, couts, cropped]
    least, usual, most = paddings[0], paddings[len(paddings) // 2], paddings[-1]
    base = G("usual", (2, 17, 5, 36), couts, (side, side), (stride, stride), (side // 2, usual))
    changed = {
        "one_row": {"input": (3, 2, 1, 4), "padding": (0, least)},
        "rows_behind": {"input": (2, 3, 1, 8), "padding": (0, usual), "output_padding": (stride - 1, stride - 1)},
        "wide": {"input": (1, 5, 3, 132), "padding": (1, least), "output_padding": (stride - 1, 0)},
        "groups": {"input": (2, 51, 4, 12), "cout": 3 * couts, "groups": 3, "output_padding": (0, stride - 1)},
        "cropped": {"input": (2, 64, 9, 12), "padding": (side + 2, most)},
        "deep": {"input": (1, 130, 3, 8), "padding": (0, least), "bias": False},
    }
    return base, *(replace(base, name=name, **change) for name, change in changed.items())


GEOMETRIES = (
    G("many_items", (6, 8, 40, 100), 3, (4, 4), stride=(2, 2), padding=(1, 1)),
    G("small_images", (37, 5, 3, 4), 3, (4, 4), stride=(2, 2), padding=(1, 1)),
    G("one_output", (1, 9, 1, 4), 1, (4, 4), stride=(2, 2), padding=(1, 4), output_padding=(0, 0)),
    G("two_groups", (2, 34, 5, 20), 6, (4, 4), stride=(2, 2), padding=(2, 1), groups=2),
    G("one_channel_a_group", (2, 3, 5, 12), 9, (4, 4), stride=(2, 2), padding=(1, 1), groups=3),
    G("one_channel", (2, 1, 5, 12), 1, (4, 4), stride=(2, 2), padding=(1, 1)),
    G("unlike_axes", (2, 18, 6, 44), 4, (4, 4), stride=(2, 2), padding=(3, 0), output_padding=(0, 1)),
    G("unbatched", (12, 7, 16), 3, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1)),
    G("fsrcnn", (1, 56, 7, 36), 1, (9, 9), stride=(3, 3), padding=(4, 4), output_padding=(2, 2)),
    G("tall", (1, 12, 301, 4), 2, (4, 4), stride=(2, 2), padding=(1, 1)),
)
pytestmark = [*NEEDS_CUDA]
filters = pytest.mark.parametrize("listed", FILTERS, ids=lambda listed: "k{}s{}x{}_cropped_{}".format(*listed))
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)


@pytest.fixture(autouse=True)
def _forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVT_KERNEL", KERNEL)


def check(geometry: Geometry, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """The output: of IEEE float32 and of the same bits whatever torch allows, once more, and before an activation."""
    line = convt_ext.plan(x, w, b, **geometry.arguments)
    assert line.split()[0] == KERNEL
    outputs = []
    for allowed in (False, True, False):
        with tf32_allowed(allowed):
            assert convt_ext.plan(x, w, b, **geometry.arguments) == line
            poison(geometry.output, x.dtype, x.device)
            outputs.append(convt_ext.conv_transpose2d(x, w, b, **geometry.arguments))
    assert_accurate(outputs[1], x, w, b, f"{geometry.name}: {line}", **geometry.arguments)
    assert all(torch.equal(out, outputs[1]) for out in outputs), line
    active = convt_ext.conv_transpose2d_act(x, w, b, **geometry.arguments, activation="relu")
    assert torch.equal(active, torch.relu(outputs[1])), line
    return outputs[1]


def test_all_filters_are_here() -> None:
    header = (Path(__file__).parent.parent / "include" / "convt" / "thin_simt.h").read_text()
    compiled = re.findall(r"\{(\d+), (\d+), (\d+), (\d+)\}", header)
    assert sorted(tuple(map(int, filter)) for filter in compiled) == sorted(FILTERS)
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for side, stride, couts, _ in sorted(FILTERS):
        found[side, stride] = (*(n for n in found.get((side, stride), ()) if n != couts), couts)
    assert found == LISTED_FILTERS[KERNEL]


@filters
def test_filters(listed: tuple[int, int, int, int]) -> None:
    side, stride, couts, cropped = listed
    for geometry in geometries_of(*listed):
        tensors = geometry.tensors(torch.float32, "cuda")
        line = convt_ext.plan(*tensors, **geometry.arguments)
        expected = f" filter={side}s{stride} couts={couts}x{geometry.groups} cropped={cropped} "
        assert expected in line, f"{geometry}: {line}"
        check(geometry, *tensors)


@geometries
def test_geometries(geometry: Geometry) -> None:
    check(geometry, *geometry.tensors(torch.float32, "cuda"))


@filters
def test_paddings(listed: tuple[int, int, int, int]) -> None:
    """Each along W and more, with each output padding, for rows of one four and of two."""
    side, stride, couts, cropped = listed
    paddings = PADDINGS[listed]
    every = paddings if cropped == 0 and len(paddings) < 3 else range(paddings[0], paddings[-1] + 1)
    for columns in (4, 8):
        for padding in every:
            for output_padding in range(stride):
                geometry = G(
                    f"{columns} columns, padding {padding}",
                    (2, 6, 3, columns),
                    couts,
                    (side, side),
                    (stride, stride),
                    (padding % 3, padding),
                    (stride - 1 - output_padding, output_padding),
                )
                if min(geometry.output) < 1:
                    continue
                tensors = geometry.tensors(torch.float32, "cuda")
                assert f" cropped={cropped} " in convt_ext.plan(*tensors, **geometry.arguments)
                check(geometry, *tensors)


@pytest.mark.parametrize("seed", range(12))
def test_random_geometries(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(25):
        side, stride, couts, _ = draw.choice(FILTERS)
        groups = draw.choice((1, 1, 1, 2, 3))
        rows, columns = draw.randint(1, 12), 4 * draw.choice((1, 2, 3, 5, 9, 33, 40))
        padding = draw.randint(0, 2 * side), draw.randint(0, 2 * side)
        geometry = G(
            "random",
            (draw.choice((1, 2, 5)), groups * draw.choice((1, 2, 3, 4, 7, 18, 19, 40, 75)), rows, columns),
            groups * couts,
            (side, side),
            (stride, stride),
            padding,
            (draw.randrange(stride), draw.randrange(stride)),
            groups=groups,
            bias=draw.random() < 0.5,
        )
        if min(geometry.output) < 1:
            continue
        x, w, b = geometry.tensors(torch.float32, "cuda", draw.randrange(2**16))
        x = draw.choice((lambda x: x, lambda x: with_gaps(x, vector=4)))(x)
        w = LAYOUTS[draw.choice(("contiguous", "contiguous", "channels_last", "sliced", "transposed", "expanded"))](w)
        check(replace(geometry, name=str(geometry)), x, w, b)


# ---------------------------------------------------------------- layouts


@filters
def test_layouts_of_the_weight(listed: tuple[int, int, int, int]) -> None:
    """Those that are copied as they lie, 16 bytes or one element at a time, and others: sums have one order."""
    for geometry in geometries_of(*listed)[::4]:
        x, w, b = geometry.tensors(torch.float32, "cuda")
        expected = check(geometry, x, w, b)
        cin, couts, side, _ = w.shape
        laid = {
            "off_by_one": off_by_one(w),
            "channels_last": LAYOUTS["channels_last"](w),
            "transposed": LAYOUTS["transposed"](w),
            "sliced": LAYOUTS["sliced"](w),
            "every_second_tap": embed(w, lambda s: s[..., ::2], [cin, couts, side, 2 * side]),
            "every_second_channel": embed(w, lambda s: s[::2], [2 * cin, couts, side, side]),
            "every_second_output": embed(w, lambda s: s[:, ::2], [cin, 2 * couts, side, side]),
            "turned": embed(w, lambda s: s.transpose(0, 1), [couts, cin, side, side]),
        }
        for name, weight in laid.items():
            assert torch.equal(check(geometry, x, weight, every_second(b)), expected), name


@pytest.mark.parametrize("listed", FILTERS[::3], ids=str)
def test_layouts_of_the_input(listed: tuple[int, int, int, int]) -> None:
    """Distances that are multiples of four, with NaN between rows, channels and images, or none at all."""
    for geometry in geometries_of(*listed):
        x, w, b = geometry.tensors(torch.float32, "cuda")
        expected = check(geometry, x, w, b)
        n, c, h, side = x.shape
        laid = {
            "with_gaps": with_gaps(x, vector=4),
            "every_second_row": embed(x, lambda s: s[:, :, ::2], [n, c, 2 * h, side]),
            "every_second_channel": embed(x, lambda s: s[:, ::2], [n, 2 * c, h, side]),
            "images_last": embed(x, lambda s: s.permute(2, 1, 0, 3), [h, c, n, side]),
        }
        for name, image in laid.items():
            assert image.data_ptr() % 16 == 0
            assert torch.equal(check(geometry, image, w, b), expected), name
        same = x[:1].expand(x.shape)
        check(geometry, same, w, b)
        same = x[:, :1].expand(x.shape)
        check(geometry, same, w, b)


def test_distances_of_one_do_not_matter() -> None:
    """Of one image and one row, whatever their strides are."""
    geometry = G("one_row", (1, 12, 1, 8), 3, (4, 4), stride=(2, 2), padding=(1, 1))
    x, w, b = geometry.tensors(torch.float32, "cuda")
    check(geometry, x.as_strided(x.shape, (x.numel() + 1, 8, 7, 1)), w, b)


def test_one_channel_in_channels_last() -> None:
    """Its rows are those of NCHW; the output has its channels side by side."""
    geometry = G("one_channel", (2, 1, 5, 12), 3, (4, 4), stride=(2, 2), padding=(1, 1))
    x, w, b = geometry.tensors(torch.float32, "cuda")
    out = check(geometry, LAYOUTS["channels_last"](x), w, b)
    assert out.is_contiguous(memory_format=torch.channels_last)


GEOMETRY = G("image", (2, 16, 9, 40), 3, (4, 4), stride=(2, 2), padding=(1, 1))
UNALIGNED = {
    "off_by_one": off_by_one,
    "sliced": LAYOUTS["sliced"],
    "strided": LAYOUTS["strided"],
    "transposed": LAYOUTS["transposed"],
    "channels_last": LAYOUTS["channels_last"],
}


@pytest.mark.parametrize("layout", UNALIGNED)
def test_input_that_is_not_aligned(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced it refuses; the plan takes another kernel."""
    x, w, b = GEOMETRY.tensors(torch.float32, "cuda")
    moved = UNALIGNED[layout](x)
    reason = f"CONVT_KERNEL={KERNEL} cannot compute this problem: it reads four neighbours along W at once"
    for function in (convt_ext.plan, convt_ext.conv_transpose2d):
        with pytest.raises(RuntimeError, match=reason):
            function(moved, w, b, **GEOMETRY.arguments)
    monkeypatch.delenv("CONVT_KERNEL")
    assert convt_ext.plan(moved, w, b, **GEOMETRY.arguments).split()[0] != KERNEL
    out = convt_ext.conv_transpose2d(moved, w, b, **GEOMETRY.arguments)
    assert_accurate(out, moved, w, b, layout, **GEOMETRY.arguments)


def test_plan_takes_what_is_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sizes from another address are another problem to the plan."""
    monkeypatch.delenv("CONVT_KERNEL")
    geometry = G("fsrcnn", (1, 56, 90, 160), 1, (9, 9), stride=(3, 3), padding=(4, 4), output_padding=(2, 2))
    x, w, b = geometry.tensors(torch.float32, "cuda")
    for image, chosen in ((x, True), (off_by_one(x), False), (with_gaps(x, vector=4), True)):
        line = convt_ext.plan(image, w, b, **geometry.arguments)
        assert (line.split()[0] == KERNEL) == chosen, line
        poison(geometry.output, x.dtype, x.device)
        out = convt_ext.conv_transpose2d(image, w, b, **geometry.arguments)
        assert_accurate(out, image, w, b, line, **geometry.arguments)


# ---------------------------------------------------------------- accuracy


@filters
def test_long_sums_of_one_sign(listed: tuple[int, int, int, int]) -> None:
    """Nothing cancels, and every sum grows to the end: rounding errors have a share of the whole sum at most."""
    geometry = replace(geometries_of(*listed)[0], input=(1, 512, 9, 12), bias=False)
    for spread in (1e-3, 0.3):
        x = 1 + spread * (2 * torch.rand(geometry.input, generator=torch.Generator().manual_seed(1)) - 1)
        w = 1 + spread * (2 * torch.rand(geometry.weight, generator=torch.Generator().manual_seed(2)) - 1)
        x, w = x.cuda(), w.cuda()
        skip_beyond_limits(KERNEL, x, w, None, **geometry.arguments)
        check(geometry, x, w, None)


@pytest.mark.parametrize("activation", ["relu", "gelu", "none"])
@pytest.mark.parametrize("listed", FILTERS[::4], ids=str)
def test_activation(listed: tuple[int, int, int, int], activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for geometry in geometries_of(*listed):
        check_activation(monkeypatch, KERNEL, geometry, activation, 1e-5, *geometry.tensors(torch.float32, "cuda"))


# ---------------------------------------------------------------- sizes


def test_more_than_2_31_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets of images, groups and rows have 64 bits: sums of small whole numbers are exact in every kernel."""
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    geometry = G("large", (3, 8, 2800, 4004), 4, (9, 9), stride=(4, 4), padding=(4, 4), groups=4, bias=False)
    generator = torch.Generator("cuda").manual_seed(0)
    x, w = (
        torch.randint(-4, 5, shape, generator=generator, device="cuda", dtype=torch.float32)
        for shape in (geometry.input, geometry.weight)
    )
    out = convt_ext.conv_transpose2d(x, w, None, **geometry.arguments)
    assert out.numel() > 2**31
    monkeypatch.setenv("CONVT_KERNEL", "generic")
    for image in range(3):
        expected = convt_ext.conv_transpose2d(x[image : image + 1], w, None, **geometry.arguments)
        assert torch.equal(out[image : image + 1], expected)
        del expected


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float16}, "it computes float32"),
        ({"dtype": torch.bfloat16}, "it computes float32"),
        ({"dtype": torch.float64}, "it computes float32"),
        ({"dilation": (1, 2)}, "it is not compiled for the filter"),
        ({"dilation": (2, 1)}, "it is not compiled for the filter"),
        ({"stride": (2, 1)}, "it is not compiled for the filter"),
        ({"stride": (4, 2)}, "it is not compiled for the filter"),
        ({"weight": (4, 3)}, "it is not compiled for the filter"),
        ({"weight": (6, 6)}, "it is not compiled for the filter"),
        ({"couts": 5}, "it is not compiled for the filter"),
        ({"width": 30}, "it reads four neighbours along W at once"),
        ({"layout": "channels_last"}, "it reads four neighbours along W at once"),
        ({"channels": 8192}, "the weight does not fit in shared memory"),
    ],
)
def test_refuses(change: dict[str, object], reason: str) -> None:
    sizes: dict[str, object] = {"channels": 16, "width": 32, "couts": 3, "weight": (4, 4)}
    sizes |= {"dtype": torch.float32, "layout": "contiguous", "stride": (2, 2), "dilation": (1, 1)} | change
    channels, width, couts, dtype = (sizes[name] for name in ("channels", "width", "couts", "dtype"))
    x = LAYOUTS[str(sizes["layout"])](torch.ones(2, channels, 4, width, dtype=dtype, device="cuda"))
    w = torch.ones(channels, couts, *sizes["weight"], dtype=dtype, device="cuda")
    with pytest.raises(RuntimeError, match=f"CONVT_KERNEL={KERNEL} cannot compute this problem: {reason}"):
        convt_ext.plan(x, w, None, stride=sizes["stride"], dilation=sizes["dilation"])


def test_has_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = GEOMETRY.tensors(torch.float32, "cuda")
    line = convt_ext.plan(*tensors, **GEOMETRY.arguments)
    monkeypatch.setenv("CONVT_KERNEL", f"{KERNEL}:0")
    assert convt_ext.plan(*tensors, **GEOMETRY.arguments) == line
    monkeypatch.setenv("CONVT_KERNEL", f"{KERNEL}:1")
    with pytest.raises(RuntimeError, match=f"CONVT_KERNEL={KERNEL}:1: the problem has 1 launches of {KERNEL}"):
        convt_ext.plan(*tensors, **GEOMETRY.arguments)


# ---------------------------------------------------------------- under compute-sanitizer


@pytest.mark.sanitize
@filters
def test_under_sanitizers(listed: tuple[int, int, int, int]) -> None:
    """Weights that are copied in every way; first and last rows and columns without neighbours."""
    for geometry in geometries_of(*listed)[1:5]:
        x, w, b = geometry.tensors(torch.float32, "cuda")
        for weight in (w, off_by_one(w), LAYOUTS["transposed"](w)):
            out = convt_ext.conv_transpose2d(x, weight, b, **geometry.arguments)
            assert_accurate(out, x, weight, b, geometry.name, **geometry.arguments)
