"""`report.html` of a run: what was trained, how well it ranks, what it cost in privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedrec.config import RunConfig, write_atomically
from fedrec.report.pages import page
from fedrec.report.plots import curves, intervals
from fedrec.report.trust_words import COMPARED, LOST, SHARES, assumed
from fedrec.text import visible

__all__ = ["at_merchants_plot", "judges_say", "release_says", "write_report"]


def write_report(folder: Path, config: RunConfig, lines: list[dict[str, Any]], results: dict[str, Any]) -> Path:
    """Write `report.html` into the run folder and return its path."""
    release = results.get("complements")  # before all rounds: who declined them has paid for it all the same
    last: dict[str, dict[str, Any]] = dict(release["privacy"]) if release else {}
    for line in lines:
        last |= line["privacy"]
    html = page(
        "run.html",
        config=config,
        settings=config.model_dump(exclude_none=True),
        results=results,
        lines=lines,
        privacy=dict(sorted(last.items())),
        secure=config.trust == "secure-aggregation",
        assumed=assumed(config.dropouts, config.colluders),
        shares=SHARES,
        compared=COMPARED,
        lost=LOST,
        judges_say=judges_say(results["judged"], results["rounds"], config.rounds) if results.get("judged") else "",
        release=release,
        release_says=release_says(release) if release else "",
        abandoned=[line for line in lines if "abandoned" in line],
        total_epsilon=sum(entry["epsilon"] for entry in last.values()),
        k=config.top_k,
        metric_names=_names(config, results),
        reliability=Markup(reliability_plot(lines[-1]["reliability"])) if "reliability" in lines[-1] else None,
        at_merchants=Markup(at_merchants_plot(results, config.top_k)) if results.get("merchants") else None,
        plots=[(title, Markup(svg)) for title, svg in _plots(config, lines, results)],
        most_up=max((size for line in lines[1:] for size in line["bytes_up"].values()), default=0),
        most_down=max((size for line in lines[2:] for size in line["bytes_down"].values()), default=0),
    )
    path = folder / "report.html"
    write_atomically(path, html.encode())
    return path


def judges_say(judged: dict[str, Any], ran: int, rounds: int) -> str:
    """What the judging users decided of a run with `patience`."""
    stopped = f"Stopped after round {ran} of {rounds}: the judging users saw no gain any more. " if judged["stopped"] else ""
    best = f"the adapter of round {judged['best_round']}" if judged["best_round"] else "its start, over which no round was a gain"
    return f"{stopped}The run ends with {best}."


def release_says(release: dict[str, Any]) -> str:
    """How the release of what goes with what went: `complements` of a run's results."""
    took, asked = len(release["took_part"]), len({*release["took_part"], *release["declined"], *release["refused"]})
    if release["abandoned"]:
        return f"What goes with what was not learned, no sum was opened: {visible(release['abandoned'])}."
    if not took:
        return "What goes with what was not learned: nobody took part."
    return f"What goes with what was learned of {release['kinds']} kinds, once, from {took} of {asked} merchants that answered."


def _names(config: RunConfig, results: dict[str, Any]) -> list[str]:
    k = config.top_k
    return list(results.get("metrics", (f"ndcg@{k}", f"hr@{k}", f"recall@{k}", "mrr")))


def at_merchants_plot(results: dict[str, Any], k: int) -> str:
    """NDCG of what merchants have alone and with the federation."""
    name = f"ndcg@{k}"
    rows = [(row["name"], row[name], row[f"{name}_low"], row[f"{name}_high"]) for row in results["merchants"]["rows"]]
    return intervals(rows, x=f"{name.upper()}, 95% intervals")


def reliability_plot(bins: list[dict[str, float]]) -> str:
    """The share of responses by what was predicted, bin by bin, beside what a calibrated model has."""
    predicted, found = ([one[name] for one in bins] for name in ("predicted", "found"))
    series = {"found": (predicted, found), "calibrated": (predicted, predicted)}
    return curves(series, x="predicted probability", y="share of responses", whole=False)


def _plots(config: RunConfig, lines: list[dict[str, Any]], results: dict[str, Any]) -> list[tuple[str, str]]:
    rounds = [line["round"] for line in lines]
    out = []
    for name in _names(config, results)[:2]:
        values = [line["central"][name] for line in lines]
        band = ([line["central"][f"{name}_low"] for line in lines], [line["central"][f"{name}_high"] for line in lines])
        levels = {
            row["name"]: row[name]
            for row in results["rows"]
            if row["name"].startswith(("popularity, private", "user and item, private", "same training"))
        }
        svg = curves(
            {"federated, private": (rounds, values)}, x="round", y=name.upper(), bands={"federated, private": band}, levels=levels
        )
        out.append((f"Central {name.upper().replace('_', ' ')} by round, with 95% intervals", svg))
    merchants = sorted({name for line in lines for name in line["privacy"]})
    if merchants:
        out.append(
            (
                "Epsilon spent by merchant and round",
                _by_merchant(lines, merchants, lambda line, m: line["privacy"].get(m, {}).get("epsilon"), "epsilon"),
            )
        )
        for key, title in (
            ("bytes_up", "Kilobytes sent by a merchant in a round"),
            ("bytes_down", "Kilobytes received by a merchant in a round"),
        ):
            svg = _by_merchant(lines, merchants, lambda line, m, key=key: _kilo(line[key].get(m)), "kB")
            out.append((title, svg))
    return out


def _by_merchant(lines: list[dict[str, Any]], merchants: list[str], value: Any, y: str) -> str:
    series = {}
    for merchant in merchants:
        points = [(line["round"], value(line, merchant)) for line in lines]
        kept = [point for point in points if point[1] is not None]
        series[merchant] = ([x for x, _ in kept], [y for _, y in kept])
    return curves(series, x="round", y=y)


def _kilo(size: int | None) -> float | None:
    return None if size is None else size / 1000
