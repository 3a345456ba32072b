"""
Pictures of shapes: everything that the model has seen, and the sample, are drawn here.

`python render.py` draws ../sample.jpg.
"""

import io
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

LABELS = ("circle", "cross", "square", "star", "triangle")
FINER = 4
"""Shapes are drawn so many times larger and then made smaller, which smooths their edges."""
SAMPLE_SIZE = (320, 240)
SAMPLE_SEED = 11


def picture(label: str, chance: random.Random, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """
    Draw a shape of random colour, size, place and angle on a background that it stands out from.

    Args:
        label: one of `LABELS`.
        chance: decides everything; the same state draws the same picture.
        size: width and height in pixels.
    """
    ground = _colour(chance)
    shape = _colour(chance)
    while sum(abs(a - b) for a, b in zip(ground, shape, strict=True)) < 150:
        shape = _colour(chance)
    canvas = Image.new("RGB", (size[0] * FINER, size[1] * FINER), ground)
    draw = ImageDraw.Draw(canvas)
    _clutter(draw, canvas.size, ground, chance)
    room = min(canvas.size)
    radius = room * chance.uniform(0.2, 0.42)
    centre = tuple(side / 2 + chance.uniform(-0.5, 0.5) * (room - 2 * radius) for side in canvas.size)
    if label == "circle":
        draw.ellipse([centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius], fill=shape)
    else:
        turn = chance.uniform(0, 2 * math.pi)
        draw.polygon([_turned(point, turn, radius, centre) for point in _OUTLINES[label]], fill=shape)
    drawn = canvas.resize(size, Image.Resampling.LANCZOS)
    if chance.random() < 0.3:
        drawn = drawn.filter(ImageFilter.GaussianBlur(chance.uniform(0.3, 1.0) * min(size) / 64))
    if chance.random() < 0.5:
        grain = np.random.default_rng(chance.getrandbits(32)).normal(0, chance.uniform(0, 15), (size[1], size[0], 1))
        drawn = Image.fromarray((np.asarray(drawn) + grain).clip(0, 255).astype(np.uint8))
    return drawn


def jpeg(image: Image.Image, chance: random.Random) -> bytes:
    """Compress a picture, well or badly."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=chance.randint(50, 95))
    return file.getvalue()


def _regular(corners: int, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular shape of radius 1; with `inner`, of a star whose inner corners are that far out."""
    radii = [1.0] if inner is None else [1.0, inner]
    count = corners * len(radii)
    angles = [2 * math.pi * number / count for number in range(count)]
    return [
        (radii[number % len(radii)] * math.cos(angle), radii[number % len(radii)] * math.sin(angle))
        for number, angle in enumerate(angles)
    ]


_ARM = 0.3
_END = 0.95
_OUTLINES = {
    "cross": [
        *((_ARM, _END), (_ARM, _ARM), (_END, _ARM), (_END, -_ARM), (_ARM, -_ARM), (_ARM, -_END)),
        *((-_ARM, -_END), (-_ARM, -_ARM), (-_END, -_ARM), (-_END, _ARM), (-_ARM, _ARM), (-_ARM, _END)),
    ],
    "square": _regular(4),
    "star": _regular(5, inner=0.4),
    "triangle": _regular(3),
}


def _turned(point: tuple[float, float], turn: float, radius: float, centre: tuple[float, ...]) -> tuple[float, float]:
    x, y = point
    return (
        centre[0] + radius * (x * math.cos(turn) - y * math.sin(turn)),
        centre[1] + radius * (x * math.sin(turn) + y * math.cos(turn)),
    )


def _clutter(draw: ImageDraw.ImageDraw, size: tuple[int, int], ground: tuple[int, ...], chance: random.Random) -> None:
    """Thin lines in colours close to the background's, which are no shape."""
    for _ in range(chance.randint(0, 6)):
        near = tuple(max(0, min(255, part + chance.randint(-40, 40))) for part in ground)
        ends = [(chance.uniform(0, size[0]), chance.uniform(0, size[1])) for _ in range(2)]
        draw.line(ends, fill=near, width=max(1, round(min(size) * chance.uniform(0.01, 0.04))))


def _colour(chance: random.Random) -> tuple[int, ...]:
    return tuple(chance.randrange(256) for _ in range(3))


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "sample.jpg"
    picture("star", random.Random(SAMPLE_SEED), SAMPLE_SIZE).save(target, "JPEG", quality=85)
    print(f"{target.name}: a star, {target.stat().st_size} bytes")
