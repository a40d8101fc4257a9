import copy
import json
import math

import numpy as np
import pytest
from PIL import Image

ARMS = ("baseline", "causal")

RECEIPT = {
    "what": "gfd",
    "reference": "5b41c3f2a9d07e66",
    "reference_count": 1024,
    "generated_count": 576,
    "picture_size": [32, 32],
    "crop": "central square of the short side, resized",
    "size": 96,
    "network": "efficientnet-lite0",
    "network_sha256": "9f" * 32,
    "indicative": True,
    "evaluator": 1,
    "cartok": "0.1.0",
}

VALUES = {
    "tokenizer_steps": (350, 331, "steps"),
    "psnr_db": (22.418371, 22.301127, "dB"),
    "rfd": (14.2071234, 15.9312871, "squared feature distance"),
    "rkd": (0.0213377, 0.0251189, "squared mean discrepancy"),
    "code_usage": (1.0, 0.99609375, "share of codes"),
    "code_perplexity": (201.74423, 189.91117, "codes"),
    "next_latent_r2": (0.31871, 0.52914, "share of variance"),
    "probe_r2_quantised": (0.27442, 0.44951, "share of variance"),
    "next_latent_mse": (0.0742112, 0.0440123, "squared latent units"),
    "commitment_mse": (0.0171239, 0.0143398, "squared latent units"),
    "latent_variance": (0.1229811, 0.1100231, "squared latent units"),
    "prior_nats_per_token": (4.2134567, 3.9011234, "nats/token"),
    "prior_bits_per_image": (389.0412, 360.1993, "bits/image"),
    "gfd": (31.204871, 29.800112, "squared feature distance"),
    "floor": (9.4031127, 9.4031127, "squared feature distance"),
    "gkd": (0.0412983, 0.0398871, "squared mean discrepancy"),
    "floor_kd": (0.0104417, 0.0104417, "squared mean discrepancy"),
    "seconds": (148.71, 151.02, "s"),
}


def score(key, value, unit):
    receipt = {"split": "validation"}
    if key in ("rfd", "gfd", "floor"):
        spread = {"level": 0.9, "interval": [0.93 * value, 1.08 * value]}
        receipt = RECEIPT | {"metric": "fd_effnet64", "bootstrap": spread}
    if key in ("rkd", "gkd", "floor_kd"):
        receipt = RECEIPT | {"metric": "kd_effnet", "standard_error": 0.05 * value}
    return {"value": value, "unit": unit, "receipt": receipt}


SUMMARY = {
    "about": {
        "cartok": "0.1.0",
        "commit": "3f0c" * 10,
        "torch": "2.11.0",
        "device": "cpu: x86_64",
        "data": "photos",
        "seed": 0,
        "minutes": 5.0,
        "num_train": 5712,
        "num_val": 640,
        "classes": ["astronaut", "cat", "coffee", "flower", "galaxies"],
        "size": 32,
        "tokens": 64,
        "codebook": 256,
        "guidance": 1.5,
    },
    "baseline": {key: score(key, a, unit) for key, (a, _, unit) in VALUES.items()},
    "causal": {key: score(key, b, unit) for key, (_, b, unit) in VALUES.items()},
    "warnings": [],
    "seconds": {"value": 301.22, "unit": "s"},
}


def curve(start, end, steps, every=10):
    wave = [1 + 0.04 * math.sin(1.7 * i) for i in range(steps // every)]
    return [
        [every * (i + 1), (end + (start - end) * math.exp(-6 * i / len(wave))) * w]
        for i, w in enumerate(wave)
    ]


def tokenizer_record(arm):
    causal = arm == "causal"
    steps = 331 if causal else 350
    return {
        "kind": "tokenizer",
        "digest": "ab12" * 4,
        "steps": steps,
        "parameters": {"tokenizer": 412_371, "causal": 231_112},
        "flops": 3.1e13,
        "seconds": 92.5,
        "peak_memory_bytes": 912_261_120,
        "provenance": {"cartok": "0.1.0", "device": "cpu: x86_64"},
        "scores": {"reconstruction/psnr_db": {"value": 22.4, "unit": "dB"}},
        "curves": {
            "codec/pixel_l2": curve(0.4, 0.024, steps),
            "codec/perceptual": curve(1.2, 0.31, steps),
            "codec/commitment": curve(0.09, 0.014 if causal else 0.017, steps),
            "codec/causal": curve(0.13, 0.044 if causal else 0.08, steps),
            "codec/next_latent_mse": curve(0.13, 0.044 if causal else 0.08, steps),
            "codec/next_latent_r2": curve(0.01, 0.6 if causal else 0.3, steps),
            "codec/latent_variance": curve(0.09, 0.11, steps),
            "codec/batch_usage": curve(0.3, 0.96, steps),
            "gradient/tokenizer": curve(2.0, 0.4, steps),
            "rate/tokenizer": curve(1e-4, 2e-3, steps),
            "reconstruction/psnr_db": [[100, 19.1], [200, 21.0], [steps, 22.4]],
        },
    }


def prior_record(arm):
    causal = arm == "causal"
    nats = [
        4.9 - 0.6 * (i % 8 > 0) - 0.5 * (i // 8 > 0) - (0.002 * i + 0.2) * causal
        + 0.12 * math.sin(2.3 * i)
        for i in range(64)
    ]  # fmt: skip
    return {
        "kind": "prior",
        "digest": "cd34" * 4,
        "steps": 400,
        "parameters": {"attention": 800_000, "head": 200_000},
        "flops": 2.0e13,
        "seconds": 40.1,
        "peak_memory_bytes": 512_000_000,
        "grid": [8, 8],
        "nats_per_position": nats,
        "provenance": {"cartok": "0.1.0", "device": "cpu: x86_64"},
        "scores": {"validation/nats_per_token": {"value": 4.2, "unit": "nats/token"}},
        "curves": {
            "next_token/cross_entropy": curve(5.6, 3.8 if causal else 4.1, 400),
            "validation/nats_per_token": [[100, 4.9], [200, 4.4], [400, 4.0 if causal else 4.2]],
        },
    }


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def summary():
    return copy.deepcopy(SUMMARY)


@pytest.fixture
def summary_only(tmp_path):
    """A function: a demo's folder that holds a summary and nothing else."""

    def made(summary):
        save(tmp_path / "demo" / "summary.json", summary)
        return tmp_path / "demo"

    return made


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A demo's folder with a summary, four records and five pictures."""
    folder = tmp_path_factory.mktemp("demo")
    save(folder / "summary.json", SUMMARY)
    for arm in ARMS:
        save(folder / arm / "tokenizer" / "record.json", tokenizer_record(arm))
        save(folder / arm / "prior" / "record.json", prior_record(arm))
    (folder / "pictures").mkdir()
    pictures = ["inputs", *(f"{a}-{what}" for a in ARMS for what in ("reconstructions", "samples"))]
    for shade, name in enumerate(pictures):
        picture = Image.new("RGB", (20, 10), (50 * shade, 90, 120))
        picture.save(folder / "pictures" / f"{name}.png")
    return folder


@pytest.fixture
def make_runs(tmp_path):
    """A function: a folder with so many runs, each with a record."""

    def made(count):
        folder = tmp_path / "runs"
        for index in range(count):
            record = tokenizer_record("causal")
            kept = ("codec/pixel_l2", "gradient/tokenizer")
            record["curves"] = {name: record["curves"][name] for name in kept}
            save(folder / f"run-{index}" / "record.json", record)
        return folder

    return made


LENGTHS = (500, 1000, 2000, 4000, 8000)


def _grid_run(name, seed, size, parameters, steps, tokens, codes, scores):
    pictures = 256 * steps
    flops = 6.0 * parameters * pictures * tokens
    receipt = {
        "steps": steps, "pictures": pictures, "parameters": parameters, "codes": codes,
        "tokens_per_picture": tokens, "paper_flops": flops / 256, "joules": None,
        "seconds": flops / 1e13, "peak_memory_bytes": 3_000_000_000,
    }  # fmt: skip
    found = {"prior_flops": {"value": flops, "unit": "FLOPs", "receipt": receipt}}
    found |= {key: {"value": value, "unit": "", "receipt": {}} for key, value in scores.items()}
    prior = f"{size}-{steps}"
    return {
        "arm": f"{name}@{prior}", "seed": seed, "digest": f"{name}-{prior}-{seed}",
        "status": "finished", "reason": "", "scores": found,
        "provenance": {"device": "cuda: one GPU"},
    }  # fmt: skip


@pytest.fixture
def grid_study():
    """A function: a grid study drawn from gFDs as a function of (FLOPs, N, pictures), by arm.

    ``arms`` are name to (codes, tokens, rFD, gFD); ``sizes`` are priors by their parameters.
    """

    def made(arms, sizes=None, lengths=LENGTHS, seeds=2, noise=0.0):
        generator = np.random.default_rng(7)
        sizes = sizes or {"6x256": 6_000_000}
        runs = []
        for name, (codes, tokens, rfd, gfd_of) in arms.items():
            for seed in range(seeds):
                for size, parameters in sizes.items():
                    for steps in lengths:
                        flops = 6.0 * parameters * 256 * steps * tokens
                        wave = math.exp(noise * float(generator.standard_normal()))
                        gfd = gfd_of(flops, parameters, 256 * steps) * wave
                        bits = tokens * math.log2(codes) * (0.5 + (flops / 1e15) ** -0.1 / 9)
                        scores = {"rfd": rfd, "gfd": gfd, "prior_bits_per_image": bits}
                        runs.append(
                            _grid_run(name, seed, size, parameters, steps, tokens, codes, scores)
                        )
        config = [
            {"name": name, "pixels": 0, "tokenizer": {
                "data": "photos", "view": {"size": 32}, "loop": {"steps": 10},
                "model": {"quantizer": {"kind": "vq", "codebook_size": codes}},
                "causal": {"weight": 0.0}}}
            for name, (codes, *_) in arms.items()
        ]  # fmt: skip
        priors = [
            {"transformer": {"depth": int(size.split("x")[0]), "width": int(size.split("x")[1])},
             "loop": {"steps": steps, "batch": 256}}
            for size in sizes for steps in lengths
        ]  # fmt: skip
        names = dict.fromkeys(run["arm"] for run in runs)
        means = [
            {"name": name, "finished": seeds, "failures": [],
             "scores": next(run["scores"] for run in runs if run["arm"] == name)}
            for name in names
        ]  # fmt: skip
        return {
            "name": "grid", "config": {"name": "grid", "arms": config, "priors": priors,
            "apart": True}, "arms": means, "runs": runs, "earlier": [], "warnings": [],
            "provenance": {"device": "cuda: one GPU"},
        }  # fmt: skip

    return made
