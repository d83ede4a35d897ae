# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every configuration key with its default, unit and meaning; and validation.

A file in `configs/` starts from `default()` and states what differs. The dictionary is locked, so
a misspelt key is an error. `validate` reports all problems of a configuration at once, before
anything is allocated. This module knows nothing about models, data or devices.
"""

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from rlvlm_jax.errors import InputError
from rlvlm_jax.rewards.rules import FORMAT_STYLES, REWARDS

MODES = ("rl", "sft", "eval")
EVAL_SETTINGS = {  # name -> (samples k, temperature, top-p); the MAYE scheme
    "pass@1_t0.01": (1, 0.01, 0.001),
    "pass@1_t0.6": (1, 0.6, 1.0),
    "pass@8_t1.0": (8, 1.0, 1.0),
}
MAX_EVAL_SAMPLES = 256
HARMLESS = (  # keys or groups of keys that change where and how fast a run runs, not what it does
    *("seeds", "checkpoint_every", "mesh.", "hosts.", "log.", "data.workers", "data.index"),
    *("data.feature_cache_gib", "compile_cache", "rewards.workers", "model.attention"),
    *("model.remat", "rollout.layout"),
    *("train.microbatch", "train.logprob_batch", "train.logprob_chunk", "train.pack_tokens"),
)
# Keys or groups of keys that may differ between hosts.
PER_HOST = ("hosts.", "data.workers", "data.index", "rewards.workers", "compile_cache")
CHOICES = {
    "mode": MODES,
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "elementwise", "dots", "full"),
    "model.attention": ("auto", "plain", "xla", "cudnn", "splash"),
    "rollout.cache": ("model", "bfloat16", "int8"),
    "rollout.layout": ("auto", "train", "tensor", "replicated"),
    "data.on_bad_record": ("error", "skip"),
    "rewards.judge": ("strict", "maye", "mm_eureka"),
    "rewards.rounding": ("none", "reference", "both"),
    "rewards.format_style": FORMAT_STYLES,
    "algorithm.whiten": ("center", "scale", "none"),
    "algorithm.scale": ("group", "batch", "none"),
    "algorithm.old_logprobs": ("auto", "trainer", "sampler", "update"),
    "train.schedule": ("constant", "cosine"),
    "sft.style": ("worked", "mixed"),
}


_POSITIVE = (
    "seeds",
    "rollout.prompts",
    "rollout.samples",
    "rollout.max_tokens",
    "rollout.chunk",
    "train.minibatch",
    "train.epochs",
    "train.lr",
    "train.logprob_chunk",
    "train.max_bad_steps",
    "algorithm.whiten_parts",
    "data.buckets",
    "data.workers",
    "rewards.deadline_s",
    "mesh.data",
    "mesh.fsdp",
    "mesh.sequence",
    "mesh.tensor",
    "data.max_prompt_tokens",
    "log.keep_checkpoints",
    "train.eps",
)
_NOT_NEGATIVE = (
    "seed",
    "total_steps",
    "epochs",
    "rollout.temperature",
    "rollout.top_k",
    "train.microbatch",
    "train.logprob_batch",
    "train.pack_tokens",
    "train.weight_decay",
    "train.lora_rank",
    "train.lora_alpha",
    "train.lr_vit",
    "train.lr_connector",
    "train.lr_head",
    "train.grad_clip",
    "data.min_pixels",
    "data.max_pixels",
    "algorithm.clip_low",
    "algorithm.clip_high",
    "algorithm.dual_clip",
    "algorithm.is_cap",
    "algorithm.length_norm",
    "algorithm.kl_loss_coef",
    "algorithm.kl_reward_coef",
    "algorithm.entropy_coef",
    "rewards.overlong_tokens",
    "algorithm.eps",
    "algorithm.filter_refills",
    "eval.batch",
    "rewards.workers",
    "data.limit_eval",
    "data.feature_cache_gib",
    "log.token_prompts",
)
_FRACTIONS = (
    "rollout.top_p",
    "algorithm.gamma",
    "train.warmup",
    "train.final_lr",
    "sft.direct_share",
    "algorithm.adora_lambda",
    "algorithm.filter_low",
    "algorithm.filter_high",
    "train.b1",
    "train.b2",
)


def default() -> ConfigDict:
    """Returns the complete configuration with its default values, locked."""
    c = ConfigDict()
    c.mode = "rl"  # "rl", "sft" or "eval"
    c.seed = 0  # data order, sampling keys, random initialisation
    c.seeds = 1  # runs with seeds seed, seed + 1, ..., in sequence in WORKDIR/seed_N
    c.total_steps = 0  # loop steps, one batch of prompts each; 0 = set by `epochs`
    c.epochs = 1.0  # passes over data.train (without refills) if total_steps is 0
    c.checkpoint_every = 0  # steps; 0 = only at the end; -1 = every epoch
    c.eval_every = 0  # steps; 0 = never; -1 = every epoch. Also evaluates step 0
    # Directory that caches compiled programs; "" = none. "auto" = ~/.cache/rlvlm_jax/xla on GPU and
    # TPU, none on CPU: CPU binaries are machine-specific and home directories may be shared.
    c.compile_cache = "auto"

    c.model = ConfigDict()
    c.model.path = "bundled"  # Hugging Face directory or repository, or an orbax directory
    c.model.dtype = "float32"  # compute dtype; parameters and log-probs are always float32
    # What the backward pass recomputes to save memory: "none", "elementwise" (everything in a layer
    # except products), "dots" (everything except products with weights) or "full" (everything).
    c.model.remat = "elementwise"
    # Attention kernel for full sequences: "plain", "xla", "cudnn" (GPU, bfloat16) or "splash"
    # (TPU); "auto" = cudnn on GPUs if possible, splash on TPUs, plain on CPU.
    c.model.attention = "auto"
    c.model.random_init = False  # start from random weights with model.path's sizes

    c.data = ConfigDict()
    c.data.train = "bundled:train"  # jsonl file, `datasets` name or directory, or bundled:SPLIT
    c.data.val = ""
    c.data.test = ""
    c.data.test_ood = ""
    c.data.max_prompt_tokens = 2048  # with image tokens; longer prompts are dropped and counted
    c.data.on_bad_record = "error"  # "error" | "skip" (drop and count)
    c.data.min_pixels = 0  # per image; 0 = the limit in the model directory
    c.data.max_pixels = 0
    c.data.instruction = ""  # appended to every question on a new line
    c.data.system = ""  # system message; "" = the chat template's default
    c.data.buckets = 2  # number of static (prompt, patch) shapes chosen from the data
    c.data.workers = 2  # threads that read, decode and tokenise ahead of time
    c.data.index = "~/.cache/rlvlm_jax"  # cache of prompt lengths; "" = recount every time
    c.data.feature_cache_gib = 1.0  # host memory for features of frozen vision parts; 0 = none
    c.data.limit_eval = 0  # use only the first N evaluation questions; 0 = all

    c.rollout = ConfigDict()
    c.rollout.prompts = 16  # prompts per step (N)
    c.rollout.samples = 8  # responses per prompt (G)
    c.rollout.max_tokens = 64  # response limit (R)
    c.rollout.temperature = 1.0
    c.rollout.top_p = 1.0
    c.rollout.top_k = 0  # 0 = off
    # dtype of the KV cache: model.dtype ("model"), "bfloat16" or "int8", which takes a quarter of
    # float32's memory. Every decode step converts keys and values to model.dtype.
    c.rollout.cache = "model"
    # Sharding of the weights for decoding on several devices: "train", as in training, gathered for
    # every token; "replicated", whole on each device; "tensor", by heads, MLP width and vocabulary
    # over mesh.fsdp x mesh.tensor; "auto" = "replicated" up to 1 GiB of weights, else "tensor".
    c.rollout.layout = "auto"
    c.rollout.chunk = 16  # decode steps between checks whether every row has stopped

    c.rewards = ConfigDict()
    c.rewards.judge = "strict"
    c.rewards.rounding = "none"  # "reference": 6√5 is 13.4; "both": 13.42 is also 6√5
    # Weights of the rules that a score adds up; see REWARDS for what each rewards.
    c.rewards.rules = ConfigDict({name: rule.weight for name, rule in REWARDS.items()})
    c.rewards.format_style = "think"
    c.rewards.overlong_tokens = 0  # before rollout.max_tokens
    c.rewards.custom = ""  # "module:function", called as f(response, example) -> float
    c.rewards.custom_weight = 1.0
    c.rewards.penalty = -0.1  # the score of a truncated or empty response; 0 = off
    c.rewards.deadline_s = 5.0  # the most seconds per judged item
    c.rewards.workers = 2  # judging processes; 0 = one per core

    c.algorithm = ConfigDict()
    c.algorithm.advantage = "grpo"
    c.algorithm.whiten = "center"  # reinforce_pp: "center", "scale" (MAYE's code), "none"
    c.algorithm.gamma = 1.0  # reinforce_pp: discount per token
    c.algorithm.scale = "group"  # grpo: divisor of a centred score
    c.algorithm.eps = 1e-6  # grpo: added to the deviation
    c.algorithm.normalise = False  # group estimators: also whiten over all tokens of the batch
    c.algorithm.whiten_parts = 1  # whiten within this many equal parts of the batch (MAYE: 7 GPUs)
    c.algorithm.adora = False  # down-weight groups whose correct responses are not the longer ones
    c.algorithm.adora_lambda = 0.1  # their weight
    c.algorithm.loss = "ppo"
    c.algorithm.clip_low = 0.2
    c.algorithm.clip_high = 0.2
    c.algorithm.dual_clip = 0.0  # 0 = off
    c.algorithm.is_cap = 0.0  # cap of the sampler-to-trainer importance weight; 0 = off
    # Source of the ratio's old log-probs. "trainer": a pass before the update. "sampler": no pass;
    # in float32 on CPU they equal the trainer's. "update": no pass; for an update of one optimizer
    # step. "auto": "update" if possible, else "trainer". Without a pass, the difference between
    # sampler and trainer is measured on the first optimizer step's sequences.
    c.algorithm.old_logprobs = "auto"
    c.algorithm.aggregate = "token"
    c.algorithm.length_norm = 0  # aggregate="constant": divisor per sequence, in tokens; 0 = R
    c.algorithm.kl_loss_coef = 0.0  # 0 = no reference pass
    c.algorithm.kl_loss_kind = "k3"
    c.algorithm.kl_reward_coef = 0.0  # penalty in the return; group estimators: in the score
    c.algorithm.kl_reward_kind = "k1"
    c.algorithm.entropy_coef = 0.0  # bonus for entropy, mean over tokens, in nats
    c.algorithm.mask_truncated = False  # leave truncated responses out of the loss
    c.algorithm.flat_positions = False  # train (not sample) on 1-D positions, like MAYE's code
    c.algorithm.filter = False  # leave out groups with accuracy outside [low, high]
    c.algorithm.filter_refills = 0  # extra batches per step that replace left-out groups
    c.algorithm.filter_low = 0.1
    c.algorithm.filter_high = 0.9

    c.train = ConfigDict()
    c.train.minibatch = 64  # sequences per optimizer step
    c.train.microbatch = 0  # sequences per forward-backward pass; 0 = the whole minibatch
    c.train.logprob_batch = 0  # most sequences per log-prob pass; 0 = the whole batch
    c.train.logprob_chunk = 64  # response tokens per row whose logits exist at a time
    c.train.pack_tokens = 0  # RL: pack sequences into streams of this many tokens; 0 = off
    c.train.epochs = 1  # passes over the collected batch
    c.train.lr = 1e-6
    c.train.schedule = "cosine"
    c.train.warmup = 0.1  # fraction of all optimizer steps
    c.train.final_lr = 0.0  # fraction of lr at the end of the cosine
    c.train.weight_decay = 0.01
    c.train.b1 = 0.9
    c.train.b2 = 0.95
    c.train.eps = 1e-8
    c.train.grad_clip = 1.0  # global norm; 0 = off
    c.train.max_bad_steps = 5  # consecutive non-finite gradients before the run stops
    c.train.train_vit = False
    c.train.train_connector = False
    c.train.train_llm = True  # includes the embedding
    c.train.train_head = True  # with train_llm; a tied head is part of the embedding
    c.train.only = ""  # regular expression: of these parts, train only matching paths
    c.train.lora_rank = 0  # r: train adapters of this rank for these parts; 0 = train the weights
    c.train.lora_alpha = 0.0  # adapters are scaled by alpha / r; 0 = r
    c.train.lr_vit = 0.0  # learning rates per part; 0 = lr; a tied head uses the llm's
    c.train.lr_connector = 0.0
    c.train.lr_head = 0.0

    c.sft = ConfigDict()
    c.sft.style = "worked"  # "mixed": worked solutions and bare answers (bundled problems only)
    c.sft.direct_share = 0.6  # sft.style="mixed": fraction of bare answers

    c.mesh = ConfigDict()
    c.mesh.data = 1  # devices per axis; one axis may be -1: all remaining devices
    c.mesh.fsdp = 1
    c.mesh.sequence = 1  # shards the tokens of a sequence inside the model
    c.mesh.tensor = 1

    c.hosts = ConfigDict()  # for runs of several processes
    c.hosts.heartbeat_s = 30.0  # a process silent for this long is lost, and the others exit
    c.hosts.start_s = 300.0  # how long the first process to start waits for the others
    # If a step or an evaluation takes longer, every process writes its threads' stacks to stderr,
    # and repeats that after the same time; the run continues. 0 = never.
    c.hosts.deadline_s = 0.0

    c.eval = ConfigDict()
    c.eval.settings = ("pass@1_t0.01",)  # names from EVAL_SETTINGS
    c.eval.batch = 0  # prompts per evaluation batch; 0 = no more rows than in training
    c.eval.samples = 8  # responses per question for pass@8; more give unbiased estimates
    c.eval.samples_seed = 1234  # with config.seed: sampling keys, the same at every evaluation

    c.log = ConfigDict()
    c.log.keep_checkpoints = 2
    # Directory of the run's checkpoints, may be gs://BUCKET/DIRECTORY; "" = WORKDIR/checkpoints. No
    # other run may use it. Everything else is written to WORKDIR.
    c.log.checkpoints = ""
    c.log.rollouts = True  # write rollouts/STEP.jsonl
    c.log.token_prompts = 4  # prompts per step whose responses are also written token by token
    c.log.tensorboard = True
    c.log.prometheus = False  # WORKDIR/metrics.prom: the newest numbers, for node exporters
    c.log.profile = ""  # "FIRST-LAST": steps that JAX's profiler traces to WORKDIR/profile
    c.log.wandb = ""  # project name; "" = off
    c.log.progress = True  # progress bar, on a terminal
    return c.lock()


def variant(recipe: str, arg: str | None, known: Sequence[str]) -> tuple[str, bool]:
    """Reads a recipe's argument: VARIANT, `smoke`, or `VARIANT,smoke`.

    Args:
        recipe: file, for the error message.
        arg: the text after the colon, None if there is none.
        known: the variants; the first is the default.

    Returns:
        (variant, whether to use the bundled model and data).

    Raises:
        ValueError: there is no such variant.
    """
    name, _, suffix = (arg or "").partition(",")
    if name == "smoke" and not suffix:
        return known[0], True
    if (name and name not in known) or suffix not in ("", "smoke"):
        names = ", ".join(filter(None, known))
        raise ValueError(f"{recipe}:{arg}: use one of {names}, smoke, or VARIANT,smoke")
    return name or known[0], bool(suffix)


def smoke(config: ConfigDict) -> ConfigDict:
    """Switches a recipe to the bundled model and data without changing its algorithm.

    Sizes shrink to fit a laptop: prompts, tokens, steps and sequences per optimizer step.
    Advantage, loss, reward and schedule stay the same.

    Args:
        config: a recipe's configuration, changed in place.

    Returns:
        The same object.
    """
    config.model.path = "bundled"
    config.model.dtype = "float32"
    config.model.remat = "elementwise"
    config.model.attention = "auto"
    config.data.train, config.data.val = "bundled:train", "bundled:val"
    config.data.test, config.data.test_ood = "", ""
    config.data.min_pixels = config.data.max_pixels = 0
    config.data.max_prompt_tokens = 512
    config.data.limit_eval = 32
    config.data.instruction = config.data.system = ""
    updates = max(1, config.rollout.prompts * config.rollout.samples // config.train.minibatch)
    parts = config.algorithm.whiten_parts
    config.rollout.prompts = (32 if config.rollout.samples == 1 else 8) // parts * parts
    config.rollout.max_tokens = 48
    config.rewards.overlong_tokens = min(config.rewards.overlong_tokens, 16)
    rows = config.rollout.prompts * config.rollout.samples
    config.train.minibatch = max(config.rollout.samples, rows // min(updates, 4))
    config.train.microbatch = config.train.logprob_batch = config.train.pack_tokens = 0
    config.train.lr = max(config.train.lr, 1e-4)
    for axis in config.mesh:
        config.mesh[axis] = 1
    config.total_steps, config.seeds = 4, 1
    config.checkpoint_every = config.eval_every = 2
    config.eval.settings = ("pass@1_t0.01",)
    return config


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for every leaf."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def nearest_key(key: str) -> str:
    """Returns the valid dotted key that is most similar to `key`."""
    keys = [name for name, _ in flatten(default())]
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in keys}
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    leaf = difflib.get_close_matches(key.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.85)
    return by_leaf[leaf[0]] if leaf and "." not in key else close[0]


def shards(config: ConfigDict) -> int:
    """Returns how many devices the sequences of a batch are sharded over; needs `resolve_mesh`."""
    return config.mesh.data * config.mesh.fsdp * config.mesh.sequence


def pass_shards(config: ConfigDict) -> int:
    """Returns the same inside the model, where `mesh.sequence` shards the tokens instead."""
    return config.mesh.data * config.mesh.fsdp


def profiled_steps(config: ConfigDict) -> range:
    """Returns the steps that `log.profile` names.

    Raises:
        ValueError: it is neither "" nor FIRST-LAST.
    """
    if not config.log.profile:
        return range(0)
    first, last = map(int, config.log.profile.split("-"))
    if not 1 <= first <= last:
        raise ValueError(f"{first} to {last}")
    return range(first, last + 1)


def sequences(config: ConfigDict) -> int:
    """Returns B, the responses per step."""
    return config.rollout.prompts * config.rollout.samples


def microbatch(config: ConfigDict) -> int:
    """Returns the sequences per forward-backward pass, at most the minibatch."""
    return min(config.train.microbatch or config.train.minibatch, config.train.minibatch)


def old_logprobs(config: ConfigDict) -> str:
    """Returns `algorithm.old_logprobs` with "auto" resolved: "trainer", "sampler" or "update"."""
    chosen = config.algorithm.old_logprobs
    if chosen == "auto":
        one_step = config.train.epochs * sequences(config) == config.train.minibatch
        chosen = "update" if one_step and not config.algorithm.kl_reward_coef else "trainer"
    return chosen


def logprob_passes(config: ConfigDict) -> int:
    """Returns the number of equal parts that a step's prompts are split into for log-prob passes.

    This is the smallest number that gives each device the same number of prompts and each pass at
    most `train.logprob_batch` sequences; one prompt per device is the least, even if that is more.
    """
    most = config.train.logprob_batch or sequences(config)
    per_device = config.rollout.prompts // pass_shards(config)
    fitting = (
        passes
        for passes in range(1, per_device + 1)
        if per_device % passes == 0 and sequences(config) // passes <= most
    )
    return next(fitting, per_device)


def resolve_mesh(config: ConfigDict, devices: int) -> None:
    """Replaces a -1 in `config.mesh` by the number of remaining devices.

    Raises:
        InputError: two axes are -1, or the others do not divide the number of devices.
    """
    free = [axis for axis in config.mesh if config.mesh[axis] == -1]
    if len(free) > 1:
        raise InputError(f"config.mesh has -1 for {' and '.join(free)}; only one axis may be -1")
    if free:
        fixed = math.prod(config.mesh[axis] for axis in config.mesh if axis != free[0])
        if fixed < 1 or devices % fixed:
            raise InputError(
                f"config.mesh.{free[0]}=-1 cannot be resolved: the other axes take {fixed} of "
                f"{devices} devices"
            )
        config.mesh[free[0]] = devices // fixed


def eval_samples(config: ConfigDict, setting: str) -> int:
    """Returns the responses per question of a setting in EVAL_SETTINGS."""
    samples = EVAL_SETTINGS[setting][0]
    return samples if samples == 1 else config.eval.samples


def eval_batch(config: ConfigDict) -> int:
    """Returns the prompts of one evaluation batch, a multiple of the devices.

    By default an evaluation batch is no larger than training's: at most `rollout.prompts` prompts,
    and with every setting at most `rollout.prompts` x `rollout.samples` responses. One prompt per
    device is the least, even if that is more.
    """
    devices = shards(config)
    if config.eval.batch:
        return -(-config.eval.batch // devices) * devices
    samples = max((eval_samples(config, setting) for setting in config.eval.settings), default=1)
    prompts = min(config.rollout.prompts, sequences(config) // samples)
    return max(prompts // devices, 1) * devices


def _divisors(number: int, multiple: int = 1) -> str:
    """Returns the divisors of `number` that are multiples of `multiple`, as text."""
    divisors = [d for d in range(1, number + 1) if number % d == 0 and d % multiple == 0]
    shown = [str(d) for d in divisors]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-5:]]) or "none"


def _sign_problems(c: ConfigDict) -> Iterator[str]:
    """Yields a sentence for every number outside its range and every unknown choice."""
    from rlvlm_jax.algorithms import advantages, kl, losses  # load JAX, so only here

    values = dict(flatten(c))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"config.{key}={value} is not a finite number"
    for key in _POSITIVE:
        if not values[key] > 0:
            yield f"config.{key}={values[key]} must be greater than 0"
    for key in _NOT_NEGATIVE:
        if values[key] < 0:
            yield f"config.{key}={values[key]} must not be negative"
    for key in _FRACTIONS:
        if not 0 <= values[key] <= 1:
            yield f"config.{key}={values[key]} must be between 0 and 1"
    for key in ("checkpoint_every", "eval_every"):
        if values[key] < -1:
            yield f"config.{key}={values[key]} must be -1 (every epoch), 0 (never) or steps"
    tables = {
        "algorithm.advantage": advantages.ADVANTAGES,
        "algorithm.loss": losses.LOSSES,
        "algorithm.aggregate": losses.AGGREGATES,
        "algorithm.kl_loss_kind": kl.KL,
        "algorithm.kl_reward_kind": kl.KL,
    }
    for key, allowed in (CHOICES | tables).items():
        if values[key] not in allowed:
            yield f"config.{key}={values[key]!r} is not one of {', '.join(allowed)}"
    if not 8 <= c.eval.samples <= MAX_EVAL_SAMPLES:
        yield f"config.eval.samples={c.eval.samples} must be between 8 and {MAX_EVAL_SAMPLES}"
    for name in c.eval.settings:
        if name not in EVAL_SETTINGS:
            yield f"config.eval.settings has {name!r}; known are {', '.join(EVAL_SETTINGS)}"


def _shape_problems(c: ConfigDict) -> Iterator[str]:
    """Yields a sentence for every size that does not divide another one as required."""
    rows, mini, micro = sequences(c), c.train.minibatch, microbatch(c)
    devices, in_pass = shards(c), pass_shards(c)
    if c.mode == "sft":
        rows = mini  # one optimizer step per batch
    if rows % mini:
        yield (
            f"config.train.minibatch={mini} does not divide the {rows} sequences of a step "
            f"(config.rollout.prompts x config.rollout.samples); use one of {_divisors(rows)}"
        )
    if mini % micro:
        yield (
            f"config.train.microbatch={micro} does not divide config.train.minibatch={mini}; "
            f"use one of {_divisors(mini, in_pass)}"
        )
    elif micro % in_pass:
        yield (
            f"a pass of {micro} sequences (config.train.microbatch, or config.train.minibatch "
            f"if that is 0) does not divide over config.mesh.data x config.mesh.fsdp = "
            f"{in_pass} devices; use a multiple of {in_pass}"
        )
    elif c.mode == "sft" and mini % devices:
        yield (
            f"config.train.minibatch={mini} does not divide over config.mesh.data x "
            f"config.mesh.fsdp x config.mesh.sequence = {devices} devices; use a multiple of "
            f"{devices}"
        )
    for key, tokens in (
        ("rollout.max_tokens", c.rollout.max_tokens),
        ("train.pack_tokens", c.train.pack_tokens),
    ):
        if tokens % c.mesh.sequence:
            yield (
                f"config.{key}={tokens} does not divide over config.mesh.sequence="
                f"{c.mesh.sequence}; use a multiple of it"
            )
    if 0 < c.train.pack_tokens <= c.rollout.max_tokens:
        yield (
            f"config.train.pack_tokens={c.train.pack_tokens} has no room for a prompt and "
            f"config.rollout.max_tokens={c.rollout.max_tokens}; use at least the longest prompt's "
            "tokens and config.rollout.max_tokens together, or 0"
        )
    if c.mode == "rl" and c.rollout.prompts % devices:
        yield (
            f"config.rollout.prompts={c.rollout.prompts} does not divide over config.mesh.data x "
            f"config.mesh.fsdp x config.mesh.sequence = {devices} devices; use a multiple of "
            f"{devices}"
        )


def _recipe_problems(c: ConfigDict) -> Iterator[str]:
    """Yields a sentence for every combination that makes no sense."""
    from rlvlm_jax.algorithms.advantages import ADVANTAGES  # loads JAX, so only here

    grouped = ADVANTAGES[c.algorithm.advantage].grouped
    if c.mode == "rl" and grouped and c.rollout.samples < 2:
        yield (
            f"config.algorithm.advantage={c.algorithm.advantage!r} compares the samples of a "
            f"prompt, so config.rollout.samples={c.rollout.samples} must be at least 2"
        )
    if c.algorithm.normalise and not grouped:
        yield (
            "config.algorithm.normalise is for the group estimators; with "
            f"{c.algorithm.advantage} use config.algorithm.whiten"
        )
    if c.mode == "rl" and c.rollout.prompts % c.algorithm.whiten_parts:
        yield (
            f"config.algorithm.whiten_parts={c.algorithm.whiten_parts} does not divide "
            f"config.rollout.prompts={c.rollout.prompts}; use one of {_divisors(c.rollout.prompts)}"
        )
    if c.rewards.rules.overlong and not 1 <= c.rewards.overlong_tokens <= c.rollout.max_tokens:
        yield (
            f"config.rewards.overlong_tokens={c.rewards.overlong_tokens} must be between 1 and "
            f"config.rollout.max_tokens={c.rollout.max_tokens} if config.rewards.rules.overlong is "
            "set"
        )
    if c.algorithm.old_logprobs == "update":
        if c.train.epochs * sequences(c) != c.train.minibatch:
            yield (
                "config.algorithm.old_logprobs='update' is for one optimizer step per batch; set "
                f"config.train.minibatch={sequences(c)} and config.train.epochs=1, or use 'auto'"
            )
        if c.algorithm.kl_reward_coef:
            yield (
                "config.algorithm.old_logprobs='update' comes too late for "
                f"config.algorithm.kl_reward_coef={c.algorithm.kl_reward_coef}; use 'auto'"
            )
    if c.algorithm.old_logprobs == "sampler":
        if c.algorithm.is_cap:
            yield (
                f"config.algorithm.is_cap={c.algorithm.is_cap} compares the trainer's old "
                "log-probs with the sampler's; use config.algorithm.old_logprobs='trainer'"
            )
        if c.model.dtype != "float32" or c.rollout.cache != "model":
            yield (
                f"config.model.dtype={c.model.dtype!r} and config.rollout.cache="
                f"{c.rollout.cache!r} would train on rounding errors with "
                "config.algorithm.old_logprobs='sampler'; use 'trainer'"
            )
        if c.algorithm.flat_positions:
            yield (
                "config.algorithm.flat_positions makes the trainer's model differ from the "
                "sampler's; use config.algorithm.old_logprobs='trainer'"
            )
    if c.algorithm.dual_clip and c.algorithm.dual_clip <= 1:
        yield f"config.algorithm.dual_clip={c.algorithm.dual_clip} must be 0 (off) or above 1"
    if c.train.pack_tokens and c.algorithm.aggregate == "microbatch":
        yield (
            "config.algorithm.aggregate='microbatch' averages micro-batches with a fixed number of "
            "sequences, but config.train.pack_tokens packs a varying number; change one of them"
        )
    if c.algorithm.filter_refills and not c.algorithm.filter:
        yield (
            f"config.algorithm.filter_refills={c.algorithm.filter_refills} needs "
            "config.algorithm.filter=True"
        )
    if c.algorithm.filter_low > c.algorithm.filter_high:
        yield "config.algorithm.filter_low is above config.algorithm.filter_high"
    if c.mode == "rl" and c.rollout.temperature == 0:
        yield (
            "config.rollout.temperature=0 samples the same response every time; "
            "RL needs a value above 0"
        )
    if c.mode != "eval" and not (c.train.train_vit or c.train.train_connector or c.train.train_llm):
        yield (
            "nothing is trained: set config.train.train_vit, config.train.train_connector or "
            "config.train.train_llm to True"
        )
    try:
        re.compile(c.train.only)
    except re.error as error:
        yield f"config.train.only={c.train.only!r} is not a regular expression: {error}"
    if c.data.min_pixels and c.data.max_pixels and c.data.min_pixels > c.data.max_pixels:
        yield (
            f"config.data.min_pixels={c.data.min_pixels} is above "
            f"config.data.max_pixels={c.data.max_pixels}"
        )
    try:
        profiled_steps(c)
    except ValueError:
        yield (
            f"config.log.profile={c.log.profile!r} is not of the form FIRST-LAST, such as '5-7', "
            "with steps from 1"
        )
    checkpoints = c.log.checkpoints
    if re.match(r"\w+:/|gs//", checkpoints) and not re.match("gs://[^/]+/.", checkpoints):
        yield (
            f"config.log.checkpoints={c.log.checkpoints!r} is neither a path nor of the form "
            "gs://BUCKET/DIRECTORY"
        )
    if not c.model.path:
        yield "config.model.path is empty; name a Hugging Face directory or repository"
    if c.mode != "eval" and not c.data.train:
        yield "config.data.train is empty; name a jsonl file, a data set, or bundled:train"
    if c.mode != "eval" and not c.total_steps and not c.epochs:
        yield "config.total_steps and config.epochs are both 0; set one of them"
    if c.eval_every and not (c.data.val or c.data.test or c.data.test_ood):
        yield f"config.eval_every={c.eval_every} but config.data.val and config.data.test are empty"
    if c.mode == "sft" and c.sft.style == "mixed" and not c.data.train.startswith("bundled:"):
        yield (
            f"config.sft.style='mixed' needs the bundled problems, not config.data.train="
            f"{c.data.train!r}; use config.sft.style='worked'"
        )
    if c.rewards.custom and c.rewards.custom.count(":") != 1:
        yield f"config.rewards.custom={c.rewards.custom!r} is not of the form module:function"


def check_hosts(config: ConfigDict) -> None:
    """Checks `config.hosts`, which is used before the number of devices is known.

    Raises:
        InputError: one sentence per problem.
    """
    limits = {"heartbeat_s": 1, "start_s": 1, "deadline_s": 0}
    problems = [
        f"config.hosts.{key}={config.hosts[key]:g} is not between {least} and 1e6 seconds"
        for key, least in limits.items()
        if not least <= config.hosts[key] <= 1e6
    ]
    if problems:
        raise InputError("; ".join(problems))


def validate(config: ConfigDict, devices: int) -> None:
    """Checks a whole configuration, and resolves a -1 in `config.mesh`.

    Args:
        config: changed in place.
        devices: number of devices.

    Raises:
        InputError: one sentence per problem.
    """
    check_hosts(config)
    resolve_mesh(config, devices)
    problems = list(_sign_problems(config))
    if not problems:
        problems = [*_shape_problems(config), *_recipe_problems(config)]
    if problems:
        raise InputError("; ".join(problems))
