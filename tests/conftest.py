import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: as the command line does

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("cartok", deadline=None)
settings.load_profile("cartok")
