"""The sampler's kernels compile for a GPU that is not there, and are what they are meant to be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compiled_kernels.py")


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    pytest.importorskip("triton")
    cache = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    done = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, check=True, env=os.environ | cache
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("kernel", "early", "late"),
    [
        ("attention", 7, 13),  # position, angles and a tile of the cache; the projection's head
        ("gated", 15, 10),  # five parts of gate, up and gain; both rows
        ("added", 16, 28),  # fourteen parts, and what is there already of both rows; both rows
        ("normed", 10, 10),
    ],
)
def test_a_kernel_that_starts_early_fetches_what_it_can_and_no_more_before_it_waits(
    assembly, kernel, early, late
):
    before, after = assembly[kernel].split("griddepcontrol.wait")
    assert before.count("ld.global") == early
    assert after.count("ld.global") == late
    assert "griddepcontrol.launch_dependents" in after  # never sooner: see the module's words
    assert "st.global" not in before


def test_weights_are_read_sixteen_bytes_at_a_time(assembly):
    before, _ = assembly["normed"].split("griddepcontrol.wait")
    loads = [line for line in before.splitlines() if "ld.global" in line]
    assert len(loads) == 10  # five parts of a weight, and of the norm's
    assert all(".v4." in line for line in loads)


def test_a_draw_is_computed_in_float64(assembly):
    assert "fma.rn.f64" in assembly["draw"]
