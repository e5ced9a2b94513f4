"""The core shared by every seedloop method. See CONTRIBUTING.md for the map.

Importing this package imports nothing else: `run.py --help` must answer before jax is loaded. No import and no
call changes a process-wide setting of jax or flax, so that a notebook's own models go on as before;
`common.runtime.enable_compile_cache` is the one exception, and is called by choice alone.
"""

VERSION = "0.2.0"
