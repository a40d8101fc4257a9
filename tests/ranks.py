"""Ranks for tests, as torchrun would start them, forked from a process that has imported torch.

Scripts of tests import it; the folder that it lies in is one above theirs.
"""

import os
import socket
import sys
from collections.abc import Callable


def fork(ranks: int, action: Callable[[], None]) -> list[int]:
    """Does an action in so many processes, and says how each ended; 2 is after an error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        if child := os.fork():
            children.append(child)
            continue
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        try:
            action()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(2)
        os._exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
