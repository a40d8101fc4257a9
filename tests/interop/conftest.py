import importlib.util
from pathlib import Path

import pytest

_PATH = Path(__file__).with_name("originals.py")
_SPEC = importlib.util.spec_from_file_location("originals", _PATH)
_ORIGINALS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_ORIGINALS)


@pytest.fixture(scope="session")
def originals():
    """The published networks, computed plainly from their named tensors."""
    return _ORIGINALS
