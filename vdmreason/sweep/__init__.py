"""A sweep: one file describes an experiment, any number of workers do its trials, and any of them may be killed at any time.

    vdmreason sweep run protocols/structured.yaml --scale small

    name: structured                          # the folder: runs/sweeps/<name>[-<scale>]
    tasks: [maze/7x7, {all: arc1/evaluation}, {sample: 100, of: arc1/evaluation}]
    n: [10, 30]                               # or all: what a finite task has
    seeds: [0, 1, 2]
    arms:
      video: {family: cogvideox}              # any keys of a run; and n, seeds, tasks, controls of its own
      language: {family: causal_lm, n: [30]}
    controls: [random]                        # each arm again on a backbone with random weights
    axes: {lora.rank: [8, 32]}                # any other key, with the values to try
    set: {test: 100, optim.updates: 300}      # for all trials
    scales:                                   # the same keys again, for --scale NAME
      small: {n: [10]}

Trials are ordinary runs, named by the hash of their full resolved config (`config.Run.id`), in runs/sweeps/<name>/:

    sweep.yaml        the file as it was given
    plan.json         {"name", "scale", "created", "commit", "trials": [{"id", "folder", "task", "arm", "control", "n", "seed",
                      "set", "config", "training"}], "dropped": [ids that an earlier version of the file had]}
    trials/<name>/    a run's folder, and beside it claim.json (who works on it; its time of change is the heartbeat),
                      done.json (written last: sha256 of what counts), failed.json (error, end of the log, attempts)
    workers/          what the workers printed
    STOP              while it is there, no worker goes on

Trials that differ only in how and what the adapter is asked (`Run.training_id`: votes, denoising steps, another test) have one
training: the first that is done lends the others its adapter.

Workers pull: each takes the first trial that nobody has claimed, so it matters to nobody where they run, how many there are or
who started them. A trial is done when its done.json says so and what it vouches for is still there. Needs no torch but to work.
"""

from __future__ import annotations

from vdmreason.sweep.claims import CLAIM, claim
from vdmreason.sweep.commands import app, usual_workers
from vdmreason.sweep.driver import cancel, run_sweep, status_lines
from vdmreason.sweep.forecast import Forecast, describing
from vdmreason.sweep.sheet import Sweep, Trial, folder_name, read
from vdmreason.sweep.trials import (
    DONE,
    FAILED,
    PLAN,
    SHEET,
    VOUCHED,
    Standing,
    hashes,
    is_done,
    look,
    preview,
    read_plan,
    standing,
    write_plan,
)
from vdmreason.sweep.worker import work

__all__ = [
    "CLAIM", "DONE", "FAILED", "PLAN", "SHEET", "VOUCHED", "Forecast", "Standing", "Sweep", "Trial", "app", "cancel", "claim",
    "describing", "folder_name", "hashes", "is_done", "look", "preview", "read", "read_plan", "run_sweep", "standing",
    "status_lines", "usual_workers", "work", "write_plan",
]  # fmt: skip
