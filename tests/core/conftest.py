import importlib.util
import json
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

TOY_JOB = Path(__file__).with_name("toy_job.py")


@pytest.fixture(scope="session")
def toy():
    """The module of the toy job."""
    name = TOY_JOB.stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TOY_JOB)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def apart():
    """A function that does an errand in other processes and gives back their exit codes."""
    nursery = subprocess.Popen(
        [sys.executable, str(TOY_JOB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def apart(errand, ranks=1, call="train"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        asked = {"errand": asdict(errand) | {"call": call}, "ranks": ranks, "port": port}
        nursery.stdin.write(json.dumps(asked) + "\n")
        nursery.stdin.flush()
        return json.loads(nursery.stdout.readline())

    yield apart
    nursery.stdin.close()
    nursery.stdout.close()
    assert nursery.wait(timeout=30) == 0
