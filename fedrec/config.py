"""Every setting of a run, once: name, unit, range and default.

A `RunConfig` is parsed at the edge (file, `--set`, Python) and passed down as an object.
The names are the same in a TOML file, on the command line, in code and in reports.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedrec.errors import InputError

__all__ = [
    "MOST_NOISE", "MOST_PAIRS", "MOST_RATING", "RunConfig", "cache_root", "flush_folder", "least_updates", "load_config",
    "make_folder", "make_private", "parse_overrides", "read_toml", "save_config", "writable_cache", "write_atomically",
]  # fmt: skip

Unit = Literal["user", "event"]
Part = Literal["heads", "encoder"]
ObjectiveName = Literal["next-item", "response", "rating", "rating-absolute", "next-item+response", "basket"]
HomeObjective = Literal["next-item", "response", "basket"]
"""Of runs whose adapters merchants get."""
UpdateCode = Literal["float32", "int8"]
Trust = Literal["local", "secure-aggregation"]
Aggregation = Literal["mean", "norm-bound", "median", "trimmed-mean", "krum", "multi-krum"]

MOST_NOISE = 5_000.0
"""Ceiling of a noise multiplier: up to it, and a million numbers, the noise has a grid that is fine enough."""
MOST_RATING = 1e6
"""Ceiling of a rating's size, either way."""
MOST_PAIRS = 100_000
"""Ceiling of `positions * history`: how many events of a user are looked at, each as often as there are positions."""


def _encoder_rounds(settings: dict[str, Any]) -> int:
    """A fifth of the rounds: 4 of 18, and none of fewer than 5."""
    rounds = settings.get("rounds", 0)  # absent where what was given is refused
    return round(rounds / 5) if rounds >= 5 else 0


def _temperature(settings: dict[str, Any]) -> float:
    """A tenth where the score is a rating."""
    return 0.3 if str(settings.get("objective", "")).startswith("rating") else 3.0


class RunConfig(BaseModel):
    """The settings of one federated run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rounds: int = Field(18, ge=1, le=10_000)
    """Training rounds in all."""
    encoder_rounds: int = Field(default_factory=_encoder_rounds, ge=0)
    """How many of the last rounds train the encoder's LoRA instead of the heads; by default a fifth, none of fewer than 5."""
    local_steps: int = Field(1, ge=1, le=1_000)
    """Private steps a merchant takes in a round before it answers."""
    sample_rate: float = Field(1.0, gt=0, le=1)
    """Poisson sampling rate over a merchant's users in a step on the heads."""
    encoder_sample_rate: float = Field(0.1, gt=0, le=1)
    """Poisson sampling rate over a merchant's users in a step on the encoder."""
    clip_norm: float = Field(0.1, gt=0)
    """Largest L2 norm of one user's gradient."""

    objective: ObjectiveName = "next-item"
    """What is predicted: what is new in the next basket, whether a user responds to an item that is shown, how it rates one
    (`rating` by squared error, `rating-absolute` by absolute), the first two together, or what completes a basket."""
    objective_weights: tuple[float, float] = (1.0, 1.0)
    """`next-item+response`: factors on the two losses of a user, whose sum has one gradient that is clipped once. They are
    public, and over 0."""
    impressions: int = Field(64, ge=1, le=1000)
    """`response` and `rating`: most impressions, or ratings, of a user that are trained on; of more, so many are drawn."""
    negative_share: float = Field(1.0, gt=0, le=1)
    """`response`: share of the impressions without a response that the data hold. It is public, and taken out of what is said to
    be a probability; the loss is of the data as they are."""

    rating_min: float = Field(1.0, ge=-MOST_RATING, le=MOST_RATING)
    """`rating`: the lowest rating there is. Range and what it means are public; a rating outside is clamped before it is used."""
    rating_max: float = Field(5.0, ge=-MOST_RATING, le=MOST_RATING)
    """`rating`: the highest."""

    epsilon: float = Field(8.0, gt=0)
    """Target epsilon a merchant and run, which the noise multipliers are planned for."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Target delta; keep it well under one over the number of users."""
    patience: int = Field(0, ge=0)
    """Rounds without a gain for the public users who judge, after which the run stops and takes its best adapter; the rounds that
    are left are not paid for. 0 runs them all."""
    unit: Unit = "user"
    """What the guarantee protects: all of a user's events at a merchant, or (weaker) one example."""
    trust: Trust = "local"
    """Who is trusted. `local`: nobody, each merchant adds all of its own noise. `secure-aggregation`: each adds a
    share, the server opens only the sum, and all but `colluders` of the others are trusted to keep theirs."""
    dropouts: int = Field(1, ge=0)
    """How many merchants of the roster may be missing from a secure sum; the others' noise suffices without theirs."""
    colluders: int = Field(1, ge=0)
    """How many merchants may tell the server all they know; the noise suffices without theirs."""
    noise_multiplier: float | None = Field(None, gt=0, le=MOST_NOISE)
    """Noise of a step on the heads over `clip_norm`; planned from `epsilon` when absent."""
    encoder_noise_multiplier: float | None = Field(None, gt=0, le=MOST_NOISE)
    """The same for a step on the encoder."""
    histogram_noise_multiplier: float | None = Field(None, gt=0, le=MOST_NOISE)
    """The same for the popularity histogram, whose norm per user is 1."""
    complement_noise_multiplier: float | None = Field(None, gt=0, le=MOST_NOISE)
    """The same for which kinds of item share a basket, of norm at most 1 a user; only where `complement_share` is over 0."""
    histogram_share: float = Field(0.1, ge=0, lt=1)
    """Share of the budget (of squared Gaussian mu) for the popularity histogram; 0 sends none."""
    complement_share: float = Field(0, ge=0, lt=1)
    """Share of the budget for one release of which kinds of item share a basket; 0 sends none."""
    encoder_share: float = Field(0.15, gt=0, lt=1)
    """Share of the budget for the encoder's rounds, where there are both kinds of round."""

    encoder: str = "minilm-l6"
    """A BERT and its tokenizer: `minilm-l6` (packaged), a folder, or `hf:NAME` for a model of the Hugging Face hub. A relative
    folder is the working directory's; the run keeps it absolute."""
    heads: bool = True
    """Train one low-rank head for each role (history, candidate) on the pooled embedding."""
    rank: int = Field(32, ge=1)
    """Rank of the heads."""
    encoder_layers: int = Field(1, ge=0, le=1000)
    """LoRA in that many of the top encoder layers; 0 for none."""
    encoder_rank: int = Field(8, ge=1, le=1000)
    """Rank of the encoder's LoRA."""
    lora_init: Literal["principal", "random"] = "principal"
    """The frozen A: principal directions of the central catalogue's activations, or random."""
    max_tokens: int = Field(48, ge=4, le=512)
    """Longer texts are cut to this many tokens."""

    history: int = Field(50, ge=1, le=1000)
    """Most recent events of a user that are pooled."""
    positions: int = Field(2, ge=1, le=1000)
    """Most recent baskets of a user that serve as training targets."""
    negatives: int = Field(24, ge=1, le=1000)
    """Negatives from the public catalogue for a step on the encoder (heads use all of it)."""
    encoder_history: int = Field(12, ge=1, le=1000)
    """Most recent events of a user that a step on the encoder encodes."""
    temperature: float = Field(default_factory=_temperature, gt=0, le=1000)
    """`tau`, the factor on the cosine that merchants train under where `calibrate` is off or has too few users to fit it on;
    by default 3, and .3 of ratings, whose score is between -1 and 1."""
    decay: float = Field(0.1, ge=0, le=1000)
    """Recency decay a basket; the same."""
    prior_weight: float = Field(1.0, ge=0, le=100)
    """`w`, the factor on log popularity; the same. 1 makes it a log-probability."""
    calibrate: bool = True
    """On the central calibration users fit what merchants train under, once, and after every round choose the ranking's decay
    and prior weight."""

    learning_rate: float = Field(1.0, gt=0)
    """Step size of a merchant's local private SGD."""
    server_optimizer: Literal["average", "momentum", "adam", "wiener"] = "wiener"
    """How the mean update is applied to the global adapter; `wiener` moves along what of it stands out of its noise."""
    server_learning_rate: float = Field(0.01, gt=0)
    """Step size of the server's optimizer on the heads (`average` uses 1)."""
    encoder_learning_rate: float = Field(0.003, gt=0)
    """Step size of the server's optimizer on the encoder."""
    update_code: UpdateCode = "float32"
    """How a merchant's update is sent: as it is, or rounded at random to int8, a quarter of the bytes."""
    weighting: Literal["population", "equal"] = "population"
    """Weight of a merchant's update under `mean` and `norm-bound`: its publicly declared population, or the same for all."""
    aggregation: Aggregation = "mean"
    """How merchants' updates become one; see `fedrec.aggregation.rules`. All but `mean` need the updates themselves, which
    `secure-aggregation` does not open."""
    byzantine: int = Field(1, ge=0)
    """How many merchants may send anything at all, which `median`, `trimmed-mean`, `krum` and `multi-krum` withstand."""
    min_lot: float = Field(5, ge=1)
    """Expected users in a step under which a merchant is too small for the run."""
    min_merchants: int = Field(1, ge=1)
    """A round with fewer usable updates leaves the adapter as it is."""
    start_merchants: int = Field(1, ge=1)
    """Merchants that must be connected before the first request; later rounds need `min_merchants`."""
    wait_timeout: float = Field(600, gt=0)
    """Seconds that the server waits for so many merchants before it stops, with a reason."""
    round_timeout: float = Field(3600, gt=0)
    """Seconds that the server waits for the merchants' replies in a round."""

    calibration_share: float = Field(0.25, gt=0, lt=1)
    """Share of the central users for `calibrate`; they are never evaluated on."""
    top_k: int = Field(10, ge=1)
    """Length of the list that HR, NDCG and Recall look at."""
    bootstrap: int = Field(1000, ge=100)
    """Bootstrap resamples for the confidence intervals."""

    seed: int = Field(0, ge=0)
    """Seed of the simulation and of the public choices (calibration users, bootstrap). A deployed
    merchant's noise and sampling never see it."""
    device: str = "auto"
    """`auto`, `cpu`, or a torch device."""
    texts_per_batch: int = Field(128, ge=1)
    """Most texts that go through the encoder at once."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if not self.heads and self.encoder_layers == 0:
            raise ValueError("nothing to train: heads is false and encoder_layers is 0")
        if self.heads and self.encoder_layers and self.encoder_rounds > self.rounds:
            raise ValueError(f"encoder_rounds ({self.encoder_rounds}) is more than rounds ({self.rounds})")
        if self.positions * self.history > MOST_PAIRS:
            raise ValueError(f"positions times history ({self.positions * self.history}) is more than {MOST_PAIRS}")
        if self.objective != "next-item" and not (self.heads and self.unit == "user"):
            raise ValueError(f"objective = {self.objective!r} needs heads = true and unit = 'user'")
        if self.rating_min >= self.rating_max:
            raise ValueError(f"rating_min ({self.rating_min:g}) is not under rating_max ({self.rating_max:g})")
        if not all(0 < weight <= 1000 for weight in self.objective_weights):
            raise ValueError(f"objective_weights = {list(self.objective_weights)}: expected each over 0 and at most 1000")
        if self.patience and not self.calibrate:
            raise ValueError(f"patience = {self.patience}: calibrate = false leaves no public users who judge")
        if self.histogram_share + self.complement_share >= 1:
            raise ValueError(
                f"histogram_share ({self.histogram_share:g}) and complement_share ({self.complement_share:g}) "
                "leave the rounds nothing"
            )
        if self.complement_share and not self.histogram_share:
            raise ValueError("complement_share needs histogram_share over 0: what goes with what is told from popularity by it")
        if self.complement_share and self.unit != "user":
            raise ValueError("complement_share needs unit = 'user': who takes an event out of a user's part may move all of it")
        if self.trust == "secure-aggregation":
            self._one_sum_a_round()
        self._enough_for_the_rule()
        return self

    def _one_sum_a_round(self) -> None:
        for name, needed in (("local_steps", 1), ("update_code", "float32"), ("weighting", "population")):
            if getattr(self, name) != needed:
                raise ValueError(f"{name} = {getattr(self, name)!r}: trust = 'secure-aggregation' needs {needed!r}")
        if self.aggregation != "mean":
            raise ValueError(
                f"aggregation = {self.aggregation!r} needs every merchant's own update, and trust = 'secure-aggregation' opens "
                "only the sum of all: expected 'mean'"
            )

    def _enough_for_the_rule(self) -> None:
        # Before each round so many must be connected: nobody pays for a round that the rule cannot judge.
        least = least_updates(self.aggregation, self.byzantine)
        if self.min_merchants < least:
            raise ValueError(
                f"min_merchants ({self.min_merchants}) is under {least}, which aggregation = {self.aggregation!r} needs "
                f"for byzantine = {self.byzantine}"
            )

    def part(self, round_number: int) -> Part:
        """The part of the adapter that round `round_number` (1-based) trains."""
        if not self.heads:
            return "encoder"
        if self.encoder_layers == 0:
            return "heads"
        return "encoder" if round_number > self.rounds - self.encoder_rounds else "heads"

    def rounds_of(self, part: Part) -> int:
        """How many of the run's rounds train `part`."""
        return sum(self.part(number) == part for number in range(1, self.rounds + 1))

    def sample_rate_of(self, part: Part) -> float:
        """The Poisson sampling rate of a step on `part`."""
        return self.sample_rate if part == "heads" else self.encoder_sample_rate


def least_updates(aggregation: Aggregation, byzantine: int) -> int:
    """The fewest updates of a round with which a rule withstands `byzantine` of them.

    Half of them must be honest for a median or a trimmed mean (Yin et al., ICML 2018, section 4), and
    2 `byzantine` + 3 there for Krum (Blanchard et al., NeurIPS 2017, proposition 4.2).
    """
    if aggregation in ("median", "trimmed-mean"):
        return 2 * byzantine + 1
    return 2 * byzantine + 3 if aggregation in ("krum", "multi-krum") else 1


def load_config(
    path: Path | None = None, overrides: dict[str, Any] | None = None, *, below: Mapping[str, Any] | None = None
) -> RunConfig:
    """Read a TOML file of settings and lay `overrides` over it.

    Args:
        below: settings where neither the file nor `overrides` has any.

    Raises:
        InputError: the file cannot be read, or a setting is unknown or out of range.
    """
    values = dict(below or {})
    if path is not None:
        values |= read_toml(Path(path), hint="give --config a TOML file")
    values |= overrides or {}
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error), where=str(path) if path else "settings") from None


def read_toml(path: Path, hint: str | None = None) -> dict[str, Any]:
    """Read a TOML file; a byte order mark, which some editors put before UTF-8, is no part of it.

    Args:
        hint: what to do if there is no such file, or it cannot be read.

    Raises:
        InputError: it cannot be read, or is not TOML in UTF-8; naming the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), hint=hint) from None
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8", where=f"{path}, line {line}", hint="save it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # more than TOMLDecodeError: a number of 5,000 digits, 1,000 brackets
        raise InputError(f"is not valid TOML ({error})", where=str(path)) from None


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """Turn `key=value` pairs into settings; a value is read as TOML, else as a bare string.

    Raises:
        InputError: a pair has no `=`.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"found {pair!r}", where="--set", expected="key=value")
        try:
            overrides[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            overrides[key.strip()] = text
    return overrides


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved settings as TOML; a setting that is None is left out."""
    write_atomically(path, tomli_w.dumps(config.model_dump(exclude_none=True)).encode())


def cache_root() -> Path:
    """The folder of what may be computed again: `FEDREC_CACHE`, else the user's cache folder.

    Raises:
        InputError: neither is known.
    """
    try:
        return Path(os.environ.get("FEDREC_CACHE") or Path.home() / ".cache" / "fedrec")
    except RuntimeError:
        raise InputError("this user has no home folder", where="FEDREC_CACHE", expected="a folder for a cache") from None


def writable_cache() -> Path:
    """`cache_root`, for who must write there.

    Raises:
        InputError: it cannot be made or written.
    """
    folder = cache_root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(
            f"the cache cannot be written ({error.strerror})", where=str(folder),
            hint="set FEDREC_CACHE to a folder that can be written",
        ) from None  # fmt: skip


def write_atomically(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write to a temporary name beside `path`, flush to disk, and rename.

    Args:
        mode: permissions of the file, from the first byte; the process's umask applies.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)  # or a power cut could bring the old file back
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, so that a power cut takes none of them away.

    Raises:
        OSError: it cannot be made, or something else is in its place.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush_folder(path.parent)


def make_private(path: Path) -> None:
    """The same for a folder that only its owner may enter; its parents are made as they come."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Flush a folder to disk: the names in it, not what the files hold."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"there is no setting {name!r}{_nearest(name)}")
        elif name:
            lines.append(f"{name} = {item['input']!r}: {item['msg'].lower()}")
        else:
            lines.append(item["msg"].removeprefix("Value error, "))
    return "; ".join(lines)


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, RunConfig.model_fields, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
