# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> Hugging Face: `python -m rlvlm_jax.export --checkpoint=RUN/checkpoints --out=DIR`.

Writes config.json, sharded safetensors with their index, and tokenizer and processor files, in the
form that transformers and vLLM load. Needs only the checkpoint.
"""

import argparse
from collections.abc import Sequence

from rlvlm_jax import cli

LOSSLESS = "lossless"


def main(argv: Sequence[str]) -> int:
    """Exports one checkpoint; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rlvlm_jax.export", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="RUN/checkpoints (the newest step), RUN/checkpoints/STEP, or what convert wrote",
    )
    parser.add_argument("--out", required=True, help="Hugging Face directory to write")
    parser.add_argument(
        "--dtype",
        default=LOSSLESS,
        choices=(LOSSLESS, "float32", "bfloat16", "float16"),
        help="dtype of the tensors; lossless (default): the dtype in config.json if it holds a "
        "tensor's values exactly, else float32",
    )
    arguments = parser.parse_args(argv)

    from rlvlm_jax import checkpoint, startup
    from rlvlm_jax.errors import InputError
    from rlvlm_jax.models import huggingface
    from rlvlm_jax.models.common import lora

    source = startup.open_source(arguments.checkpoint)
    if not source.is_orbax:
        raise InputError(
            f"--checkpoint={arguments.checkpoint} holds no checkpoint; name RUN/checkpoints, "
            "RUN/checkpoints/STEP, or a directory that rlvlm_jax.convert wrote"
        )
    params = lora.merge(checkpoint.restore_params(source.directory))
    dtypes = arguments.dtype
    if dtypes == LOSSLESS:
        dtypes = huggingface.lossless_dtypes(params, source.files)
    huggingface.save_hf(params, arguments.out, files=source.files, dtypes=dtypes)
    return cli.DONE


if __name__ == "__main__":
    cli.exit_with(main)
