# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face weights -> an orbax directory: `python -m rlvlm_jax.convert --source=HF --out=DIR`.

Any mesh restores the result shard by shard. `model.path` accepts it; a pod starts from it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlvlm_jax import cli
from rlvlm_jax.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Converts one model; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rlvlm_jax.convert", description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="Hugging Face directory or repository")
    parser.add_argument("--out", required=True, help="orbax directory to write; must not exist")
    arguments = parser.parse_args(argv)
    if Path(arguments.out).exists():
        raise InputError(f"--out={arguments.out} exists already; name a directory that does not")

    from rlvlm_jax import checkpoint, startup
    from rlvlm_jax.models import huggingface

    source = startup.open_source(arguments.source)
    if source.is_orbax:
        raise InputError(f"--source={arguments.source} is an orbax directory already")
    params, _ = huggingface.load_hf(source.directory, source.config)
    checkpoint.write_params(arguments.out, params, dict(source.files))
    return cli.DONE


if __name__ == "__main__":
    cli.exit_with(main)
