#!/usr/bin/env python3
"""Draws the arena's images: shapes as signed distances, four samples each way per pixel.

    python3 assets/make.py

Needs nothing but Python. White parts are tinted by the game in a player's colour.
"""

import math
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).parent
SAMPLES = 4


def save(name, width, height, pixel):
    """Writes a PNG of `pixel(x, y)`, with x and y from -1 to 1, y up, giving straight RGBA from 0 to 1."""
    rows = bytearray()
    for row in range(height):
        rows.append(0)
        for column in range(width):
            red = green = blue = alpha = 0.0
            for sub in range(SAMPLES * SAMPLES):
                x = (column + (sub % SAMPLES + 0.5) / SAMPLES) / width * 2 - 1
                y = 1 - (row + (sub // SAMPLES + 0.5) / SAMPLES) / height * 2
                r, g, b, a = pixel(x, y)
                red, green, blue, alpha = red + r * a, green + g * a, blue + b * a, alpha + a
            cover = max(alpha, 1e-9)
            rows += bytes(byte(v) for v in (red / cover, green / cover, blue / cover, alpha / SAMPLES**2))

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(rows), 9)) + chunk(b"IEND", b"")
    (HERE / name).write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def byte(value):
    return int(min(max(value, 0.0), 1.0) * 255 + 0.5)


def mix(a, b, t):
    return tuple(u + (v - u) * t for u, v in zip(a, b))


def smooth(low, high, value):
    t = min(max((value - low) / (high - low), 0.0), 1.0)
    return t * t * (3 - 2 * t)


def polygon(points, x, y):
    """Signed distance to a polygon, negative inside (after Inigo Quilez)."""
    nearest, sign = 1e9, 1.0
    for (ax, ay), (bx, by) in zip(points, points[-1:] + points[:-1]):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        t = min(max((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0), 1.0)
        nearest = min(nearest, math.hypot(wx - ex * t, wy - ey * t))
        above, below, left = y >= ay, y < by, ex * wy > ey * wx
        if (above and below and left) or (not above and not below and not left):
            sign = -sign
    return sign * nearest


def mirrored(half):
    """A polygon from its upper half, listed from nose to tail."""
    return half + [(x, -y) for x, y in reversed(half)]


HULL = mirrored([(0.92, 0.03), (0.30, 0.20), (0.02, 0.30), (-0.42, 0.80), (-0.74, 0.84), (-0.58, 0.40), (-0.72, 0.16)])
WING = [(-0.08, 0.32), (-0.44, 0.72), (-0.60, 0.74), (-0.40, 0.34)]
CLEAR = (0.0, 0.0, 0.0, 0.0)


def hull(x, y):
    distance = polygon(HULL, x, y)
    if distance > 0.03:
        return CLEAR
    light = 0.5 + 0.5 * y
    metal = mix((0.13, 0.16, 0.23), (0.42, 0.48, 0.60), light * 0.55 + smooth(0.30, 0.0, abs(y)) * 0.35)
    metal = mix((0.05, 0.06, 0.10), metal, smooth(0.03, -0.07, distance))
    seam = min(abs(abs(y) - 0.17), abs(x + 0.30 + abs(y) * 0.25))
    return (*mix(metal, (0.06, 0.07, 0.11), 0.6 * smooth(0.016, 0.004, seam)), 1.0)


def trim(x, y):
    edge = smooth(0.05, 0.02, abs(polygon(HULL, x, y) + 0.015))
    wing = 0.85 * smooth(0.01, -0.02, polygon(WING, x, abs(y)))
    glass = math.hypot((x - 0.26) / 0.26, y / 0.105) - 1
    cockpit = smooth(0.05, -0.05, glass) * (0.75 + 0.25 * smooth(0.0, 0.1, y))
    return (1.0, 1.0, 1.0, max(edge, wing, cockpit))


def flame(x, y):
    """Points left; the hot end is on the right."""
    along = (1 - x) / 2
    width = 0.55 * (1 - along) ** 0.7 + 1e-6
    core = max(0.0, 1 - (y / width) ** 2) * (1 - along) ** 1.2
    return (1.0, 1.0, 1.0, core * smooth(1.0, 0.86, x))


def bullet(x, y):
    """A comet: head on the right, tail on the left."""
    head = math.hypot((x - 0.70) / 0.30, y / 0.55)
    along = min(max((0.75 - x) / 1.7, 0.0), 1.0)
    tail = max(0.0, 1 - (abs(y) / (0.5 * (1 - along) + 1e-6)) ** 1.5) * (1 - along) ** 2 * (1.0 if x < 0.75 else 0.0)
    return (1.0, 1.0, 1.0, min(1.0, smooth(1.0, 0.2, head) + 0.8 * tail))


def spark(x, y):
    return (1.0, 1.0, 1.0, max(0.0, 1 - math.hypot(x, y)) ** 2.2)


def ring(x, y):
    radius = math.hypot(x, y)
    return (1.0, 1.0, 1.0, smooth(0.62, 0.90, radius) * smooth(0.98, 0.90, radius))


def wall(x, y):
    """One tile of wall: a plate with a bevel and four rivets, lit from the top left."""
    inset = max(abs(x), abs(y))
    plate = mix((0.130, 0.160, 0.245), (0.185, 0.222, 0.325), 0.5 + 0.25 * (y - x))
    if inset > 0.90:
        lit = y > abs(x) or -x > abs(y)
        plate = mix(plate, (0.235, 0.280, 0.395) if lit else (0.055, 0.068, 0.110), 0.8)
    rivet = math.hypot(abs(x) - 0.68, abs(y) - 0.68)
    plate = mix(plate, (0.07, 0.085, 0.135), 0.8 * smooth(0.10, 0.07, rivet))
    groove = smooth(0.05, 0.02, abs(abs(x + y) - 0.28)) * smooth(0.60, 0.50, inset)
    return (*mix(plate, (0.085, 0.105, 0.165), 0.7 * groove), 1.0)


def edge(x, y):
    """A line of light along the bottom of its tile, which fades upwards; put on the sides of walls that face floor."""
    line = smooth(0.05, 0.0, abs(y + 0.96))
    glow = 0.30 * smooth(-0.35, -1.0, y)
    return (1.0, 1.0, 1.0, max(line, glow))


def floor(x, y):
    """Four by four units of floor."""
    base = mix((0.046, 0.060, 0.102), (0.058, 0.075, 0.126), 0.5 + 0.5 * math.sin(3 * x) * math.sin(3 * y))
    line = min(abs(x), abs(y), 1 - abs(x), 1 - abs(y))
    base = mix(base, (0.105, 0.137, 0.218), 0.8 * smooth(0.014, 0.004, line))
    cross = min(max(abs(x), abs(y) * 4), max(abs(x) * 4, abs(y)))
    return (*mix(base, (0.22, 0.30, 0.45), 0.85 * smooth(0.085, 0.065, cross)), 1.0)


def pad(x, y):
    """Where ships appear."""
    radius = math.hypot(x, y)
    dashes = 0.5 + 0.5 * math.copysign(1, math.sin(8 * math.atan2(y, x)))
    rim = smooth(0.05, 0.03, abs(radius - 0.90))
    inner = smooth(0.07, 0.05, abs(radius - 0.72)) * dashes
    return (1.0, 1.0, 1.0, max(rim, 0.7 * inner, 0.12 * smooth(0.92, 0.90, radius)))


def debris(x, y):
    angle = math.atan2(y, x)
    edge = 0.72 + 0.10 * math.sin(3 * angle + 1) + 0.06 * math.sin(7 * angle)
    radius = math.hypot(x, y)
    rock = mix((0.10, 0.12, 0.18), (0.30, 0.33, 0.42), 0.5 + 0.4 * (y - x))
    return (*rock, smooth(edge, edge - 0.08, radius))


def crosshair(x, y):
    radius = math.hypot(x, y)
    circle = smooth(0.08, 0.04, abs(radius - 0.55))
    tick = smooth(0.07, 0.04, min(abs(x), abs(y))) * smooth(0.40, 0.45, radius) * smooth(0.95, 0.90, radius)
    return (1.0, 1.0, 1.0, max(circle, tick, smooth(0.12, 0.07, radius)))


def vignette(x, y):
    return (0.0, 0.005, 0.02, 0.62 * smooth(0.70, 1.45, math.hypot(x, y * 0.92)))


def main():
    save("hull.png", 128, 128, hull)
    save("trim.png", 128, 128, trim)
    save("flame.png", 64, 32, flame)
    save("bullet.png", 96, 32, bullet)
    save("spark.png", 64, 64, spark)
    save("ring.png", 128, 128, ring)
    save("wall.png", 96, 96, wall)
    save("edge.png", 96, 96, edge)
    save("floor.png", 192, 192, floor)
    save("pad.png", 128, 128, pad)
    save("debris.png", 32, 32, debris)
    save("crosshair.png", 64, 64, crosshair)
    save("vignette.png", 160, 90, vignette)


if __name__ == "__main__":
    main()
