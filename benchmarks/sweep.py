"""Settings of the heads' training, searched by optuna: what makes the consenting users' next baskets likeliest.

    python -m benchmarks.sweep OUT office=FOLDER demo --trials 40
    python -m benchmarks.sweep OUT office=FOLDER --trust secure-aggregation --epsilon 8 --trials 20

Without `--trust` there is no noise, and each user's gradient is clipped. With it every trial is a simulated private run at that
epsilon. A trial is judged by the users who judge a run (`docs/training.md`): the mean negative log likelihood, in nats, of what
they buy next under what is kept of the training, with the scoring fitted on the other calibration users. Nobody who is measured
has a part in it. The first trial is the defaults. A study goes on where it was interrupted; `sweep.md` and `sweep.json` in OUT
hold all of them. With `--trust`, `--track NAME:TARGET` also shows the rounds of each trial in a tracker (`docs/training.md`).
Needs `pip install 'fedrec[benchmarks]'`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.quality.datasets import MOST_EPSILON, DataSet
from benchmarks.quality.pieces import TRUSTS
from benchmarks.quality.trained import CLIPPED, for_all, trained_plainly
from fedrec.cli.terminal import quiet_libraries
from fedrec.cli.tracking import tracked
from fedrec.config import RunConfig, Trust, write_atomically
from fedrec.data import load_central
from fedrec.errors import InputError
from fedrec.evaluation import fit_scoring, mean_loss
from fedrec.model import Arrays
from fedrec.tracking import open_tracker
from server.evaluation import COUNTS, FLOOR, CentralEvaluator
from server.judging import kept
from server.start import load_encoder_for
from simulations.run import simulate

__all__ = ["main"]

SHOWN = 6
"""Trials of a study that the table shows, the best first."""
FEWEST = 8
"""Trials below which nothing is said of what matters."""


SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    "rounds": CategoricalDistribution((9, 18, 36)),
    "rank": CategoricalDistribution((16, 32, 64)),
    "positions": CategoricalDistribution((1, 2, 4)),
    "clip_norm": FloatDistribution(0.02, 0.5, log=True),
    "server_optimizer": CategoricalDistribution(("wiener", "adam")),
    "server_learning_rate": FloatDistribution(0.001, 0.1, log=True),
    "histogram_share": CategoricalDistribution((0.05, 0.1, 0.2)),
}
"""The settings that move the heads."""


def nats(evaluator: CentralEvaluator, public: Arrays, trained: Arrays) -> float:
    """How unlikely the judging users' next baskets are under an adapter."""
    under = evaluator.trains_under(public, trained)
    tables, counts, floor = evaluator.tables(public, trained), public[COUNTS], float(public[FLOOR][0])
    scoring = fit_scoring(evaluator.fitting, *tables, counts, floor, under, (under.decay,))
    return mean_loss(evaluator.judging, *tables, counts, floor, scoring)


def judged(federation: Path, config: RunConfig, noise: bool, run: Path, track: list[str] | None = None) -> float:
    """`nats` of what a run with these settings keeps; until then a private one is in `run`, which is alone in its folder."""
    config = for_all(config, federation)
    if not noise:
        evaluator, done = trained_plainly(federation, config, CLIPPED)
        assert done.scoring is not None
        start = {name: np.zeros_like(value) for name, value in done.trained.items()}
        return nats(evaluator, done.public, kept(evaluator, done.public, start, done.trained, done.scoring)[1])
    shutil.rmtree(run.parent, ignore_errors=True)
    with tracked(track, run, simulation=True):
        state = simulate(federation, config, run).load()
    assert state is not None
    shutil.rmtree(run.parent)
    evaluator = CentralEvaluator(load_central(federation), config, load_encoder_for(config, state))
    return nats(evaluator, state.public, state.trained)


def study_of(out: Path, name: str) -> optuna.Study:
    """The study of that name in OUT, begun with the defaults."""
    storage = JournalStorage(JournalFileBackend(str(out / "studies.log")))
    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction="minimize", sampler=optuna.samplers.TPESampler(seed=0)
    )
    if not study.trials:
        study.enqueue_trial({name: RunConfig.model_fields[name].default for name in SPACE})
    return study


def completed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Its trials that have a value; the first is the defaults."""
    return [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]


def table_of(study: optuna.Study) -> list[str]:
    """Its best trials, the defaults, and what moved the result."""
    done, names = completed(study), list(SPACE)
    lines = [f"## {study.study_name}: {len(done)} trials", ""]
    lines += ["| nats | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    best = sorted(done, key=lambda trial: cast(float, trial.value))[:SHOWN]
    for trial in [*best, *[one for one in done[:1] if one not in best]]:
        values = [trial.params[name] for name in names]
        shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
        mark = " (defaults)" if trial.number == done[0].number else ""
        lines.append(f"| {trial.value:.4f}{mark} | " + " | ".join(shown) + " |")
    if len(done) >= FEWEST:
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
        lines += ["", "What tells the best trials apart: " + ", ".join(f"`{name}` {share:.0%}" for name, share in found.items())]
    return [*lines, ""]


def write(out: Path, studies: Sequence[optuna.Study]) -> None:
    """`sweep.md` and `sweep.json`."""
    write_atomically(out / "sweep.md", "\n".join(line for study in studies for line in table_of(study)).encode())
    rows = {study.study_name: [{"nats": trial.value, **trial.params} for trial in completed(study)] for study in studies}
    write_atomically(out / "sweep.json", json.dumps(rows, indent=2).encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run trials, and write the table after each.

    Raises:
        InputError: a data set or a number that cannot be, or data that cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("sets", nargs="+", metavar="DATASET", help="demo, movielens=WHEEL or NAME=FOLDER")
    parser.add_argument("--trials", type=int, default=40, help="of each study, those of earlier calls included")
    parser.add_argument("--trust", choices=TRUSTS, help="with noise, under this trust model")
    parser.add_argument("--epsilon", type=float, default=MOST_EPSILON, help="of each private run")
    parser.add_argument("--track", action="append", metavar="NAME:TARGET", help="of private runs, as `fedrec simulate` has it")
    args = parser.parse_args(arguments)
    if args.trials < 1:
        raise InputError(f"found {args.trials}", where="--trials", expected="at least 1")
    if not 0 < args.epsilon <= MOST_EPSILON:
        raise InputError(f"found {args.epsilon:g}", where="--epsilon", expected=f"more than 0, at most {MOST_EPSILON:g}")
    if args.track and not args.trust:
        raise InputError("a trial without noise is no run", where="--track", expected="--trust as well")
    for text in args.track or ():
        open_tracker(text)
    args.out.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    trust: Trust = args.trust or "local"
    studies = []
    for one in [DataSet.parse(text) for text in args.sets]:
        federation = one.federation(args.out / "federations", trust)
        noise = f"{args.trust}-{args.epsilon:g}" if args.trust else "no-noise"
        base = {"encoder_rounds": 0, "trust": trust, "epsilon": args.epsilon}
        studies.append(study := study_of(args.out, f"{one.name}-{noise}"))
        for _ in range(args.trials - len(completed(study))):
            trial = study.ask(SPACE)
            config = RunConfig.model_validate({**base, **trial.params})
            run = args.out / "runs" / study.study_name / f"{study.study_name}-{trial.number}"
            study.tell(trial, judged(federation, config, args.trust is not None, run, args.track))
            write(args.out, studies)
            sys.stderr.write(f"{study.study_name}: {len(completed(study))} of {args.trials}, best {study.best_value:.4f}\n")
        write(args.out, studies)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
