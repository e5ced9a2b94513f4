"""The core shared by every seedloop method. See CONTRIBUTING.md for the map.

Importing this package imports nothing else: `run.py --help` must answer before jax is loaded. Modules that
compute import `common.runtime`, which sets the few global jax and flax switches once.
"""
