import os
import sys
import tempfile

if sys.dont_write_bytecode:  # else every process that a test starts compiles torch anew
    _BYTECODE = tempfile.TemporaryDirectory(prefix="bytecode-")  # gone when the tests are over
    sys.dont_write_bytecode, sys.pycache_prefix = False, _BYTECODE.name
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = _BYTECODE.name

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("cartok", deadline=None)
settings.load_profile("cartok")
