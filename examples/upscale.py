"""Enlarges a photograph with a transposed convolution.

    python examples/upscale.py [in.png] out.png [--scale 4] [--filter lanczos|mitchell] [--dtype fp32|fp16]
                               [--device auto|cpu|cuda]

Enlarging by an integer factor is one transposed convolution: each input pixel spreads a sampled filter over the output,
`scale` pixels apart, one filter per colour channel (groups=3). With no input a test card is drawn and enlarged.

The work is done by a TorchScript module that has been saved and loaded again, in fp32 and in fp16 unless --dtype names
one; the picture written is the fp32 one, or that of --dtype.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor, nn

import convt_ext

MAX_SCALE = 16
CARD_TITLE = "test card of examples/upscale.py"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
TIMING_SECONDS = 0.5  # for one measurement, at least one call


def lanczos(t: Tensor) -> Tensor:
    """Lanczos' filter of three lobes at distances `t` in input pixels; it reaches 3."""
    return torch.where(t.abs() < 3, torch.sinc(t) * torch.sinc(t / 3), 0.0)


def mitchell(t: Tensor) -> Tensor:
    """The filter of Mitchell and Netravali (SIGGRAPH 1988) with B = C = 1/3 at distances `t`; it reaches 2."""
    t = t.abs()
    inner = (7 * t**3 - 12 * t**2 + 16 / 3) / 6
    outer = (-7 / 3 * t**3 + 12 * t**2 - 20 * t + 32 / 3) / 6
    return torch.where(t < 1, inner, torch.where(t < 2, outer, 0.0))


FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {"lanczos": (lanczos, 3), "mitchell": (mitchell, 2)}


def filter_taps(name: str, scale: int) -> tuple[Tensor, int]:
    """The sampled filter along one axis, float64, and the tap that meets output 0 of input pixel 0.

    The centre of output pixel o is at (o + 0.5) / scale - 0.5 in input pixels. Tap k of input pixel i goes to output
    i * scale + k - origin, so its distance is (k - origin + 0.5) / scale - 0.5 whatever i is. The taps of a phase
    (those `scale` apart, which alone reach a given output) are divided by their sum: a constant image stays constant.
    """
    function, reach = FILTERS[name]
    length = 2 * reach * scale - scale % 2  # every tap with a distance below the reach
    origin = (length - scale) // 2
    distance = (torch.arange(length, dtype=torch.float64) - origin + 0.5) / scale - 0.5
    taps = function(distance)
    for phase in range(scale):
        taps[phase::scale] /= taps[phase::scale].sum()
    return taps, origin


class Upscaler(nn.Module):
    """Enlarges images [N, 3, H, W] to [N, 3, H * scale, W * scale].

    The image is first extended by the filter's reach, repeating its border pixels; what they grow to is cropped by the
    convolution's `padding`.
    """

    def __init__(self, scale: int, filter_name: str) -> None:
        super().__init__()
        taps, origin = filter_taps(filter_name, scale)
        self.scale = scale
        self.border = FILTERS[filter_name][1]
        self.padding = self.border * scale + origin
        self.weight: Tensor
        self.register_buffer("weight", torch.outer(taps, taps).float().expand(3, 1, -1, -1).contiguous())

    def extend(self, image: Tensor) -> Tensor:
        return F.pad(image, [self.border, self.border, self.border, self.border], mode="replicate")

    def forward(self, image: Tensor) -> Tensor:
        return torch.ops.convt.conv_transpose2d(
            self.extend(image), self.weight, None, self.scale, self.padding, 0, 3, 1
        )


def save_and_load(module: Upscaler, device: torch.device) -> torch.jit.ScriptModule:
    """The module after a trip through a TorchScript file."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(file, map_location=device)
    return loaded


def draw_test_card(height: int = 240, width: int = 320) -> Tensor:
    """A picture [3, height, width] in 0..1 that shows what a filter does.

    Above, a zone plate on the left and slanted edges on the right; below, colour bars and a grey ramp.
    """
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    half, split = width // 2, height * 3 // 4
    radius2 = (x - half / 2) ** 2 + (y - split / 2) ** 2
    zones = 0.5 + 0.5 * torch.cos(math.pi * radius2 / max(half, split))  # half the sampling rate at the rim
    angle = torch.atan2(y - split / 2, x - half * 1.5)
    spokes = (torch.floor(angle * 18 / math.pi) % 2).abs()
    card = torch.where(x < half, zones, spokes).expand(3, -1, -1).clone()
    bar = (x * 8 / width).floor().long()
    bars = torch.stack(
        [1.0 - (bar // 2 % 2), 1.0 - (bar // 4 % 2), 1.0 - (bar % 2)]
    )  # white to black, as on television
    card[:, split:] = bars[:, split:]
    ramp = split + (height - split) * 2 // 3
    card[:, ramp:] = x[ramp:] / max(width - 1, 1)
    return card.clamp(0, 1).float()


def read_image(path: Path) -> Tensor:
    """The picture as [3, H, W] in 0..1, upright. Raises OSError when it cannot be read."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise OSError(f"{path} is no picture that Pillow can read") from error
    pixels = np.array(upright, dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def write_image(image: Tensor, path: Path, title: str | None = None) -> None:
    """Writes [3, H, W] in 0..1, rounded to 8 bits."""
    pixels = (image.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    info = PngImagePlugin.PngInfo()
    if title:
        info.add_text("Title", title)
    Image.fromarray(pixels).save(path, pnginfo=info)


def milliseconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Median time of a call that is warm."""
    times: list[float] = []
    started = time.perf_counter()
    while not times or (len(times) < 20 and time.perf_counter() - started < TIMING_SECONDS):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            begin_s = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - begin_s))
    return statistics.median(times)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Enlarges a photograph with a transposed convolution.")
    parser.add_argument("input", type=Path, nargs="?", help="picture to enlarge (default: a test card)")
    parser.add_argument("output", type=Path, help="picture to write")
    parser.add_argument("--scale", type=int, default=4, help=f"2 to {MAX_SCALE} (default: 4)")
    parser.add_argument("--filter", choices=list(FILTERS), default="lanczos", help="(default: lanczos)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="compute in this type only (default: both)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: a GPU if any)")
    options = parser.parse_args(arguments)

    output: Path = options.output
    if not 2 <= options.scale <= MAX_SCALE:
        parser.error(f"--scale must be 2 to {MAX_SCALE}, got {options.scale}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if output.suffix.lower() not in Image.registered_extensions():
        parser.error(f"output must end in .png or another type that Pillow writes, got {output}")
    if not output.parent.is_dir():
        parser.error(f"output must be in a folder that exists, got {output}")
    if options.input is None and output.exists() and not is_test_card(output):
        parser.error(f"{output} exists and is not an earlier test card; to enlarge it, name an output as well")
    return options


def is_test_card(path: Path) -> bool:
    """Whether this program wrote the file when it had no input."""
    try:
        with Image.open(path) as image:
            return image.info.get("Title") == CARD_TITLE
    except OSError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if options.device == "auto" else options.device)
    try:
        image = draw_test_card() if options.input is None else read_image(options.input)
    except OSError as error:
        print(f"error: cannot read the input: {error}", file=sys.stderr)
        return 1
    height, width = image.shape[1:]
    size = f"{width * options.scale}x{height * options.scale}"
    print(f"{options.input or 'test card'}: {width}x{height} to {size}, {options.filter}")
    print(f"device: {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}")

    upscaler = Upscaler(options.scale, options.filter).to(device)
    written: Tensor | None = None
    for name, dtype in DTYPES.items():
        if options.dtype not in (None, name):
            continue
        x = image.unsqueeze(0).to(device, dtype)
        upscaler.to(dtype)
        module = save_and_load(upscaler, device)
        weight, padding = upscaler.weight, upscaler.padding

        def reference(x: Tensor = x, weight: Tensor = weight, padding: int = padding) -> Tensor:
            return F.conv_transpose2d(upscaler.extend(x), weight, None, options.scale, padding, 0, 3)

        with torch.inference_mode():
            ours = module(x)
            difference = (ours.float() - reference().float()).abs().max().item()
            ours_ms = milliseconds(lambda x=x, module=module: module(x), device)  # type: ignore[misc]
            torch_ms = milliseconds(reference, device)
            plan = convt_ext.plan(upscaler.extend(x), weight, None, options.scale, padding, 0, 3)
        print(f"{name}: kernel {plan}")
        print(f"{name}: {ours_ms:.3f} ms, PyTorch {torch_ms:.3f} ms; largest difference {difference:.1e} (white is 1)")
        if written is None:
            written = ours[0]
    assert written is not None
    try:
        write_image(written, options.output, CARD_TITLE if options.input is None else None)
    except (OSError, ValueError) as error:
        print(f"error: cannot write the output: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
