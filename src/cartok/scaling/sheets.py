"""Sheets of small pictures that lie beside records, as data addresses: a page is one file."""

import base64
from pathlib import Path
from typing import Any

DEMO = {
    "Held-out pictures": {
        "inputs": "as they went in",
        "baseline-reconstructions": "baseline: through its tokens and back",
        "causal-reconstructions": "causal: through its tokens and back",
    },
    "Samples": {
        "baseline-samples": "baseline: drawn by its prior",
        "causal-samples": "causal: drawn by its prior",
    },
}
"""Files of a demo's ``pictures`` folder, by section, with what they show."""

_MOST = 12  # arms of a study that are shown


def embedded(path: Path) -> str:
    """A PNG as a data address."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def demo_sheets(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Those of a demo that are there, by section."""
    return {
        section: [
            {"name": name, "caption": caption, "source": embedded(folder / f"{name}.png")}
            for name, caption in files.items()
            if (folder / f"{name}.png").is_file()
        ]
        for section, files in DEMO.items()
    }


def study_sheets(study: dict[str, Any], folder: Path, prior: str = "") -> list[dict[str, str]]:
    """Samples of every arm's first seed that are there; of a grid, those of one prior."""
    config = study["config"]
    seed = config.get("first_seed", 0)
    found = []
    for arm in config["arms"][:_MOST]:
        run = f"{arm['name']}@{prior}" if prior else arm["name"]
        for path in sorted(folder.glob(f"{run}-s{seed}-*samples.png"))[-1:]:
            found.append({"caption": arm["name"], "source": embedded(path)})
    return found
