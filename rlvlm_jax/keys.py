# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a configuration key is, and the keys of the modules at the top; folders have their own.

Imports nothing of JAX: the configuration is read before JAX is loaded.
"""

import dataclasses

Value = bool | int | float | str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Key:
    """A configuration key; its type is that of the default.

    Attributes:
        name: in its group.
        default: its value if nothing sets it.
        meaning: in a few words.
        choices: of a string, or of every name in a tuple; empty if free or in `validate.TABLES`.
        above: exclusive lower bound.
        least: inclusive lower bound.
        most: inclusive upper bound.
        unit: of a number.
        harmless: changes where and how fast a run runs, not what it does.
        per_host: may differ between hosts.
    """

    name: str
    default: Value
    meaning: str
    choices: tuple[str, ...] = ()
    above: float | None = None
    least: float | None = None
    most: float | None = None
    unit: str = ""
    harmless: bool = False
    per_host: bool = False

    @property
    def range(self) -> str:
        """What a number must be, in words; "" if any number will do."""
        if self.least is not None and self.most is not None:
            return f"between {self.least:g} and {self.most:g}"
        if self.above is not None:
            return f"greater than {self.above:g}"
        if self.least is not None:
            return f"at least {self.least:g}" if self.least else "not negative"
        return ""

    def allows(self, value: float) -> bool:
        """Returns whether a number lies in the range; NaN does in none."""
        return (
            (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
        )


RUN = (
    Key("mode", "rl", "what the run does", choices=("rl", "sft", "eval")),
    Key("seed", 0, "data order, sampling keys, random initialisation", least=0),
    Key(
        "seeds",
        1,
        "runs with seeds seed, seed + 1, ..., in sequence in WORKDIR/seed_N",
        above=0,
        harmless=True,
    ),
    Key("total_steps", 0, "one batch of prompts each; 0 = set by epochs", least=0, unit="steps"),
    Key("epochs", 1.0, "passes over data.train (without refills) if total_steps is 0", least=0),
    Key(
        "checkpoint_every",
        0,
        "0 = only at the end; -1 = every epoch",
        least=-1,
        unit="steps",
        harmless=True,
    ),
    Key("eval_every", 0, "0 = never; -1 = every epoch; also before step 1", least=-1, unit="steps"),
    Key(
        "cache",
        "~/.cache/rlvlm_jax",
        "directory of prompt lengths, and on GPU and TPU of compiled programs (in xla); empty = "
        "none",
        harmless=True,
        per_host=True,
    ),
)

TRAIN = (
    Key("minibatch", 64, "per optimizer step", above=0, unit="sequences"),
    Key(
        "microbatch",
        0,
        "per forward-backward pass; 0 = the whole minibatch",
        least=0,
        unit="sequences",
        harmless=True,
    ),
    Key(
        "logprob_batch",
        0,
        "most per log-prob pass; 0 = the whole batch",
        least=0,
        unit="sequences",
        harmless=True,
    ),
    Key(
        "pack_tokens",
        0,
        "RL: sequences are packed into streams of this length; 0 = off",
        least=0,
        unit="tokens",
        harmless=True,
    ),
    Key("epochs", 1, "passes over the collected batch", above=0),
    Key("lr", 1e-6, "learning rate at its peak", above=0),
    Key("warmup", 0.1, "fraction of all optimizer steps", least=0, most=1),
    Key("final_lr", 0.0, "fraction of lr that the cosine ends at; 1 = constant", least=0, most=1),
    Key("weight_decay", 0.01, "of matrices; never of adapters", least=0),
    Key("b1", 0.9, "AdamW: decay of the mean gradient", least=0, most=1),
    Key("b2", 0.95, "AdamW: decay of the mean square", least=0, most=1),
    Key("eps", 1e-8, "AdamW: added to the root", above=0),
    Key("grad_clip", 1.0, "global norm; 0 = off", least=0),
    Key(
        "parts",
        ("llm", "head"),
        "what is trained; llm includes the embedding; head needs llm, and a tied head is the "
        "embedding",
        choices=("vit", "connector", "llm", "head"),
    ),
    Key(
        "lora_rank",
        0,
        "train adapters of this rank for these parts; 0 = train the weights",
        least=0,
    ),
    Key("lora_alpha", 0.0, "adapters are scaled by lora_alpha / lora_rank; 0 = rank", least=0),
    Key("lr_vision", 0.0, "learning rate of vit and connector; 0 = lr", least=0),
)

SFT = (
    Key(
        "direct_share",
        0.0,
        "fraction of bare answers instead of worked solutions (bundled problems only)",
        least=0,
        most=1,
    ),
)

MESH = (
    Key("data", 1, "axis of sequences; -1 on one axis: what is left", above=0, unit="devices"),
    Key("fsdp", 1, "axis of sequences and of weights", above=0, unit="devices"),
    Key("sequence", 1, "axis of a sequence's tokens in the model", above=0, unit="devices"),
    Key("tensor", 1, "axis of heads and widths", above=0, unit="devices"),
)
MESH = tuple(dataclasses.replace(key, harmless=True) for key in MESH)

HOSTS = (  # for runs of several processes
    Key(
        "heartbeat_s",
        30.0,
        "a process silent for this long is lost, and the others exit",
        least=1,
        most=1e6,
        unit="s",
    ),
    Key(
        "start_s",
        300.0,
        "how long the first process to start waits for the others",
        least=1,
        most=1e6,
        unit="s",
    ),
    Key(
        "deadline_s",
        0.0,
        "after so long in a step or an evaluation, and again after the same time, every process "
        "writes its threads' stacks to stderr; the run continues; 0 = never",
        least=0,
        most=1e6,
        unit="s",
    ),
)
HOSTS = tuple(dataclasses.replace(key, harmless=True, per_host=True) for key in HOSTS)

LOG = (
    Key("keep_checkpoints", 2, "how many; older ones are deleted", above=0),
    Key(
        "checkpoints",
        "",
        "directory of this run's checkpoints alone, may be gs://BUCKET/DIRECTORY; empty = "
        "WORKDIR/checkpoints; everything else is written to WORKDIR",
    ),
    Key(
        "writers",
        ("progress", "tensorboard"),
        "beside metrics.jsonl: progress = a bar, on a terminal; prometheus = WORKDIR/metrics.prom, "
        "the newest numbers for node exporters; wandb = the project in WANDB_PROJECT",
        choices=("progress", "tensorboard", "prometheus", "wandb"),
    ),
    Key(
        "profile",
        0,
        "first of three steps that JAX's profiler traces to WORKDIR/profile; 0 = none",
        least=0,
        unit="steps",
    ),
)
LOG = tuple(dataclasses.replace(key, harmless=True) for key in LOG)
