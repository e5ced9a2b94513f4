"""Few static shapes: sizes are rounded up to {1, 1.5} times a power of two, so that little compiles."""

import itertools


def bucket(size: int, smallest: int = 32) -> int:
    """The smallest of 32, 48, 64, 96, 128, 192 … that is at least `size`; at most a third is padding."""
    for power in itertools.count():
        for step in (smallest << power, (smallest << power) * 3 // 2):
            if size <= step:
                return step
    raise AssertionError("unreachable")


def power_of_two(size: int, smallest: int = 1) -> int:
    """The smallest power of two that is at least `size` and `smallest`."""
    return max(smallest, 1 << max(0, size - 1).bit_length())
