"""Weights in memory: read when they are first used, once for all who use the same folder, and let go of by
`release`.

    base = Weights.of(folder, config, dtype, mesh)            # nothing is read yet
    params = base()                                           # read now, or there already
    release()                                                 # whoever calls next reads them again

So proposer, target, labeler and teacher that are one folder are one set of arrays, and what is idle while a model
is trained takes no memory.
"""

import pathlib
import threading
import weakref
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jax.sharding import Mesh

from common.config import ModelConfig
from common.model import hf
from common.model.checkpoint import fingerprint
from common.model.decoder import Params
from common.model.sharding import mesh_of


class Weights:
    """Parameters by calling it. `mesh`: where they lie. `folder`: where they are from, None if in memory alone."""

    def __init__(self, read: Callable[[], Params], mesh: Mesh | None, folder: pathlib.Path | None = None):
        self._read, self.mesh, self.folder = read, mesh, folder
        self._params: Params | None = None
        self._reading = threading.Lock()

    @classmethod
    def of(cls, folder: pathlib.Path, config: ModelConfig, dtype: Any, mesh: Mesh | None = None) -> "Weights":
        """Those of a folder in `dtype`, the same object for as long as somebody holds it and the files stay."""
        key = folder.resolve(), fingerprint(folder), np.dtype(dtype), mesh
        found = _of_folders.get(key)
        if found is None:
            found = cls(lambda: hf.load_params(folder, config, dtype=dtype, mesh=mesh), mesh, folder)
            _of_folders[key] = found
        return found

    @classmethod
    def held(cls, params: Params) -> "Weights":
        """Those that are in memory alone, and stay there."""
        return cls(lambda: params, mesh_of(params))

    def __call__(self) -> Params:
        with self._reading:
            if self._params is None:
                self._params = self._read()
            return self._params


_of_folders: weakref.WeakValueDictionary[tuple, Weights] = weakref.WeakValueDictionary()


def release(keep: Collection[Weights] = ()) -> None:
    """Let go of all weights of folders but `keep`. Memory is free once nobody else holds the arrays."""
    for weights in list(_of_folders.values()):
        if all(weights is not other for other in keep):
            weights._params = None
