"""Few static shapes: sizes are rounded up, mostly to {1, 1.5} times a power of two, so that little compiles."""

import itertools
from collections.abc import Sequence

PREFIX = 16
"""What prompts begin with is read once for all of them in multiples of so many tokens."""
SLOTS, MANY_SLOTS, FEW_SLOTS = 32, 128, 4
"""Samples that decode together: on CPU; on CPU where there are many, and on an accelerator, where a step takes
about as long for many as for one; the fewest on CPU, for the last ones."""
PREFILLED = 2**12
"""On CPU: tokens of prompts that are prefilled together, padding included, unless one prompt has more."""
SMALL_MODEL = 2_000_000
"""Parameters up to which to compile programs for more shapes takes longer than they spare."""
TURNED_MODEL = 250_000_000
"""Parameters up to which decoding on CPU has a copy of its weights of its own (`common.model.turned`), for as many
rows as a power of two."""
STREAMED_MODEL = 20_000_000
"""Parameters up to which two streams write samples on CPU, side by side (`common.streams`). The products of larger
ones keep two cores busy, and are faster with all rows together."""
LOGITS = {"cpu": 2**25, "accelerator": 2**28}
"""Logits that may exist at one time in training and scoring. On accelerators 1 GiB, or 2048 positions of a
vocabulary of 131,072; on CPU, where large products are no faster, an eighth."""
KEPT_LOGITS = {"cpu": 2**27, "accelerator": 2**28}
"""Logits of a preference loss up to which they are kept for its backward pass, where to recompute them would be a
fourth product beside three."""
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


def many_slots_up_to(parameters: int, token_bytes: int) -> int:
    """On CPU: tokens of a prompt and its answer up to which `MANY_SLOTS` samples decode together, with a cache of
    `token_bytes` a token: as many as take about a gigabyte if all are that long; 0 where they never do."""
    return 0 if parameters <= SMALL_MODEL else int(1.1e9 / (MANY_SLOTS * token_bytes))


def turns(parameters: int, rows: int = 1) -> bool:
    """Whether decoding so many rows on CPU has such a copy. Turned products come in tiles of up to 64 rows: of 100
    they take longer than of 128, and than products that are not turned."""
    return SMALL_MODEL < parameters <= TURNED_MODEL and rows == power_of_two(rows)
