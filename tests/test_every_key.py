# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every configuration key changes something: what, is said in a table with a row for each.

A case is two values of one key, everything else alike, and an observer: a function of the
configuration that lets a part of the product work and returns what came of it, such as the text of
a compiled program, the numbers of a step, or the files of a run. That must differ for the two
values; and must not differ for one value observed twice, or it would prove nothing. The network is
one of a few matrices, except where its own keys are asked about.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import math
import re
import shutil
import signal
import sys
import types
import zlib
from importlib.machinery import ModuleSpec
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from rlvlm_jax import (
    cli,
    compiled_steps,
    config,
    distributed,
    evaluate,
    main,
    optim,
    rewards,
    run,
    selection,
    sft,
    sharding,
    startup,
    train,
    writers,
)
from rlvlm_jax.data.tokenizer import Tokenizer
from rlvlm_jax.errors import InputError
from rlvlm_jax.evaluation import scheme
from rlvlm_jax.models import families
from rlvlm_jax.models.common import cache, lora
from rlvlm_jax.models.qwen2_vl.model import part
from rlvlm_jax.rewards import pool
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.types import Passes, Rollout, Trajectory
from rlvlm_jax.update import Denominators, Setup, cut, init_state, minibatch_order, rl_loss
from tests import tiny_model
from tests.run_cases import read_lines, write_problems, write_records
from tests.run_directories import write_run

SOURCE = startup.open_source("bundled")
BUILD = families.build
READ_TOKENIZER = functools.cache(Tokenizer.load)
WIDTH = 4
OF_THE_CLOCK = ("time/", "goodput/", "throughput/", "memory/", "compile/", "wall_s")
PATCHES = pytest.MonkeyPatch.context


# ---- a network of a few matrices -------------------------------------------------------------


def build_toy(model_config, **_):
    """Returns a `models.Model` with weights in every part; what it computes is of no meaning."""
    layers, words = model_config.layers, model_config.vocab_size

    def init(key):
        start = jax.random.uniform(key)

        def draw(*shape):
            return jnp.sin(start + jnp.arange(math.prod(shape))).reshape(shape)

        return {
            "vision": {
                "blocks": {"attn": {"proj": {"weight": draw(layers, WIDTH, WIDTH)}}},
                "merger": {"fc1": {"weight": draw(WIDTH, WIDTH)}},
            },
            "language": {
                "embed": {"embedding": draw(words, WIDTH)},
                "layers": {"attn": {"q": {"weight": draw(layers, WIDTH, WIDTH)}}},
                "head": {"weight": draw(words, WIDTH)},
            },
        }

    def encode_images(params, batch):
        blocks, merger = params["vision"]["blocks"], params["vision"]["merger"]
        seen = batch.media.pixels[:, ::4, :WIDTH].astype(jnp.float32)
        return seen @ blocks["attn"]["proj"]["weight"].sum(axis=0) @ merger["fc1"]["weight"]

    def read(params, tokens):
        language = params["language"]
        embedded = language["embed"]["embedding"][tokens]
        return embedded @ language["layers"]["attn"]["q"]["weight"].sum(axis=0)

    def prefill(params, batch, features):
        hidden = read(params, batch.tokens[:, -1]) + features.sum(axis=1)
        nothing = jnp.zeros((len(hidden), 1, 1, 1))
        return hidden, (cache.stored(nothing, nothing, "model"),)

    def decode(params, tokens, rotary, prefix, prefix_mask, kept, step):
        return read(params, tokens), kept

    def forward(params, batch, features, tokens, mask):
        samples = tokens.shape[0] // batch.tokens.shape[0]
        return read(params, tokens) + jnp.repeat(features.sum(axis=1), samples, axis=0)[:, None]

    def packed(params, batch, features, tokens, source):
        placed = jnp.concatenate([batch.tokens.reshape(-1), tokens.reshape(-1)])
        return read(params, placed[source]) + features.sum(axis=(0, 1))

    def logits(params, hidden):
        return hidden @ params["language"]["head"]["weight"].T

    return dataclasses.replace(
        BUILD(model_config),
        init=init,
        encode_images=encode_images,
        prefill=prefill,
        decoder=lambda params: params,
        decode=decode,
        forward=forward,
        packed=packed,
        next_logits=logits,
        logits=logits,
    )


def stored_weights(session, source):
    """Stands for `startup.load_params`."""
    return jax.tree.map(lambda s: jnp.full(s.shape, 0.5), lora.drop(session.shapes))


def plain(tree):
    """Returns shapes and digests for arrays, so that they compare and print."""
    return jax.tree.map(lambda x: (x.shape, zlib.crc32(np.asarray(x).tobytes())), tree)


# ---- observers: compiled programs, as text -----------------------------------------------------


def text(function, *arguments):
    """Returns the program of a jitted function, without the addresses in it, and its constants."""
    program = function.trace(*arguments).jaxpr
    constants = [plain(np.asarray(value)) for value in program.consts]
    return re.sub(r"0x[0-9a-f]+", "", str(program)), constants


def traced(c, name):
    """Returns the text of one of `Steps` as `make_steps` makes them, or of the loss."""
    session = startup.open_session(c, SOURCE)
    optimizer, _ = optim.make_optimizer(c.train, 10, session.model.part)
    chosen = optim.make_trained(c.train, session.model.part)
    state = jax.eval_shape(lambda params: init_state(params, optimizer, chosen), session.shapes)
    whole = sharding.replicated(session.mesh)
    state = sharding.with_shardings(state, jax.tree.map(lambda _: whole, state))
    setup = Setup(session.model, c, Policy(), optimizer, session.mesh)
    functions = {
        "loss": jax.jit(functools.partial(rl_loss, setup)),
        **vars(compiled_steps.make_steps(session, optimizer, state)),
    }

    shape = jax.ShapeDtypeStruct
    prompts, rows, length = c.rollout.prompts, config.sequences(c), c.rollout.max_tokens
    batch = session.batch_shapes(prompts, (32, 16))
    features = shape((prompts, 4, WIDTH), np.float32) if session.features_frozen else None
    tokens, mask, numbers = (shape((rows, length), kind) for kind in (np.int32, bool, np.float32))
    flags, score, count = shape((rows,), bool), shape((rows,), np.float32), shape((), np.float32)
    version = shape((rows,), np.int32)
    rollout = Rollout(tokens, mask, mask, numbers, flags, version)
    judged = Trajectory(batch, features, tokens, *3 * [mask], *4 * [numbers])
    reference = state.params if compiled_steps.needs_reference(c) else None
    key = jax.random.key(0)
    prompt_mask, lengths = np.ones((prompts, 32), bool), np.zeros(rows, int)
    planner = compiled_steps.make_planner(session)
    plan = planner.for_passes(prompt_mask, lengths)
    order = minibatch_order(c, key)
    plans = planner.for_update(prompt_mask, lengths, np.asarray(order))
    minibatches = cut(c, order, plans)
    piece = jax.tree.map(lambda x: x[0, 0], minibatches.pieces)
    frozen = jax.tree.map(lambda _: None, state.params)
    arguments = {
        "encode": (state.params, batch),
        "sample": (state.params, state.step, batch, features, key, np.uint32(0)),
        "passes": (state.params, reference, batch, features, rollout, plan),
        "trajectory": (batch, features, rollout, Passes(*4 * [numbers]), score, flags),
        "loss": (judged, Denominators(count, count, count), frozen, state.params, piece),
        "update": ((state, judged), minibatches),
    }
    return text(functions[name], *arguments[name])


def sampler(c):
    return traced(c, "sample")


def passes(c):
    return traced(c, "passes")


def trajectory(c):
    return traced(c, "trajectory")


def loss(c):
    return traced(c, "loss")


def update(c):
    return traced(c, "update")


@functools.cache
def network_shapes():
    return jax.eval_shape(BUILD(SOURCE.config).init, jax.random.key(0))


def vision_tower(c):
    """Of the real network, whose initialisation takes long to trace."""

    def build(model_config, **more):
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), network_shapes())
        return dataclasses.replace(BUILD(model_config, **more), init=lambda key: zeros)

    with PATCHES() as patch:
        patch.setattr(families, "build", build)
        return traced(c, "encode")


def kept_for_decoding(c):
    """Of the real network: the types of what `prefill` hands to `decode`."""
    with PATCHES() as patch:
        patch.setattr(families, "build", BUILD)
        session = startup.open_session(c, SOURCE)
    batch = session.batch_shapes(2, (32, 16))
    features = jax.ShapeDtypeStruct((2, 4, SOURCE.config.width), np.float32)
    _, prefix = jax.eval_shape(session.model.prefill, network_shapes(), batch, features)
    return [x.dtype.name for x in jax.tree.leaves(prefix[0])]


def laid_for_decoding(c):
    """Of the real network over two devices: its decoder, with the configured sharding."""
    c.mesh.fsdp = 2
    with PATCHES() as patch:
        patch.setattr(families, "build", BUILD)
        session = startup.open_session(c, SOURCE)
    return str(jax.make_jaxpr(session.model.decoder)(network_shapes()))


def minibatches(c):
    """The sequences of every optimizer step of an update."""
    order = minibatch_order(c, jax.random.key(0))
    return cut(c, order, None).rows.tolist()


# ---- observers: numbers ------------------------------------------------------------------------


def kept(c):
    """Groups of four with none to all right."""
    accuracy = np.array([0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1], np.float32)
    return selection.kept_groups(c, accuracy).tolist()


def rounds(c):
    """How many batches are sampled where no group is kept."""
    drawn = []
    while not selection.is_enough(c, drawn):
        drawn.append(types.SimpleNamespace(keep=np.zeros(c.rollout.prompts, bool)))
    return len(drawn)


def moves(c):
    """Three optimizer steps, with a large gradient between small ones."""
    some = {"weight": jnp.array([[1.0, -2.0]])}
    weights = {
        "vision": {"blocks": some, "merger": some},
        "language": {"layers": some, "head": some},
    }
    optimizer, _ = optim.make_optimizer(c.train, 10, part)
    state, found = optimizer.init(weights), []
    for size in (0.1, 10.0, -1.0):
        gradient = jax.tree.map(lambda x, size=size: size * x, weights)
        step, state = optimizer.update(gradient, state, weights)
        found.append(plain(step))
    return found


ANSWERS = (  # response, solution, whether truncated, its tokens
    ("<think>3*2=6</think> \\boxed{6}", "\\boxed{6}", False, 5),
    ("<think>3*2=6</think> <answer>\\boxed{6}</answer>", "\\boxed{6}", False, 4),
    ("对 \\boxed{6}", "\\boxed{6}", False, 4),
    ("\\boxed{1" + 20 * " and so on" + "}", "\\boxed{6}", False, 5),
    ("\\boxed{0.3334}", "\\boxed{\\frac{1}{3}}", False, 3),
    ("\\boxed{13.42}", "\\boxed{6\\sqrt{5}}", False, 3),
    ("\\boxed{60^\\circ", "\\boxed{60^\\circ}", False, 3),
    ("\\boxed{6}", "\\boxed{6}", True, 6),
    ("\\boxed{6}", "\\boxed{6}", False, 1),
)
CUSTOM = """
import time

def length(response, example):
    return float(len(response))

def late(response, example):
    if "so on" in response:
        time.sleep(1)
    return 1.0
"""


def scores(c):
    """What `ANSWERS` earn."""
    Path("mine.py").write_text(CUSTOM)
    texts, solutions, truncated, lengths = zip(*ANSWERS, strict=True)
    examples = [{"solution": solution} for solution in solutions]
    limit = c.rollout.max_tokens
    found = rewards.score(texts, examples, truncated, lengths, c.rewards, limit)
    return found.score.tolist(), found.status, found.custom_timeouts, found.custom_errors


def judging_processes(c):
    used = []

    def instead(self, function, items, deadline_s):
        used.append(self.workers)
        return [pool.LOST] * len(items)

    with PATCHES() as patch:
        patch.setattr(pool, "_shared", None)
        patch.setattr(pool.Pool, "map", instead)
        scores(c)
    return used


# ---- observers: what a run reads ----------------------------------------------------------------


@contextlib.contextmanager
def opened(c):
    this = run.Run(c, "run")
    try:
        yield this
    finally:
        this.loader.close()


def data_flow(c):
    """The first batch for training, all questions, and what was dropped; or what is refused."""
    try:
        with opened(c) as this:
            examples, batch = this.loader.next()
            questions = {
                split: [([one.id for one in found], plain(asked)) for _, found, asked in questions]
                for split, questions in this.evaluation_sets.items()
            }
    except InputError as refused:
        return str(refused)
    return {
        "train": [(one.id, one.solution) for one in examples],
        "batch": plain(batch),
        "buckets": this.loader.buckets,
        "questions": questions,
        "reports": this.reports,
        "kept for the next start": len(list(Path().glob("cache/*"))),
    }


def data_flow_of_images(c):
    write_problems(Path(), count=12)
    return data_flow(c)


def data_flow_with_a_bad_record(c):
    write_problems(Path(), count=12)
    write_records(Path("problems.jsonl"), [*read_lines("problems.jsonl"), "{"])
    return data_flow(c)


def data_flow_with_a_damaged_image(c):
    write_problems(Path(), count=5)
    image = Path("0.png")
    image.write_bytes(image.read_bytes()[:200])
    return data_flow(c)


def reading_threads(c):
    used, options = [], grain.ReadOptions

    def instead(num_threads, **more):
        used.append(num_threads)
        return options(num_threads=num_threads, **more)

    with PATCHES() as patch:
        patch.setattr(grain, "ReadOptions", instead)
        data_flow(c)
    return used


def network(c):
    """The sizes of the model that a run takes; beside the bundled one there is "deeper"."""
    shutil.copytree(SOURCE.directory, "deeper")
    file = Path("deeper/config.json")
    file.write_text(re.sub(r'("num_hidden_layers": )\d+', r"\g<1>7", file.read_text()))
    with opened(c) as this:
        return this.session.source.config


def first_weights(c):
    return plain(startup.initial_params(startup.open_session(c, SOURCE)))


def adapters(c):
    """The program that puts them beside the weights."""
    session = startup.open_session(c, SOURCE)
    add = jax.jit(functools.partial(startup.add_adapters, c, session.model))
    return text(add, lora.drop(session.shapes), jax.random.key(0))


def connection(c):
    """How the processes of a run are connected."""
    used = {}
    with PATCHES() as patch:
        for name, value in (("COORDINATOR_ADDRESS", "host:1"), ("NUM_PROCESSES", "2")):
            patch.setenv(f"JAX_{name}", value)
        patch.setenv("JAX_PROCESS_ID", "1")
        patch.setattr(jax.distributed, "initialize", used.update)
        patch.setattr(jax.config, "update", lambda *_: None)
        distributed.start(c.hosts)
    return used


def deadlines(c):
    """After how long a run says where it hangs."""
    used = []
    with PATCHES() as patch:
        patch.setattr(faulthandler, "dump_traceback_later", lambda s, repeat: used.append(s))
        loop(c)
    return used


def kept_programs(c):
    """Where JAX keeps compiled programs once a session is open."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    try:
        with PATCHES() as patch:
            patch.setattr(jax, "default_backend", lambda: "gpu")
            startup.cache_programs(c.cache)
        kept = jax.config.jax_compilation_cache_dir
        return kept and Path(kept).relative_to(Path.cwd())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def shard_shapes(c):
    """What each device holds of the parameters and of a batch."""
    session = startup.open_session(c, SOURCE)
    batch = session.batch_shapes(c.rollout.prompts, (32, 16))
    return [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves((session.shapes, batch))]


# ---- observers: what a run does -----------------------------------------------------------------


def programs(c):
    """The programs that the command starts, and what it sums up."""
    started = []

    def program(name):
        def start(one, place):
            started.append((name, one.seed, place))
            write_run(Path(place), seed=one.seed, evaluations=[(0, "val", [1, 0])])
            return True

        return start

    with PATCHES() as patch:
        patch.setattr(cli, "parse_config", lambda *_: (c, "run"))
        for module, name in ((train, "train"), (sft, "train"), (evaluate, "evaluate")):
            patch.setattr(module, name, program(module.__name__))
        main.main([])
    return started, Path("run/summary.json").is_file()


def loop(c):
    """What lies in the directory of a training run, whose compiled programs are stand-ins.

    Their responses are drawn from the key of the step, and every update is a bad one.
    """

    def stand_ins(session, optimizer, state):
        shape = config.sequences(c), c.rollout.max_tokens
        zeros, everywhere = np.zeros(shape, np.float32), np.ones(shape, bool)

        def sample(params, version, batch, features, key, number):
            draws = np.random.default_rng([*jax.random.key_data(key).tolist(), int(number)])
            tokens = draws.integers(0, 500, shape)
            return Rollout(tokens, everywhere, everywhere, zeros, everywhere[:, 0], zeros[:, 0])

        def encode(params, batch):
            encoded.append(batch.tokens.shape)
            shape = jax.eval_shape(session.model.encode_images, session.shapes, batch)
            return jnp.zeros(shape.shape, shape.dtype)

        def update(carry, minibatches):
            state, trajectory = carry
            taken = len(minibatches.rows)
            state = state._replace(step=state.step + taken, bad_steps=state.bad_steps + taken)
            return (state, trajectory), {"loss": np.zeros(taken), "skipped": np.zeros(taken)}

        return compiled_steps.Steps(
            encode=encode,
            sample=sample,
            passes=lambda *_: Passes(zeros, None, zeros, zeros),
            trajectory=lambda *_: (Trajectory(*3 * [None], *3 * [everywhere], *4 * [zeros]), {}),
            update=update,
        )

    ended, encoded = "", []
    with PATCHES() as patch:
        patch.setattr(train, "make_steps", stand_ins)
        patch.setattr(train, "compile_steps", lambda steps, *_: steps)
        patch.setattr(scheme, "make_evaluate_fn", lambda *_: lambda *_: ())
        try:
            train.train(c, "run")
        except FloatingPointError as error:
            ended = str(error)
    return {
        "ended": ended,
        "encoded": encoded,
        "beside": sorted(path.name for path in Path("run").iterdir()),
        **written(),
    }


def written():
    """Returns the records and the numbers of the checkpoints of the run in "run"."""
    place = Path("run")
    lines = [
        {name: value for name, value in line.items() if not name.startswith(OF_THE_CLOCK)}
        for line in read_lines(place / "metrics.jsonl")
    ]
    files = [*place.glob("rollouts/*"), *place.glob("eval/*")]
    return {
        "lines": lines,
        "responses": {file.name: read_lines(file) for file in sorted(files)},
        "checkpoints": sorted(path.name for path in place.glob("checkpoints/*")),
    }


def drawn(c):
    """The responses of the first step alone."""
    return [row["response"] for row in loop(c)["responses"]["1.jsonl"]]


def evaluation(c):
    """What lies in the directory of an evaluation, whose sampler says with what it was called."""

    def stand_in(model, settings):
        def sample(params, batch, features, keys):
            numbers = jax.random.key_data(keys)[:, -1:] + round(100 * settings.temperature)
            tokens = (numbers % 500).astype(np.int32)
            everywhere = jnp.ones(tokens.shape, bool)
            zeros = jnp.zeros(tokens.shape)
            return Rollout(tokens, everywhere, everywhere, zeros, everywhere[:, 0], zeros[:, 0])

        return sample

    with PATCHES() as patch:
        patch.setattr(scheme, "make_sample_fn", stand_in)
        evaluate.evaluate(c, "run")
    return written()


def judged(c):
    """The rules by which an evaluation's answers are judged."""
    asked = []

    def instead(texts, *_, rules, **__):
        asked.append(rules)
        return [rewards.Verdict(False, "ok")] * len(texts)

    with PATCHES() as patch:
        patch.setattr(rewards, "judge_batch", instead)
        evaluation(c)
    return asked


def shown(c):
    """What reaches TensorBoard's directory, W&B and the terminal."""
    wandb, asked, terminal = types.ModuleType("wandb"), [], StringIO()
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.init = lambda **given: (
        asked.append(given["project"])
        or types.SimpleNamespace(
            log=lambda values, step: asked.append((values, step)), finish=lambda: None
        )
    )
    with PATCHES() as patch:
        patch.setitem(sys.modules, "wandb", wandb)
        screen = functools.partial(Console, file=terminal, force_terminal=True)
        patch.setattr(writers, "Console", lambda stderr: screen())
        writers.check_writers(c.log)
        shows = writers.Writers(c.log, "run", 3, {})
        shows.write(1, {"update/loss": 0.5}, note="")
        shows.close()
    return asked, bool(terminal.getvalue())


# ---- the table ----------------------------------------------------------------------------------


class Case(NamedTuple):
    """Two values of a key, and what tells them apart where the settings `base` make it matter."""

    one: object
    other: object
    observe: object
    base: dict


def case(one, other, observe, **base):
    return Case(one, other, observe, base)


FAST = {  # under every case: four prompts of four samples, six tokens each, and
    "data__train": "bundled:train:12",
    "data__val": "bundled:val:3",
    "cache": "",
    "log__writers": (),
}
ON_FILE = {"data__train": "problems.jsonl"}
SFT = {"mode": "sft", "rollout__max_tokens": 64}
PLUS_PLUS = {"algorithm__advantage": "reinforce_pp"}
SAMPLED = {"mode": "eval", "eval__settings": ("pass@1_t0.6",)}

CASES = {
    "mode": [case("rl", "sft", programs), case("rl", "eval", programs)],
    "seed": [
        case(0, 1, data_flow),
        case(0, 1, drawn),
        case(0, 1, first_weights, model__random_init=True),
        case(0, 1, evaluation, **SAMPLED),
    ],
    "seeds": [case(1, 2, programs)],
    "total_steps": [case(0, 2, loop)],
    "epochs": [case(1.0, 0.5, loop)],
    "checkpoint_every": [case(0, 2, loop)],
    "eval_every": [case(0, 2, loop)],
    "cache": [
        case("", "cache", kept_programs),
        case("", "cache", data_flow_of_images, **ON_FILE),
    ],
    # the model
    "model.path": [case("bundled", "deeper", network)],
    "model.dtype": [case("float32", "bfloat16", vision_tower)],
    "model.remat": [case("elementwise", other, vision_tower) for other in ("none", "dots", "full")],
    "model.attention": [case("auto", "xla", vision_tower)],
    "model.random_init": [case(False, True, first_weights)],
    # data
    "data.train": [case("bundled:train:12", "bundled:test:12", data_flow)],
    "data.val": [case("", "bundled:val:3", data_flow)],
    "data.test": [case("", "bundled:test:3", data_flow)],
    "data.test_ood": [case("", "bundled:test_ood:3", data_flow)],
    "data.max_prompt_tokens": [case(2048, 40, data_flow)],
    "data.on_bad_record": [
        case("error", "skip", data_flow_with_a_bad_record, **ON_FILE),
        case("error", "skip", data_flow_with_a_damaged_image, **ON_FILE),
        case("error", "skip", data_flow_with_a_damaged_image, data__val="problems.jsonl"),
    ],
    "data.min_pixels": [case(0, 120 * 120, data_flow)],
    "data.max_pixels": [case(0, 56 * 56, data_flow)],
    "data.instruction": [case("", "Show your working.", data_flow)],
    "data.system": [case("", "You are a teacher.", data_flow)],
    "data.buckets": [
        case(2, 1, data_flow_of_images, **ON_FILE, rollout__prompts=1, train__minibatch=4)
    ],
    "data.workers": [case(2, 1, reading_threads)],
    "data.feature_cache_gib": [case(1.0, 0.0, loop, total_steps=2, data__train="bundled:train:4")],
    # step II
    "rollout.prompts": [case(4, 8, data_flow)],
    "rollout.samples": [case(4, 2, sampler)],
    "rollout.max_tokens": [case(6, 7, sampler)],
    "rollout.temperature": [case(1.0, 0.8, sampler), case(1.0, 0.8, passes)],
    "rollout.top_p": [case(1.0, 0.9, sampler)],
    "rollout.top_k": [case(0, 5, sampler)],
    "rollout.cache": [case("model", "int8", kept_for_decoding)],
    "rollout.layout": [case("auto", "tensor", laid_for_decoding)],
    # rewards
    "rewards.judge": [
        case("strict", "maye", scores),
        case("strict", "mm_eureka", scores),
        case("strict", "mm_eureka", evaluation, mode="eval"),
    ],
    "rewards.rounding": [case("none", "both", scores), case("none", "both", judged, mode="eval")],
    "rewards.rules.accuracy": [case(1.0, 0.5, scores)],
    "rewards.rules.language": [case(1.0, 0.5, scores)],
    "rewards.rules.format": [case(0.0, 0.5, scores)],
    "rewards.format_style": [case("think", "think_answer", scores, rewards__rules__format=1.0)],
    "rewards.rules.repetition": [case(0.0, 1.0, scores)],
    "rewards.rules.overlong": [case(0.0, 1.0, scores, rewards__overlong_tokens=3)],
    "rewards.overlong_tokens": [case(2, 3, scores, rewards__rules__overlong=1.0)],
    "rewards.custom": [case("", "mine:length", scores)],
    "rewards.custom_weight": [case(1.0, 0.5, scores, rewards__custom="mine:length")],
    "rewards.penalty": [case(-0.1, -0.5, scores), case(-0.1, -0.5, loop)],
    "rewards.deadline_s": [case(5.0, 0.3, scores, rewards__custom="mine:late")],
    "rewards.workers": [case(2, 1, judging_processes, rewards__judge="maye")],
    # step III
    "algorithm.advantage": [
        case("grpo", other, trajectory) for other in ("reinforce_pp", "rloo", "reinforce_baseline")
    ],
    "algorithm.whiten": [
        *(case("auto", other, trajectory, **PLUS_PLUS) for other in ("scale", "none")),
        case("auto", "scale", trajectory),
    ],
    "algorithm.gamma": [case(1.0, 0.5, trajectory, **PLUS_PLUS)],
    "algorithm.scale": [case("group", other, trajectory) for other in ("batch", "none")],
    "algorithm.eps": [case(1e-6, 1e-2, trajectory)],
    "algorithm.whiten_parts": [case(1, 2, trajectory, **PLUS_PLUS)],
    "algorithm.adora_weight": [case(1.0, 0.1, trajectory), case(0.1, 0.5, trajectory)],
    "algorithm.kl_reward_coef": [case(0.0, 0.5, trajectory), case(0.0, 0.5, passes)],
    "algorithm.mask_truncated": [case(False, True, trajectory)],
    "algorithm.flat_positions": [case(False, True, passes), case(False, True, update)],
    "algorithm.filter_low": [case(0.0, 0.1, kept), case(0.1, 0.3, kept)],
    "algorithm.filter_high": [case(1.0, 0.9, kept), case(0.9, 0.7, kept)],
    "algorithm.filter_refills": [case(0, 1, rounds, algorithm__filter_low=0.1)],
    # the loss of step IV
    "algorithm.loss": [case("ppo", other, loss) for other in ("gspo", "cispo")],
    "algorithm.clip_low": [case(0.2, 0.3, loss)],
    "algorithm.clip_high": [case(0.2, 0.3, loss)],
    "algorithm.dual_clip": [case(0.0, 3.0, loss)],
    "algorithm.is_cap": [case(0.0, 2.0, loss)],
    "algorithm.old_logprobs": [
        case("trainer", "sampler", observer) for observer in (passes, trajectory, update)
    ],
    "algorithm.aggregate": [
        case("token", other, update, train__microbatch=4)
        for other in ("sequence", "constant", "microbatch")
    ],
    "algorithm.kl_loss_coef": [case(0.0, 0.1, loss), case(0.0, 0.1, passes)],
    "algorithm.kl_loss_kind": [
        case("k3", other, loss, algorithm__kl_loss_coef=0.1) for other in ("k1", "k2")
    ],
    "algorithm.entropy_coef": [case(0.0, 0.01, loss)],
    # the optimizer steps of step IV
    "train.minibatch": [case(8, 16, update)],
    "train.microbatch": [case(0, 4, update)],
    "train.logprob_batch": [case(0, 8, passes)],
    "train.pack_tokens": [case(0, 48, passes), case(0, 48, update), case(48, 64, update)],
    "train.epochs": [case(1, 2, minibatches), case(1, 2, loop)],
    "train.lr": [case(1e-3, 2e-3, moves), case(1e-3, 2e-3, loop)],
    "train.warmup": [case(0.1, 0.5, moves)],
    "train.final_lr": [case(0.0, 0.5, moves), case(0.0, 1.0, moves)],
    "train.weight_decay": [case(0.0, 0.1, moves)],
    "train.b1": [case(0.9, 0.8, moves)],
    "train.b2": [case(0.95, 0.9, moves)],
    "train.eps": [case(1e-6, 1e-2, moves)],
    "train.grad_clip": [case(1.0, 0.5, moves)],
    "train.parts": [
        case(("llm", "head"), other, update)
        for other in (("vit", "llm", "head"), ("connector", "llm", "head"), ("vit",), ("llm",))
    ],
    "train.lora_rank": [case(0, 2, update), case(0, 2, adapters)],
    "train.lora_alpha": [case(0.0, 4.0, adapters, train__lora_rank=2)],
    "train.lr_vision": [case(0.0, 2e-3, moves)],
    # supervised training
    "sft.direct_share": [
        case(0.0, 0.6, data_flow, **SFT),
        case(0.6, 0.1, data_flow, **SFT),
    ],
    # devices
    "mesh.data": [case(1, 2, shard_shapes), case(1, 2, update)],
    "mesh.fsdp": [case(1, 2, shard_shapes)],
    "mesh.sequence": [case(1, 2, shard_shapes), case(1, 2, update)],
    "mesh.tensor": [case(1, 2, shard_shapes)],
    "hosts.heartbeat_s": [case(30.0, 20.0, connection)],
    "hosts.start_s": [case(300.0, 20.0, connection)],
    "hosts.deadline_s": [case(0.0, 60.0, deadlines)],
    # evaluation
    "eval.settings": [
        case(("pass@1_t0.01",), other, evaluation, mode="eval")
        for other in (("pass@1_t0.6",), ("pass@1_t0.01", "pass@8_t1.0"))
    ],
    "eval.limit": [case(0, 2, data_flow)],
    "eval.batch": [case(0, 2, data_flow)],
    "eval.samples": [case(8, 9, evaluation, mode="eval", eval__settings=("pass@8_t1.0",))],
    # records
    "log.keep_checkpoints": [case(2, 1, loop, checkpoint_every=1)],
    "log.checkpoints": [case("", "elsewhere", loop)],
    "log.profile": [case(0, 1, loop)],
    "log.writers": [
        *(case((), (name,), loop) for name in ("prometheus", "tensorboard")),
        *(case((), (name,), shown) for name in ("wandb", "progress")),
    ],
}
KEYS = [key for key, _ in config.flatten(config.default())]
ROWS = [(key, one) for key in KEYS for one in CASES.get(key) or [None]]


# ---- the tests ----------------------------------------------------------------------------------

seen = {}


@pytest.fixture
def look(tmp_path):
    """Returns look(observer, settings, again=False) -> what it sees, in a directory of its own."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def of(observe, settings, again=False):
        c = tiny_model.settings(**{**FAST, **settings})
        name = observe, c.to_json()
        if name in seen and not again:
            return seen[name]
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        place.mkdir()
        with PATCHES() as patch, contextlib.chdir(place):
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(families, "build", build_toy)
            patch.setattr(Tokenizer, "load", READ_TOKENIZER)
            patch.setattr(startup, "load_params", stored_weights)
            seen[name] = observe(c)
        return seen[name]

    yield of
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module", autouse=True)
def _no_judges_left():
    yield
    seen.clear()
    rewards.close()


@pytest.mark.parametrize(("key", "row"), ROWS, ids=[key for key, _ in ROWS])
def test_a_key_changes_what_it_is_said_to_change(look, key, row):
    assert row is not None, f"say what config.{key} changes"
    one, other = (look(row.observe, {**row.base, key: value}) for value in (row.one, row.other))
    assert one != other, f"config.{key} changes nothing"


def test_the_table_has_every_key_and_no_other():
    assert set(CASES) == set(KEYS)
    assert len(KEYS) <= 105


OBSERVERS = {row.observe: row for _, row in ROWS if row}


@pytest.mark.parametrize("observe", OBSERVERS, ids=lambda observe: observe.__name__)
def test_what_is_seen_is_the_same_again(look, observe):
    base = OBSERVERS[observe].base
    assert look(observe, base) == look(observe, base, again=True)
