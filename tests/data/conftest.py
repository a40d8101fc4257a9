import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def _picture(seed: int, size=(32, 32)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def picture():
    """A function (seed, size) -> RGB noise."""
    return _picture


@pytest.fixture
def fill(tmp_path):
    """A function that fills a folder with one PNG a name, each of other noise."""

    def fill(folder, names, size=(32, 32)):
        for seed, name in enumerate(names):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _picture(seed + 1000 * len(folder), size).save(path)
        return tmp_path / folder

    return fill


@pytest.fixture
def two_classes(fill):
    """A folder of two classes of 20 pictures, without splits."""
    return fill("pets", [f"{name}/{i:02d}.png" for name in ("cat", "dog") for i in range(20)])


@pytest.fixture
def parquet(tmp_path):
    """A function that writes a parquet file in the Hugging Face layout, one picture a label."""

    def parquet(name, labels, names=None, seed=0):
        cells = []
        for number in range(len(labels)):
            buffer = io.BytesIO()
            _picture(seed + number).save(buffer, format="PNG")
            cells.append({"bytes": buffer.getvalue(), "path": f"{number}.png"})
        columns = {"image": cells}
        if any(label is not None for label in labels):
            columns["label"] = labels
        table = pa.table(columns)
        if names:
            label = {"names": names, "_type": "ClassLabel"}
            features = {"image": {"_type": "Image"}, "label": label}
            about = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": about})
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    return parquet
