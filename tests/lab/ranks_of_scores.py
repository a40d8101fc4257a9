"""Two ranks score pictures by the command line, each call's output and exit code in a file.

Called with a folder that holds ``calls.json``, the arguments of each call by its name. Inception
and LPIPS are the small ones of the tests of scoring; what they see takes the same functions.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from scoring_toys import SmallInception, SmallLpips
from torch import nn

from cartok.__main__ import main
from cartok.core.parallel import World
from cartok.core.progress import unseen
from cartok.frozen import Lite0Features, Weights
from cartok.lab import scoring
from cartok.metrics.sides import effnet_extractor
from cartok.metrics.streaming import share_of

sys.path.append(str(Path(__file__).parents[1]))
from ranks import fork

RANKS = 2


class SmallJudge(Lite0Features):
    """Of the offline judge's interface: the mean of each channel."""

    def __init__(self):
        nn.Module.__init__(self)
        self.weights, self.size = Weights("small", "file", "abc123", ""), 8
        self.head = nn.Conv2d(1, 3, 1)

    def forward(self, image):
        return image.mean((2, 3))


def judged(count: int, world: World) -> dict:
    """What the side of so many pictures is, each rank seeing its share."""
    pixels = torch.arange(count * 3 * 64).reshape(count, 3, 8, 8).to(torch.uint8)
    share = share_of(count, world)
    mine = pixels[share.start : share.stop].split(2) if share else []
    side = effnet_extractor(SmallJudge(), "float32").side_of(mine, None, world, unseen)
    return {"rows": side.rows["pool"].tolist(), "hash": side.hash, "count": side.count,
            "size": side.picture_size}  # fmt: skip


def rank(folder: Path) -> None:
    scoring.frozen.inception = lambda path=None: SmallInception()
    scoring.frozen.teacher = lambda name, *paths: SmallLpips()
    scoring.default_folder = lambda: folder / "kept"
    calls = json.loads((folder / "calls.json").read_text())
    world = World.join("cpu")
    World.leave = lambda world: None  # one meeting is for all calls
    said = {}
    for name, arguments in calls.items():
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
        said[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    said["judged"] = [judged(count, world) for count in (7, 1)]
    (folder / f"{world.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(any(fork(RANKS, lambda: rank(Path(sys.argv[1])))))
