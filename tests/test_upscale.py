"""examples/upscale.py: what it writes, against analytic functions and Pillow; what it prints; what it refuses."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import load_program

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "upscale.py"
upscale = load_program(SCRIPT)


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upscale, "TIMING_SECONDS", 0.0)


def save(pixels: np.ndarray, path: Path) -> Path:
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(path)
    return path


def enlarge(source: Path, target: Path, *options: str) -> np.ndarray:
    """The pixels [H, W, 3] that the example writes on the CPU."""
    assert upscale.main([str(source), str(target), "--device", "cpu", *options]) == 0
    with Image.open(target) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(float)


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth shapes, an edge and noise, away from black and white, where a filter's overshoot would be clipped."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    shapes = 128 + 40 * np.sin(x / 5) * np.cos(y / 7) + 20 * (x + y > width)
    return (shapes[..., None] + generator.normal(0, 8, (height, width, 3))).clip(60, 200)


def test_photograph_from_a_shell(tmp_path: Path) -> None:
    source, target = save(photograph(30, 40), tmp_path / "in.png"), tmp_path / "out.png"
    command = [sys.executable, str(SCRIPT), str(source), str(target), "--scale", "4", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "40x30 to 160x120, lanczos" in done.stdout
    assert "device: CPU" in done.stdout
    for dtype in ("fp32", "fp16"):
        assert f"{dtype}: kernel aten" in done.stdout
        assert re.search(rf"{dtype}: [\d.]+ ms, PyTorch [\d.]+ ms; largest difference \d", done.stdout)
    assert Image.open(target).size == (160, 120)


def test_test_card_from_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "card.png", "--scale", "2", "--dtype", "fp32"]
    for _ in range(2):  # a test card may be written over a test card
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "test card: 320x240 to 640x480" in done.stdout
        assert "fp16" not in done.stdout
    with Image.open(tmp_path / "card.png") as image:
        assert image.size == (640, 480)
        assert len(image.getcolors(maxcolors=2**20) or []) > 100


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_and_cpu_write_the_same_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(photograph(30, 40), tmp_path / "in.png")
    on_cpu = enlarge(source, tmp_path / "cpu.png")
    capsys.readouterr()
    assert upscale.main([str(source), str(tmp_path / "gpu.png"), "--device", "cuda"]) == 0
    assert "aten" not in capsys.readouterr().out
    assert abs(np.asarray(Image.open(tmp_path / "gpu.png")).astype(float) - on_cpu).max() <= 1


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["lanczos", "mitchell"])
@pytest.mark.parametrize("scale", [2, 3, 4, 7])
def test_constant_image_stays_constant(tmp_path: Path, scale: int, name: str, dtype: str) -> None:
    colour = np.array([13.0, 130.0, 251.0])
    source = save(np.broadcast_to(colour, (5, 9, 3)), tmp_path / "in.png")
    pixels = enlarge(source, tmp_path / "out.png", "--scale", str(scale), "--filter", name, "--dtype", dtype)
    assert pixels.shape == (5 * scale, 9 * scale, 3)
    assert abs(pixels - colour).max() <= 1


@pytest.mark.parametrize("name", ["lanczos", "mitchell"])
@pytest.mark.parametrize("scale", [2, 3, 4, 5])
def test_smooth_image_follows_the_function(tmp_path: Path, scale: int, name: str) -> None:
    height, width = 40, 56

    def sample(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        y, x = rows[:, None], columns[None, :]
        channels = [np.sin(2 * math.pi * x / 40 + c) * np.cos(2 * math.pi * y / 30 - c) for c in range(3)]
        return 127.5 + 100 * np.stack(channels, axis=-1)

    source = save(sample(np.arange(height), np.arange(width)), tmp_path / "in.png")
    pixels = enlarge(source, tmp_path / "out.png", "--scale", str(scale), "--filter", name, "--dtype", "fp32")
    expected = sample((np.arange(height * scale) + 0.5) / scale - 0.5, (np.arange(width * scale) + 0.5) / scale - 0.5)
    inside = slice(3 * scale, -3 * scale)
    # Rounding of input and output, and what the filters do to a period of 30 pixels.
    assert abs(pixels - expected)[inside, inside].max() <= 2


def test_lanczos_agrees_with_pillow(tmp_path: Path) -> None:
    source = save(photograph(24, 32), tmp_path / "in.png")
    pixels = enlarge(source, tmp_path / "out.png", "--scale", "4", "--dtype", "fp32")
    expected = np.asarray(Image.open(source).resize((128, 96), Image.Resampling.LANCZOS)).astype(float)
    inside = slice(3 * 4, -3 * 4)  # Pillow drops what lies outside the image, the example repeats the border
    assert abs(pixels - expected)[inside, inside].max() <= 1


def test_borders_are_those_of_the_repeated_image(tmp_path: Path) -> None:
    image = photograph(10, 12)
    repeated = np.pad(image, ((6, 6), (6, 6), (0, 0)), mode="edge")
    pixels = enlarge(save(image, tmp_path / "in.png"), tmp_path / "out.png", "--scale", "3", "--dtype", "fp32")
    larger = enlarge(save(repeated, tmp_path / "in2.png"), tmp_path / "out2.png", "--scale", "3", "--dtype", "fp32")
    assert abs(larger[18:-18, 18:-18] - pixels).max() <= 1


@pytest.mark.parametrize("name", ["lanczos", "mitchell"])
@pytest.mark.parametrize("scale", range(2, 17))
def test_filter_taps_sum_to_one_in_every_phase_and_are_symmetric(name: str, scale: int) -> None:
    taps, origin = upscale.filter_taps(name, scale)
    for phase in range(scale):
        assert taps[phase::scale].sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(taps, taps.flip(0), rtol=0, atol=1e-12)
    assert len(taps) - scale == 2 * origin  # what makes the output exactly `scale` times as large


def test_one_pixel_becomes_a_square(tmp_path: Path) -> None:
    source = save(np.full((1, 1, 3), 77.0), tmp_path / "in.png")
    pixels = enlarge(source, tmp_path / "out.png", "--scale", "16", "--dtype", "fp32")
    assert pixels.shape == (16, 16, 3)
    assert abs(pixels - 77).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_other_colour_modes_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(tmp_path / "in.png")
    pixels = enlarge(tmp_path / "in.png", tmp_path / "out.png", "--scale", "2", "--dtype", "fp32")
    assert pixels.shape == (8, 12, 3)
    assert abs(pixels - 255).max() <= 1


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the first row is the right-hand side
    Image.new("RGB", (6, 4)).save(tmp_path / "in.jpg", exif=exif)
    assert enlarge(tmp_path / "in.jpg", tmp_path / "out.png", "--scale", "2", "--dtype", "fp32").shape == (12, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: output"),
        (["in.png", "out.png", "--scale", "1"], "--scale must be 2 to 16, got 1"),
        (["in.png", "out.png", "--scale", "17"], "--scale must be 2 to 16, got 17"),
        (["in.png", "out.png", "--scale", "two"], "argument --scale: invalid int value: 'two'"),
        (["in.png", "out.png", "--filter", "box"], "argument --filter: invalid choice"),
        (["in.png", "out.png", "--dtype", "fp8"], "argument --dtype: invalid choice"),
        (["in.png", "out"], "output must end in .png or another type that Pillow writes, got out"),
        (["in.png", "out.txt"], "output must end in .png"),
        (["in.png", "nowhere/out.png"], "output must be in a folder that exists, got nowhere/out.png"),
        (["in.png"], "in.png exists and is not an earlier test card"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = save(photograph(4, 4), tmp_path / "in.png").read_bytes()
    with pytest.raises(SystemExit) as exit_info:
        upscale.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]
    assert (tmp_path / "in.png").read_bytes() == before


def test_a_missing_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        upscale.main([str(tmp_path / "out.png"), "--device", "cuda"])
    assert "--device cuda: torch sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"), [("missing.png", "No such file"), ("text.png", "is no picture"), (".", "Is a directory")]
)
def test_unreadable_inputs_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    assert upscale.main([str(tmp_path / name), str(tmp_path / "out.png")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot read the input: ")
    assert message in error
    assert not (tmp_path / "out.png").exists()


def test_truncated_input_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = save(photograph(64, 64), tmp_path / "in.png").read_bytes()
    (tmp_path / "in.png").write_bytes(whole[: len(whole) // 2])
    assert upscale.main([str(tmp_path / "in.png"), str(tmp_path / "out.png")]) == 1
    assert "cannot read the input" in capsys.readouterr().err


def test_unwritable_output_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(photograph(4, 4), tmp_path / "in.png")
    (tmp_path / "out.png").mkdir()
    arguments = [str(source), str(tmp_path / "out.png"), "--scale", "2", "--dtype", "fp32", "--device", "cpu"]
    assert upscale.main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: cannot write the output: ")
