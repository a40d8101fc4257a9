"""Two ranks see pictures together, several times over; the main one leaves what came of it.

Called with a folder. What each rank says is compared with what one process sees.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_inception import TinyInception, pictures

from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.metrics import streaming

sys.path.append(str(Path(__file__).parents[1]))
from ranks import fork

RANKS = 2
COUNTS = (7, 8, 1)  # the last leaves a rank without pictures
KINDS = ("pool", "logits")


def seen(count: int, world: World, network: TinyInception, folder: Path | None = None):
    share = streaming.share_of(count, world)
    batches = [pictures(count)[at : min(at + 2, share.stop)] for at in share[::2]]
    return streaming.activations_of(batches, network, kinds=KINDS, folder=folder, world=world)


def refused(world: World) -> list[str]:
    """The last rank's pictures are of another size, or grey; both ranks must hear of it."""
    faulty = [pictures(2, size=8 + world.rank), pictures(2)[:, : 3 - 2 * world.rank]]
    heard = []
    for mine in faulty:
        try:
            streaming.activations_of(mine, TinyInception(), world=world)
        except UserError as error:
            heard.append(str(error))
    return heard


def rank(folder: Path) -> None:
    world = World.join("cpu")
    streaming.ROWS_AT_ONCE = 3  # so that a share is more than one part
    said, rows = {}, {}
    for count in COUNTS:
        found = seen(count, world, TinyInception())
        said[str(count)] = {"hash": found.hash, "name": found.key.pictures, "count": found.count}
        rows |= {f"{count}.{kind}": found.rows(kind).clone() for kind in KINDS}
        rows |= {f"{count}.mean": found.pool.mean, f"{count}.scatter": found.spatial.scatter}
    networks = [TinyInception() for _ in range(2)]
    kept = [seen(7, world, network, folder / "kept") for network in networks]
    said["seen"] = [network.pictures_seen for network in networks]
    rows |= {f"kept{number}.pool": found.rows("pool").clone() for number, found in enumerate(kept)}
    said["refused"] = refused(world)
    save_file(rows, folder / f"{world.rank}.safetensors")
    (folder / f"{world.rank}.json").write_text(json.dumps(said))
    world.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(any(fork(RANKS, lambda: rank(Path(sys.argv[1])))))
