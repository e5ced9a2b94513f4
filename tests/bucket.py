"""A stand-in for an object store: whole objects by name, put, read, listed and deleted; nothing else.

    fsspec.register_implementation("bucket", Bucket)

Objects lie in memory, shared by all instances of the process, as a store's do.
"""

import fsspec


class Cut(BaseException):
    """The process ends here, as far as the store can tell."""


class Bucket(fsspec.AbstractFileSystem):
    """`before` is called with every operation that changes something, and the name of the object; what it raises
    happens in place of the operation. No rename, no append, no folders."""

    protocol = "bucket"
    cachable = False
    objects: dict[str, bytes] = {}  # noqa: RUF012  (shared on purpose)
    before = staticmethod(lambda operation, name: None)

    def cat_file(self, path, start=None, end=None, **_):
        path = self._strip_protocol(path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def pipe_file(self, path, value, mode="overwrite", **_):
        path = self._strip_protocol(path)
        type(self).before("put", path)
        if mode == "create" and path in self.objects:
            raise OSError(412, "Precondition Failed")  # as in the words of no other store
        self.objects[path] = bytes(value)

    def put_file(self, lpath, rpath, **_):
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read())

    def get_file(self, rpath, lpath, **_):
        with open(lpath, "wb") as file:
            file.write(self.cat_file(rpath))

    def rm_file(self, path):
        path = self._strip_protocol(path)
        type(self).before("delete", path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        del self.objects[path]

    def find(self, path, **_):
        return sorted(name for name in self.objects if name.startswith(path.rstrip("/") + "/"))

    def _refused(self, *_, **__):
        raise NotImplementedError("an object store cannot do this")

    mv = mv_file = copy = cp_file = mkdir = makedirs = touch = _open = ls = info = _refused
