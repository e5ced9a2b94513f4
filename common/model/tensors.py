"""The tensors of a checkpoint's folder by their names in Hugging Face's files, whatever the files are: safetensors
(one or several), GGUF, and either of them with an adapter on top.

    tensors = open_tensors(folder)                            # see `common.model.checkpoint.resolve`
    tensors["model.norm.weight"].read((slice(None),), np.float32)

Nothing is read but what is asked for, when it is asked for, and straight into the dtype that is asked for.
"""

import json
import math
import pathlib
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from common.errors import UserError, in_one_line
from common.mapping import read_object
from common.model import peft
from common.model.checkpoint import LINKED_ADAPTER, weight_files

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
OVERFLOWN = "the training gave NaN or infinity in {}: lower the learning rate; what was stored before it is kept"
_ELEMENTS = 2**22
"""Elements that are read, or that an adapter is added to, at once: 16 MB in float32."""


@runtime_checkable
class Tensor(Protocol):
    """A tensor in a file. `kind`: the file's word for how its numbers are kept. `dtype`: the one that holds them
    as they are; None where no other than theirs does, and they cannot be read."""

    file: pathlib.Path
    shape: tuple[int, ...]
    kind: str
    dtype: np.dtype | None

    def read(self, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """The part `index`, one slice for each dimension, as `dtype`."""
        ...


def open_tensors(folder: pathlib.Path) -> dict[str, Tensor]:
    """Every tensor of a folder. Raises UserError, naming the file, when one is missing, truncated, pickled or not
    understood."""
    tensors = _open_base(folder)
    config, weights = (folder / name for name in LINKED_ADAPTER)
    if not config.exists():
        return tensors
    adapter = peft.read(config.resolve(), weights.resolve(), _family(folder / "config.json"))
    for module, factors in adapter.items():
        # The second where the base was saved without its head, by the names of the model inside.
        names = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
        name = next((name for name in names if name in tensors), None)
        if name is None:
            raise UserError(f"{config.resolve().parent} does not fit the model, which has no {module}")
        tensors[name] = _Adapted(tensors[name], factors)
    return tensors


def finite(array: np.ndarray, otherwise: str) -> np.ndarray:
    """`array` as it is. Raises UserError with the message `otherwise` for NaN and infinity in it."""
    # A sum, as a mask of all of it would take memory; it is finite only where all of it is, or overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(np.sum(array, dtype=np.float32)) and not np.isfinite(array).all():
            raise UserError(otherwise)
    return array


def _open_base(folder: pathlib.Path) -> dict[str, Tensor]:
    if files := weight_files(folder):
        tensors = {}
        for file in files:
            tensors |= _open_safetensors(file)
        return tensors
    files = sorted(folder.glob("*.gguf"))
    if files:
        from common.model import gguf

        return dict(gguf.open_tensors(gguf.read(files[0])))
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise UserError(f"{folder} holds pickled weights only: save them as safetensors, the form read here")
    raise UserError(f"{folder} holds no model.safetensors")


def _family(file: pathlib.Path) -> str:
    return str(read_object(file).get("model_type"))


def _open_safetensors(file: pathlib.Path) -> dict[str, Tensor]:
    try:
        opened = safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is truncated or not a safetensors file ({in_one_line(error)}): fetch it again"
        ) from None
    with file.open("rb") as data:
        size = int.from_bytes(data.read(8), "little")
        header = json.loads(data.read(size))
    places = {name: 8 + size + header[name]["data_offsets"][0] for name in opened.keys()}  # noqa: SIM118
    return {name: _Safetensor(file, place, opened.get_slice(name)) for name, place in places.items()}


class _Safetensor:
    """Read from the file and not by its mapping into memory: what was looked at of that would count as used by the
    process, in the end the whole model, however small the part that its devices want."""

    def __init__(self, file: pathlib.Path, place: int, stored: Any):
        self.file, self.shape, self.kind = file, tuple(stored.get_shape()), stored.get_dtype()
        self.dtype = DTYPES.get(self.kind)
        self._place = place

    def read(self, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
        assert self.dtype is not None, "of another dtype nothing is read"
        rows, *rest = (slice(*cut.indices(size)) for cut, size in zip(index, self.shape, strict=True))
        width = math.prod(self.shape[1:])
        out = np.empty([cut.stop - cut.start for cut in (rows, *rest)], dtype)
        step = max(1, _ELEMENTS // max(1, width))
        with self.file.open("rb") as data:
            data.seek(self._place + rows.start * width * self.dtype.itemsize)
            for at in range(0, len(out), step):
                count = min(step, len(out) - at)
                block = np.fromfile(data, self.dtype, count * width).reshape(count, *self.shape[1:])
                out[at : at + count] = block[(slice(None), *rest)]
        return out


class _Adapted:
    """A matrix with an adapter merged into it: in float32, whatever the dtypes of both."""

    def __init__(self, base: Tensor, factors: peft.Factors):
        if base.shape != factors.shape:
            raise UserError(
                f"{factors.file} does not fit the model: an adapter of shape {factors.shape} beside a matrix of "
                f"{base.shape} in {base.file}"
            )
        self.file, self.shape, self.kind, self.dtype = base.file, base.shape, base.kind, base.dtype
        self._base, self._factors = base, factors

    def read(self, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
        rows, columns = (range(*cut.indices(size)) for cut, size in zip(index, self.shape, strict=True))
        out = np.empty((len(rows), len(columns)), dtype)
        step = max(1, _ELEMENTS // max(1, len(columns)))
        for at in range(0, len(rows), step):
            part = (slice(rows[at], rows[at] + min(step, len(rows) - at)), slice(columns.start, columns.stop))
            out[at : at + step] = self._base.read(part, np.float32) + self._factors.product(*part)
        return out
