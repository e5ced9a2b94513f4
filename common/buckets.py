"""Few static shapes: sizes are rounded up, mostly to {1, 1.5} times a power of two, so that little compiles."""

import itertools
from collections.abc import Sequence

PREFIX = 16
"""What prompts begin with is read once for all of them in multiples of so many tokens."""
SHORT_ANSWER = 32
"""New tokens up to which more samples decode together on CPU: with little to read of the cache, a step takes less
for each of many rows than for each of few. Longer ones read as far as the longest of them."""
SHORTEST = 64
"""Smallest padded length in training: a program for shorter rows would take longer to compile than it saves."""


def bucket(size: int, smallest: int = 32) -> int:
    """The smallest of 32, 48, 64, 96, 128, 192 … that is at least `size`; at most a third is padding."""
    for power in itertools.count():
        for step in (smallest << power, (smallest << power) * 3 // 2):
            if size <= step:
                return step
    raise AssertionError("unreachable")


def finer(size: int, smallest: int = 32) -> int:
    """The smallest of 32, 64, 96, 128, then 160 … 256, 320 … 512, 640 … that is at least `size` and `smallest`:
    multiples of 32 and of a quarter of a power of two. For what is computed often enough to be worth more
    programs."""
    size = max(size, smallest)
    step = max(32, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // step) * step


def power_of_two(size: int, smallest: int = 1) -> int:
    """The smallest power of two that is at least `size` and `smallest`."""
    return max(smallest, 1 << max(0, size - 1).bit_length())


def slots_for(new_tokens: int, accelerator: bool) -> int:
    """How many samples of at most so many new tokens decode together: on an accelerator many, where a step takes
    about as long for many rows as for one."""
    return 128 if accelerator or new_tokens <= SHORT_ANSWER else 32


def prompts_at_once(slots: int, length: int, accelerator: bool) -> int:
    """How many prompts of so many tokens are read in one call, for so many slots: enough to keep the processor
    busy, and not so many that what is computed on the way takes more memory than it is worth."""
    tokens = 2**14 if accelerator else 2**10
    fitting = 1 << max(0, (tokens // max(length, 1)).bit_length() - 1)
    return min(max(1, slots // 4), max(8, fitting))


def beginning(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """The tokens that all prompts begin with, such as a task's instruction, as far as they are worth programs of
    their own. Something of every prompt is left."""
    if len(prompts) < 2:
        return ()
    same = max(0, min(in_common(prompts), min(map(len, prompts)) - 1))
    return tuple(prompts[0][: same - same % PREFIX])


def in_common(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of one or more texts begin with."""
    # In the order of a dictionary: these two differ first.
    first, last = min(map(tuple, texts)), max(map(tuple, texts))
    most = min(len(first), len(last))
    return next((i for i in range(most) if first[i] != last[i]), most)
