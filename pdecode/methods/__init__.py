"""Every method, by folder. A method is a function: models in, Decoder out.

A folder's `__init__` lists its methods and the named variants of them; a new folder is
one more line here.
"""

import importlib

from pdecode.methods.jacobi import *  # noqa: F403
from pdecode.methods.masked import *  # noqa: F403
from pdecode.methods.speculative import *  # noqa: F403
from pdecode.methods.uniform import *  # noqa: F403
from pdecode.methods.visual import *  # noqa: F403

GROUPS = ("masked", "speculative", "jacobi", "visual", "uniform")
_folders = [importlib.import_module(f"pdecode.methods.{group}") for group in GROUPS]
__all__ = sorted(name for folder in _folders for name in folder.__all__)
VARIANTS = {name: each for folder in _folders for name, each in folder.VARIANTS.items()}
