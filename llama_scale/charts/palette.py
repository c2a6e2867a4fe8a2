"""Colours by what they stand for, on light and on dark ground.

The first series colours follow Okabe and Ito (jfly.uni-koeln.de/color), which people with colour blindness tell
apart, darkened for light ground so that each stands out from its ground by a contrast of at least 3 to 1.
"""

from __future__ import annotations

LIGHT: dict[str, str] = {
    "surface": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#57606a",
    "grid": "#d8dee4",
    "warning": "#b42318",
    "idle": "#eaeef2",
    "series-1": "#0068a6",
    "series-2": "#b85c00",
    "series-3": "#00805f",
    "series-4": "#a84f85",
    "series-5": "#2f86c1",
    "series-6": "#8a7600",
    "series-7": "#5b4bb3",
    "series-8": "#6e6e6e",
    "series-9": "#c0392b",
    "series-10": "#0e8a93",
    "series-11": "#7d4a1e",
    "series-12": "#3d5a2a",
}
DARK: dict[str, str] = {
    "surface": "#14181d",
    "ink": "#e6edf3",
    "muted": "#9aa7b4",
    "grid": "#30363d",
    "warning": "#ff8a80",
    "idle": "#262c33",
    "series-1": "#4fa8e0",
    "series-2": "#f2994a",
    "series-3": "#2fbf93",
    "series-4": "#d98bbb",
    "series-5": "#8cc8f0",
    "series-6": "#d9c23a",
    "series-7": "#a79bf0",
    "series-8": "#a0a0a0",
    "series-9": "#ff8577",
    "series-10": "#3cc4ce",
    "series-11": "#c99a6b",
    "series-12": "#97bf7b",
}
ROLES = tuple(LIGHT)
SERIES = tuple(role for role in ROLES if role.startswith("series-"))


def series_role(index: int) -> str:
    """Return the colour of the index-th series; they repeat after twelve."""
    return SERIES[index % len(SERIES)]
