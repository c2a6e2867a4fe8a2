"""How many examples a property test draws; profiles in ``conftest.py`` decide on the rest."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100


def examples(count: int) -> settings:
    """Return the settings of a slow property test: ``count`` examples where others draw 100, more in `make soak`."""
    return settings(max_examples=max(1, count * settings.default.max_examples // _USUAL))
