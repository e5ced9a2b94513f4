"""From a tensor of a file to an array of ours and back, by the rules of `common.model.names`.

Of a `common.model.tensors.Tensor` only what is asked for is read.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from common.model.names import Rows, Rule
from common.model.sharding import fetch
from common.model.tensors import Tensor

Made = tuple[str, int, Callable[[np.dtype], np.ndarray]]
"""A tensor to be written: its name, how many numbers it has, and what makes it in a dtype."""


def _read_rows(tensor: Tensor, rows: Rows, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
    """The part `index` of the rows that are ours."""
    axis, width, start, stop = rows
    before, of_rows, behind = index[:axis], index[axis], index[axis + 1 :]
    if width == tensor.shape[axis]:  # one after another: no others are read
        first, last, _ = of_rows.indices(stop - start)
        return tensor.read((*before, slice(start + first, start + last), *behind), dtype)
    whole = tensor.read((*before, slice(0, tensor.shape[axis]), *behind), dtype)
    own = whole.reshape(*whole.shape[:axis], -1, width, *whole.shape[axis + 1 :])
    own = own[(*(slice(None),) * (axis + 1), slice(start, stop))].reshape(
        *whole.shape[:axis], -1, *whole.shape[axis + 1 :]
    )
    return own[(*(slice(None),) * axis, of_rows)]


def one_of(rule: Rule) -> Rule:
    """The rule of one of the tensors that `rule`, with {} in its name, stands for."""
    return rule._replace(ours=rule.ours.split(" ", 1)[1])


def stored_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the whole tensor in the file, for `shape` of ours."""
    theirs = list(_their_shape(rule, shape))
    if rule.rows:
        axis, width, start, stop = rule.rows
        theirs[axis] = theirs[axis] // (stop - start) * width
    return tuple(theirs)


def _their_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = dict(zip(rule.ours.split(), shape, strict=True))
    return tuple(math.prod(sizes[letter] for letter in group) for group in rule.theirs.split())


def read(
    tensors: Sequence[Tensor], rule: Rule, shape: tuple[int, ...], index: tuple[slice, ...], dtype: Any
) -> np.ndarray:
    """The part `index` of an array of our `shape`, as `dtype`, from its tensor or those that `rule` stands for."""
    if "{}" in rule.name:
        one = one_of(rule)
        return np.stack([_read(tensor, one, shape[1:], index[1:], dtype) for tensor in tensors[index[0]]])
    return _read(tensors[0], rule, shape, index, dtype)


def _read(tensor: Tensor, rule: Rule, shape: tuple[int, ...], index: tuple[slice, ...], dtype: Any) -> np.ndarray:
    """Of merged dimensions the outermost alone is cut in the file."""
    letters = rule.ours.split()
    sizes = dict(zip(letters, shape, strict=True))
    cuts = dict(zip(letters, (slice(*i.indices(n)) for i, n in zip(index, shape, strict=True)), strict=True))
    on_disk, view = [], []
    for outer, *inner in rule.theirs.split():
        cut, stride = cuts[outer], math.prod(sizes[letter] for letter in inner)
        on_disk.append(slice(cut.start * stride, cut.stop * stride))
        view += [cut.stop - cut.start, *(sizes[letter] for letter in inner)]
        cuts[outer] = slice(None)
    order = [rule.theirs.replace(" ", "").index(letter) for letter in letters]
    cut_out = tuple(on_disk)
    found = _read_rows(tensor, rule.rows, cut_out, dtype) if rule.rows else tensor.read(cut_out, dtype)
    array = found.reshape(view).transpose(order)
    return array[tuple(cuts[letter] for letter in letters)]


def to_write(pairs: Iterable[tuple[Rule, Any]]) -> Iterator[Made]:
    """The tensors of a file that rules and arrays of ours make up. Nothing is copied before it is made."""
    shared: dict[str, list[tuple[Rule, Any]]] = {}
    for rule, leaf in pairs:
        if "{}" in rule.name:
            for i in range(leaf.shape[0]):
                name, one = rule.name.format(i), one_of(rule)
                yield (
                    name,
                    leaf.size // leaf.shape[0],
                    lambda dtype, r=one, x=leaf, i=i: _to_theirs(r, x[i], dtype),
                )
        elif rule.rows:
            shared.setdefault(rule.name, []).append((rule, leaf))
            parts = shared[rule.name]
            if sum(part.rows.stop - part.rows.start for part, _ in parts if part.rows) == rule.rows.width:
                size = sum(leaf.size for _, leaf in parts)
                yield rule.name, size, lambda dtype, parts=parts: _joined(parts, dtype)
        else:
            yield rule.name, leaf.size, lambda dtype, r=rule, x=leaf: _to_theirs(r, x, dtype)


def _joined(parts: list[tuple[Rule, Any]], dtype: np.dtype) -> np.ndarray:
    rule, leaf = parts[0]
    assert rule.rows
    whole = np.empty(stored_shape(rule, leaf.shape), dtype)
    for part, array in parts:
        assert part.rows
        axis, width, start, stop = part.rows
        groups = whole.reshape(*whole.shape[:axis], -1, width, *whole.shape[axis + 1 :])
        own = groups[(*(slice(None),) * (axis + 1), slice(start, stop))]
        own[...] = _to_theirs(part, array, dtype).reshape(own.shape)
    return whole


def _to_theirs(rule: Rule, leaf: Any, dtype: np.dtype) -> np.ndarray:
    array = fetch(leaf)
    order = [rule.ours.split().index(letter) for letter in rule.theirs.replace(" ", "")]
    theirs = array.transpose(order).reshape(_their_shape(rule, array.shape))
    return np.ascontiguousarray(theirs, dtype=dtype)
