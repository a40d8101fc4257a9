"""What is known of a study's runs: in their folders, in ``study.json``, and as one summary."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cartok.core.config import ConfigError, config_of, dict_of, digest_of, nearest
from cartok.core.errors import UserError
from cartok.core.files import read_json
from cartok.core.parallel import World
from cartok.core.run import first_difference, provenance
from cartok.lab.means import scored_unlike, warnings_of
from cartok.prior.train import PriorRun
from cartok.recipes.arms import StudyArm, StudyConfig, names_of
from cartok.scaling.laws_of_study import laws_of
from cartok.scaling.means import arm_means, arms_of_runs
from cartok.scaling.study_file import FILE, fault_of_run, read_study, write_study
from cartok.tokenizer.train import TokenizerRun


@dataclass(frozen=True)
class StudyRun:
    """One arm with one seed; of a study whose priors stand apart, with one prior."""

    arm: str
    """As in scores; with the prior's name behind an @ where priors stand apart."""
    seed: int
    tokenizer: TokenizerRun
    priors: tuple[PriorRun, ...]
    digest: str
    """Of all that decides its scores: it is never run twice in one folder."""
    pixels: int
    made_from: str
    """Names the tokenizer, which other runs may share."""
    tokens: str
    """Names its tokens and their scores, likewise: by pixels, number, and what scores them."""

    @property
    def title(self) -> str:
        """Short and unique within a study."""
        return f"{self.arm}-s{self.seed}"

    def folder(self, out: Path) -> Path:
        """Its folder in the study's."""
        return out / "arms" / f"{self.title}-{self.digest}"

    @property
    def work(self) -> int:
        """Guesses how long its priors take beside those of others: by steps, pixels and layers."""
        pixels = self.pixels or self.tokenizer.view.size
        layers = sum(prior.loop.steps * prior.transformer.depth for prior in self.priors)
        return pixels**2 * layers

    def shared(self, out: Path) -> dict[str, Path]:
        """Where its tokenizer lies, and the tokens of its size."""
        folder = out / "tokenizers" / self.made_from
        return {"tokenizer": folder / "tokenizer", "tokens": folder / self.tokens / "tokens"}


def runs_of(study: StudyConfig, arms: tuple[str, ...] = ()) -> list[StudyRun]:
    """Every arm with every seed, or some arms; all arms have one seed before any has two.

    ``arms`` are names of arms, whether or not their priors stand apart.

    Raises:
        UserError: the study has no arm of a name.
    """
    known = [arm.name for arm in study.arms]
    for name in arms:
        if name not in known:
            raise UserError(f"{study.name} has no arm '{name}'; {nearest(name, known)}")
    together: list[tuple[str, tuple[PriorRun, ...]]] = [("", study.priors)]
    if study.apart:
        named = zip(names_of(study.priors), study.priors, strict=True)
        together = [(f"@{name}", (prior,)) for name, prior in named]
    return [
        _run_of(study, arm, f"{arm.name}{suffix}", priors, seed)
        for seed in range(study.first_seed, study.first_seed + study.seeds)
        for arm in study.arms
        if not arms or arm.name in arms
        for suffix, priors in together
    ]


def pictures_seen(study: StudyConfig) -> int:
    """As many as its longest prior is shown; 0 for all there are, where priors stand apart.

    Such a study grows by longer ones, and its laws need one set of held-out pictures for all.
    """
    if study.apart:
        return 0
    return max(prior.loop.steps * prior.loop.batch for prior in study.priors)


def record_of(run: StudyRun, out: Path) -> dict[str, Any]:
    """What is recorded of a run: that it has finished, else that it failed, else that it waits.

    Its ``arm.json`` counts and what ``study.json`` holds, so that a study goes on from that file
    alone, wherever it was carried.
    """
    return records_of([run], out)[0]


def records_of(runs: list[StudyRun], out: Path) -> list[dict[str, Any]]:
    """What ``record_of`` says of each; what is on the disk is read once for all."""
    known = _records(out, _read(out))
    return [_record_among(known, run) for run in runs]


def _record_among(known: list[dict[str, Any]], run: StudyRun) -> dict[str, Any]:
    same = [record for record in known if record["digest"] == run.digest]
    for status in ("finished", "failed"):
        for record in same:
            if record["status"] == status:
                return record | {"arm": run.arm, "seed": run.seed}  # an arm may have been renamed
    return new_record(run, "waiting")


def new_record(run: StudyRun, status: str, reason: str = "", **found: Any) -> dict[str, Any]:
    """A record of how a run ended."""
    return {"arm": run.arm, "seed": run.seed, "digest": run.digest, "status": status,
            "reason": reason, **found}  # fmt: skip


def write_summary(study: StudyConfig, out: Path, world: World | None = None) -> dict[str, Any]:
    """Writes ``study.json`` from all that is recorded, and returns it; a grid's holds its laws.

    ``world`` is the one that runs it now; without it the provenance stays what it was.
    """
    runs, stored = runs_of(study), _read(out)
    known = _records(out, stored)
    records = [_record_among(known, run) for run in runs]
    means = arm_means(records)
    asked = {run.digest for run in runs}
    others = {r["digest"]: r for r in known if r["status"] == "finished"}
    before = stored.get("provenance", {})
    summary = {
        "name": study.name,
        "config": dict_of(study),
        "provenance": before if world is None else provenance(world),
        "arms": arms_of_runs(records),
        "runs": [
            record | {"folder": str(run.folder(out).relative_to(out))}
            for run, record in zip(runs, records, strict=True)
        ],
        "earlier": [record for digest, record in others.items() if digest not in asked],
        "warnings": [*warnings_of(means, twins_of(study)), *scored_unlike(records)],
    }
    if study.apart:
        summary["laws"] = laws_of(summary)
    if stored != summary:  # a look at finished runs leaves the file as it is
        write_study(out / FILE, summary)
    return summary


def why_none_counts(study: StudyConfig, out: Path) -> str:
    """In what a folder's runs differ from those asked for, where no finished one counts; or ''."""
    stored = _read(out)
    known = _records(out, stored)
    recorded = {record["digest"] for record in known if record["status"] == "finished"}
    if not recorded or recorded & {run.digest for run in runs_of(study)}:
        return ""
    changed = first_difference(_first_arm(stored.get("config")), _first_arm(dict_of(study)))
    return f"none of the {len(recorded)} finished runs in {out} counts: {changed}"


def _first_arm(config: Any) -> dict[str, Any]:
    try:
        tokenizer = config["arms"][0]["tokenizer"]
        return {
            "data": _name_of(tokenizer["data"]),
            "tokenizer": tokenizer | {"data": ""},
            "prior": config["priors"][0],
            "yardstick": config["yardstick"],
        }
    except (KeyError, IndexError, TypeError, AttributeError):  # of a version with other fields
        return {}


def twins_of(study: StudyConfig) -> dict[str, str]:
    """For each regularised arm the first one without that differs from it in nothing else."""
    bare = [arm for arm in study.arms if not arm.tokenizer.causal.weight]
    twins = {}
    for arm in study.arms:
        like = [
            twin.name
            for twin in bare
            if replace(arm.tokenizer, causal=twin.tokenizer.causal) == twin.tokenizer
        ]
        if like and arm not in bare:
            twins[arm.name] = like[0]
    if study.apart:
        priors = names_of(study.priors)
        twins = {f"{a}@{prior}": f"{b}@{prior}" for a, b in twins.items() for prior in priors}
    return twins


def _records(out: Path, stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Every record in the folders of runs and in what is stored, asked for now or not."""
    in_folders = [_record_in(path) for path in out.glob("arms/*/arm.json")]
    return [*in_folders, *_as_read_today(stored), *stored.get("earlier", [])]


def _record_in(path: Path) -> dict[str, Any]:
    advice = "delete it, and the same command goes on from what else is recorded"
    record = read_json(path, "a run's record", advice)
    if fault := fault_of_run(record):
        raise UserError(
            f"a run's record is what 'cartok study run' wrote, but {path} is damaged: {fault}; "
            f"{advice}"
        )
    return record


def _as_read_today(study: dict[str, Any]) -> list[dict[str, Any]]:
    """A study's runs under the digests that its config has now.

    A field that a config has been given since then stands at its default, which is to mean what
    was done before there was a choice.
    """
    runs = study.get("runs", [])
    try:
        config = config_of(StudyConfig, study.get("config", {}))
    except ConfigError:  # of a version that had other fields
        return runs
    alone = len(config.priors) if config.apart else 1
    if len(config.arms) * alone * config.seeds != len(runs):  # damaged: its seeds may be endless
        return runs
    asked = runs_of(config)
    today = {(run.arm, run.seed): run.digest for run in asked}
    return [run | {"digest": today.get((run["arm"], run["seed"]), run["digest"])} for run in runs]


def _read(out: Path) -> dict[str, Any]:
    return read_study(out / FILE) if (out / FILE).exists() else {}


def _run_of(
    study: StudyConfig, arm: StudyArm, name: str, priors: tuple[PriorRun, ...], seed: int
) -> StudyRun:
    tokenizer = replace(arm.tokenizer, seed=seed)
    priors = tuple(replace(prior, seed=seed) for prior in priors)
    first = next(one.name for one in study.arms if one.tokenizer == arm.tokenizer)
    plain: dict[str, Any] = {
        "tokenizer": dict_of(tokenizer) | {"data": _name_of(tokenizer.data)},
        "priors": [dict_of(prior) for prior in priors],
        "yardstick": dict_of(study.yardstick),
    }
    if arm.pixels:  # arms had none once, and are to keep their digests
        plain["pixels"] = arm.pixels
    made_from = digest_of({"tokenizer": plain["tokenizer"]})
    tokens = digest_of({"seen": pictures_seen(study), "yardstick": plain["yardstick"]})
    return StudyRun(
        arm=name, seed=seed, tokenizer=tokenizer, priors=priors, digest=digest_of(plain),
        pixels=arm.pixels, made_from=f"{first}-s{seed}-{made_from}",
        tokens=f"{arm.pixels or tokenizer.view.size}px-{tokens}",
    )  # fmt: skip


def _name_of(data: str) -> str:
    """The same wherever the pictures lie: a folder's or file's own name."""
    return data if data.startswith("hub:") else Path(data).name
