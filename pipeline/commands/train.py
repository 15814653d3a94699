"""Commands that make networks and judge them: `aqnet train` and `aqnet evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands.arguments import PATH, exist, hours, needed, whole_numbers
from pipeline.errors import ConfigError


@click.command()
@click.option("--input", "input_path", type=PATH, required=True, help="Files of the CNEMC archive.")
@click.option("--stations", type=PATH, required=True, help="Station list (CSV: code, lon, lat).")
@click.option("--splits", type=PATH, required=True, help="The public split (JSON).")
@click.option("--out", type=PATH, required=True, help="Folder for the weights.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random draw.")
@click.option("--everything", is_flag=True, help="Use all stations and hours: for production only.")
@click.option("--outlook", is_flag=True, help="Train the outlook mode (336 hours in, 168 hours out).")
@click.option("--calibrate", type=PATH, help="Calibrate intervals by folds, which are kept in this folder.")
@click.option("--folds", type=click.IntRange(min=2), default=10, show_default=True, help="Folds of --calibrate.")
def train(
    input_path: Path, stations: Path, splits: Path, out: Path, seed: int, everything: bool, outlook: bool, **how: Any
) -> None:
    """Train AQ-Net on the training hours and visible stations of a split."""
    from pipeline import train as training
    from pipeline.evaluation import outlook as outlooks

    exist(input_path, stations, splits)
    if outlook and everything:
        raise ConfigError("--everything: expected without --outlook, whose weights are those that are evaluated")
    if outlook and how["calibrate"]:
        raise ConfigError("--calibrate: expected without --outlook, whose intervals validation hours shape")
    if outlook:
        outlooks.train(input_path, stations, splits, out, seed)
    else:
        work, number = how["calibrate"], how["folds"]
        training.train(input_path, stations, splits, out, seed, everything=everything, work=work, number=number)


@click.command()
@click.option("--input", "input_path", type=PATH, required=True, help="Files of observations (the CNEMC archive).")
@click.option("--stations", type=PATH, help="Station list (CSV: code, lon, lat, city).")
@click.option("--splits", type=PATH, help="The public split (JSON).")
@click.option("--out", type=PATH, required=True, help="Folder for tables and pictures.")
@click.option("--weights", type=PATH, multiple=True, help="Weights to score, once for each seed (the shipped ones).")
@click.option("--stride", type=click.IntRange(min=1), help="Score every so many hours (6, in folds 7).")
@click.option("--leave", type=click.Choice(["city", "station"]), multiple=True, help="Leave out in folds instead.")
@click.option("--folds", type=click.IntRange(min=2), default=10, show_default=True, help="Folds of --leave.")
@click.option("--ablation", is_flag=True, help="Score AQ-Net without each of its parts instead, trained anew.")
@click.option("--seeds", default="0,1,2", show_default=True, metavar="N,...", help="Seeds of each row of --ablation.")
@click.option("--work", type=PATH, help="Folder of what is done, to go on with (OUT/folds, with --ablation OUT/work).")
@click.option("--outlook", is_flag=True, help="Score the outlook mode instead.")
@click.option("--source", help="Network of --input: score the shipped weights there, without training.")
@click.option("--start", help="First hour, UTC (with --source).")
@click.option("--end", help="Hour after the last, UTC (with --source).")
@click.option("--bbox", nargs=4, type=float, metavar="W S E N", help="Stations wanted, degrees (with --source).")
@click.option("--outside", nargs=4, type=float, metavar="W S E N", help="Box left aside, degrees (with --source).")
def evaluate(input_path: Path, out: Path, weights: tuple[Path, ...], stride: int | None, **how: Any) -> None:
    """Score AQ-Net and the baselines at hidden stations of the public split.

    With --leave every station is estimated by methods trained without it, its city left out with it or not; with
    --ablation the network is trained without each of its parts; with --outlook forecasts are scored; with --source the
    shipped weights are scored on another record, beside kriging that is fitted to it.
    """
    from pipeline.evaluation import ablation as ablations
    from pipeline.evaluation import evaluate as evaluation
    from pipeline.evaluation import fold_report, folds, outlook, outlook_report, transfer

    exist(input_path, *weights, *filter(None, [how["stations"], how["splits"]]))
    work = how["work"] or out / "folds"
    protocols = [folds.Protocol(leave, how["folds"], stride=stride or folds.STRIDE) for leave in how["leave"]]
    if how["source"]:
        needed(how, "start", "end", "leave")
        where = input_path, how["stations"], hours(how["start"], how["end"]), out, work, protocols[0]
        found = transfer.transfer(how["source"], *where, how["bbox"], how["outside"], *weights[:1])
        click.echo(found.to_markdown([*transfer.REFERENCES, *folds.NETWORKS]))
        return
    needed(how, "stations", "splits")
    data = input_path, how["stations"], how["splits"]
    if how["ablation"]:
        if not (seeds := whole_numbers([how["seeds"]], "--seeds")):
            raise ConfigError("--seeds: expected one whole number or more; found none")
        click.echo(ablations.ablate(*data, out, how["work"] or out / "work", seeds, stride or 6).to_markdown())
    elif how["outlook"]:
        click.echo(outlook_report.markdown(outlook.evaluate(*data, out, list(weights) or None)))
    elif protocols:
        scores = fold_report.evaluate_folds(*data, out, work, protocols, folds.networks())
        click.echo("\n\n".join(score.to_markdown(list(folds.NETWORKS)) for score in scores.values()))
    else:
        click.echo(evaluation.evaluate(*data, out, list(weights) or None, stride or 6).to_markdown())
