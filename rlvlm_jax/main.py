# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Trains or evaluates: `python -m rlvlm_jax.main --config=configs/tiny.py --workdir=DIR`.

`config.mode` chooses reinforcement learning ("rl"), supervised fine-tuning ("sft") or evaluation
("eval"). If the work directory holds a checkpoint, the run resumes from it. With several hosts, run
the same command on each.
"""

import os
import signal
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from rlvlm_jax import cli, distributed, signals
from rlvlm_jax import config as config_lib
from rlvlm_jax.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs the configured program; returns the exit status."""
    distributed.supervise()
    config, workdir = cli.parse_config(argv, "rlvlm_jax.main")
    config_lib.check_hosts(config)
    distributed.start(config.hosts)
    # Imported late: a bad flag is reported before JAX is loaded.
    import jax

    from rlvlm_jax import evaluate, seeds, sft, train
    from rlvlm_jax.validate import validate

    check_same(config)
    validate(config, jax.device_count())
    programs = {"rl": train.train, "sft": sft.train, "eval": evaluate.evaluate}
    program = programs[config.mode]
    try:
        if config.seeds > 1:
            finished = seeds.run_seeds(program, config, workdir)
        else:
            finished = program(config, workdir)
    finally:
        if jax.process_count() > 1:
            signals.ignore()
    if finished:
        return cli.DONE
    sys.stderr.write(f"stopped; run the same command again to resume in {workdir}\n")
    return cli.PREEMPTED


def check_same(config: ConfigDict) -> None:
    """Checks that all processes have the same configuration; all processes must call it.

    Raises:
        InputError: the message names the first key that differs.
    """
    leaves = dict(config_lib.flatten(config))
    shared = {key: leaf for key, leaf in leaves.items() if key not in config_lib.PER_HOST}
    per_process = distributed.gather(shared)
    for key in shared:
        values = [repr(process_leaves.get(key)) for process_leaves in per_process]
        if len(set(values)) > 1:
            raise InputError(
                f"the processes have different configurations: config.{key} is "
                f"{', '.join(values[:4])}; give all hosts the same command"
            )


def leave(number: int, frame: object) -> None:
    """Ends the program on a signal that arrives before `run.Run` catches signals; loses nothing."""
    del number, frame
    sys.stderr.write("stopped before the run began; run the same command again\n")
    os._exit(cli.PREEMPTED)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    cli.exit_with(main)
