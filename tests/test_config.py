# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configurations: every file in configs/, every kind of mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlvlm_jax import cli, config, old_keys, validate
from rlvlm_jax.errors import InputError
from rlvlm_jax.rewards.rules import REWARDS

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = (
    "tiny.py",
    "tiny.py:smoke",
    "maye.py",
    "maye.py:geometry3k",
    "maye.py:mm_math5k",
    "maye.py:smoke",
    "mm_eureka.py",
    "mm_eureka.py:smoke",
    *(f"mm_eureka.py:{name}" for name in ("dapo", "adora", "rloo", "faithful")),
    *(f"mm_eureka.py:{name},smoke" for name in ("dapo", "adora", "rloo", "faithful")),
    "maye.py:faithful",
    "maye.py:faithful,smoke",
    "sft.py",
    "sft.py:smoke",
    "study.py",
    "study.py:rl",
    "study.py:sft",
    "study.py:vanilla",
    "study.py:smoke",
    "base.py",
    "recipes.py",
    *(f"recipes.py:{name}" for name in ("maye_faithful", "dapo", "gspo", "cispo", "sft")),
)


def parse(*flags, recipe="tiny.py", devices=4):
    found, workdir = cli.parse_config(
        [f"--config={CONFIGS / recipe}", "--workdir=somewhere", *flags], "rlvlm_jax.main"
    )
    validate.validate(found, devices)
    return found, workdir


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid(recipe):
    found, workdir = parse(recipe=recipe)
    assert workdir == "somewhere"
    assert dict(config.flatten(found)).keys() == dict(config.flatten(config.default())).keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_evaluation_batch_has_no_more_rows_than_training(recipe):
    c, _ = parse("--config.eval.batch=0", recipe=recipe)
    rows, devices = config.sequences(c), config.shards(c)
    for settings, samples, most in ((1, 8, 1), (3, 8, 8), (3, 32, 32), (3, 256, 256)):
        c.eval.settings, c.eval.samples = tuple(config.EVAL_SETTINGS)[:settings], samples
        assert max(config.eval_samples(c, name) for name in c.eval.settings) == most
        prompts = config.eval_batch(c)
        assert prompts % devices == 0
        if prompts > devices:  # one prompt per device is the least
            assert prompts <= c.rollout.prompts
            assert prompts * most <= rows
        more = prompts + devices  # would be too many
        assert more > c.rollout.prompts or more * most > rows


@pytest.mark.parametrize(
    ("flags", "devices", "prompts"),
    [
        ((), 28, 112),  # 896 responses with 8 samples, as many as training has
        (("--config.eval.samples=256",), 14, 14),  # one prompt per device is the least
        (("--config.eval.settings=('pass@1_t0.01',)",), 28, 896),
        (("--config.eval.batch=100",), 28, 112),  # as it says, up to a multiple of the devices
    ],
)
def test_prompts_of_mayes_evaluation_batches(flags, devices, prompts):
    c, _ = parse(*flags, recipe="maye.py", devices=devices)
    assert config.eval_batch(c) == prompts


@pytest.mark.parametrize("recipe", ["maye.py", "mm_eureka.py"])
def test_smoke_keeps_the_algorithm(recipe):
    whole, _ = parse(recipe=recipe)
    small, _ = parse(recipe=f"{recipe}:smoke")
    assert small.algorithm.to_dict() == whole.algorithm.to_dict()
    assert small.rewards.to_dict() == whole.rewards.to_dict()
    assert small.rollout.samples == whole.rollout.samples
    assert small.model.path == "bundled"
    assert small.data.train == "bundled:train"


def test_flags_change_values():
    found, _ = parse("--config.train.lr=1", "--config.rollout.prompts=24", "--config.seed=7")
    assert found.train.lr == 1.0
    assert isinstance(found.train.lr, float)
    assert (found.rollout.prompts, found.seed) == (24, 7)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--config.rollout.promts=4"], "did you mean config.rollout.prompts?"),
        (["--config.updat.lr=4"], "did you mean config.train.lr?"),
        (["--config.lr=4"], "did you mean config.train.lr?"),
        (["--config.data.limt_eval=4"], "did you mean config.eval.limit?"),
        (["--config.update.lr=1"], "config.update.lr is now config.train.lr"),
        (["--config.update.train_vit=True"], "config.update.train_vit is now config.train.parts"),
        (["--config.data.limit_eval=4"], "config.data.limit_eval is now config.eval.limit"),
        (["--config.rollout.chunk=4"], "config.rollout.chunk is fixed at 16"),
        (["--config.update.schedule=cosine"], "config.train.final_lr=1 is a constant rate"),
        (["--config.rollout.samples=2.5"], "config.rollout.samples=2.5"),
        (["--config.train.lr=fast"], "config.train.lr=fast"),
        (["--config.model.random_init=perhaps"], "config.model.random_init=perhaps"),
        (["--config.mode=train"], "config.mode='train' is not one of rl, sft, eval"),
        (
            ["--config.model.dtype=int8"],
            "config.model.dtype='int8' is not one of float32, bfloat16",
        ),
        (
            ["--config.model.remat=some"],
            "config.model.remat='some' is not one of none",
        ),
        (["--config.model.attention=flash"], "is not one of auto, plain, xla, cudnn, splash"),
        (["--config.rollout.cache=int4"], "config.rollout.cache='int4' is not one of model"),
        (["--config.rollout.layout=whole"], "config.rollout.layout='whole' is not one of auto"),
        (["--config.algorithm.advantage=gae"], "config.algorithm.advantage='gae' is not one of"),
        (["--config.rollout.temperature=0"], "config.rollout.temperature=0"),
        (["--config.rollout.prompts=0"], "config.rollout.prompts=0 must be greater than 0"),
        (["--config.train.lr=nan"], "config.train.lr=nan is not a finite number"),
        (["--config.train.minibatch=48"], "config.train.minibatch=48 does not divide the 128"),
        (["--config.train.microbatch=48"], "config.train.microbatch=48 does not divide"),
        (["--config.train.pack_tokens=32"], "config.train.pack_tokens=32 has no room"),
        (
            ["--config.train.pack_tokens=160", "--config.algorithm.aggregate=microbatch"],
            "but config.train.pack_tokens packs a varying number",
        ),
        (["--config.algorithm.old_logprobs=update"], "is for one optimizer step per batch"),
        (
            [
                *("--config.algorithm.old_logprobs=update", "--config.train.minibatch=128"),
                "--config.algorithm.kl_reward_coef=0.1",
            ],
            "comes too late for config.algorithm.kl_reward_coef=0.1",
        ),
        (
            ["--config.algorithm.old_logprobs=sampler", "--config.algorithm.is_cap=2"],
            "config.algorithm.is_cap=2.0 compares the trainer's old log-probs",
        ),
        (
            ["--config.algorithm.old_logprobs=sampler", "--config.algorithm.flat_positions=True"],
            "config.algorithm.flat_positions makes the trainer's model differ",
        ),
        (
            ["--config.algorithm.old_logprobs=sampler", "--config.rollout.cache=int8"],
            "config.rollout.cache='int8' would train on rounding errors with",
        ),
        (
            ["--config.mesh.sequence=3", "--config.rollout.prompts=12"],
            "config.rollout.max_tokens=32 does not divide over config.mesh.sequence=3",
        ),
        (["--config.mesh.data=3"], "does not divide over config.mesh.data x config.mesh.fsdp = 3"),
        (["--config.rollout.samples=1"], "config.rollout.samples=1 must be at least 2"),
        (["--config.train.parts=('head',)"], "nothing is trained"),
        (["--config.train.parts=('tower',)"], "config.train.parts has 'tower'; known are vit"),
        (["--config.log.writers=('paper',)"], "config.log.writers has 'paper'; known are progress"),
        (["--config.log.profile=-1"], "config.log.profile=-1 must not be negative"),
        (
            ["--config.algorithm.whiten=center"],
            "config.algorithm.whiten='center' is for config.algorithm.advantage='reinforce_pp'",
        ),
        (
            ["--config.algorithm.filter_refills=1"],
            "config.algorithm.filter_refills=1 needs a filter",
        ),
        (["--config.data.train="], "config.data.train is empty"),
        (["--config.model.path="], "config.model.path is empty"),
        (["--config.eval.settings=('pass@3',)"], "config.eval.settings has 'pass@3'"),
        (["--config.mesh.data=-1", "--config.mesh.fsdp=-1"], "only one axis may be -1"),
        (["--config.rewards.judge=lenient"], "config.rewards.judge='lenient' is not one of strict"),
        (["--config.rewards.format_style=xml"], "config.rewards.format_style='xml' is not one of"),
        (["--config.rewards.deadline_s=0"], "config.rewards.deadline_s=0.0 must be greater than 0"),
        (["--config.rewards.workers=-1"], "config.rewards.workers=-1 must not be negative"),
        (["--config.rewards.custom=mine"], "is not of the form module:function"),
        (["--unknown=1"], "unknown"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_named(flags, expected):
    with pytest.raises(InputError) as caught:
        parse(*flags)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "--config is missing"),
        (["--config=nowhere.py", "--workdir=x"], "nowhere.py"),
        ([f"--config={CONFIGS / 'tiny.py'}"], "--workdir is missing"),
        ([f"--config={CONFIGS / 'maye.py'}:geometry4k", "--workdir=x"], "use one of geometry3k"),
    ],
)
def test_usage_mistakes_are_named(argv, expected):
    with pytest.raises(InputError) as caught:
        cli.parse_config(argv, "rlvlm_jax.main")
    assert expected in str(caught.value)


def test_misspelt_key_inside_a_config_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rlvlm_jax import config\n"
        "def get_config():\n"
        "    c = config.default()\n"
        "    c.rollout.sample = 4\n"
        "    return c\n"
    )
    with pytest.raises(InputError) as caught:
        cli.parse_config([f"--config={file}", "--workdir=x"], "rlvlm_jax.main")
    assert "sample" in str(caught.value)
    assert "mine.py" in str(caught.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        parse("--config.train.lr=-1", "--config.rollout.top_p=2", "--config.mode=x")
    for part in ("config.train.lr=-1", "config.rollout.top_p=2", "config.mode='x'"):
        assert part in str(caught.value)


def test_mesh_takes_the_devices_that_are_left():
    found, _ = parse("--config.mesh.fsdp=-1", "--config.mesh.tensor=2")
    assert (found.mesh.data, found.mesh.fsdp, found.mesh.tensor) == (1, 2, 2)


@pytest.mark.parametrize(
    ("most", "passes"),
    [(0, 1), (128, 1), (127, 2), (64, 2), (40, 4), (8, 16), (1, 16)],
)
def test_logprob_passes_keep_prompts_whole(most, passes):
    found, _ = parse(f"--config.train.logprob_batch={most}")
    assert config.logprob_passes(found) == passes  # 16 prompts of 8 samples, one device


def test_the_configuration_has_a_weight_for_every_rule():
    weights = config.default().rewards.rules
    assert dict(weights) == {name: rule.weight for name, rule in REWARDS.items()}


@pytest.mark.parametrize(("first", "steps"), [(0, []), (1, [1, 2, 3]), (5, [5, 6, 7])])
def test_profiled_steps(first, steps):
    c = config.default()
    c.log.profile = first
    assert list(config.profiled_steps(c)) == steps


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("c.rollout.chunk = 4", "config.rollout.chunk is fixed at 16"),
        ("c.rewards.format = 1.0", "config.rewards.format is now config.rewards.rules.format"),
        ("c.algorithm.update({'normalise': True})", "config.algorithm.normalise is gone"),
        ("c.update.lr = 1.0", "the group config.update is now config.train"),
        ("c.train.train_vit = True", "config.train.train_vit is now config.train.parts"),
        ("c.log.wandb or None", "config.log.wandb is gone"),
    ],
)
def test_an_old_key_in_a_recipe_is_refused_with_its_new_name(tmp_path, line, expected):
    file = tmp_path / "recipe.py"
    body = f"    c = config.default()\n    {line}\n    return c\n"
    file.write_text(f"from rlvlm_jax import config\ndef get_config():\n{body}")
    with pytest.raises(InputError) as caught:
        cli.parse_config([f"--config={file}", "--workdir=x"], "rlvlm_jax.main")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_old_key_has_a_sentence():
    assert not {*old_keys.RENAMED, *old_keys.GONE} & config.KEYS.keys()
    assert set(old_keys.RENAMED.values()) <= config.KEYS.keys()
    for old in (*old_keys.RENAMED, *old_keys.GONE):
        assert old_keys.explain(old).startswith(f"config.{old} is ")


def test_the_table_in_the_docs_is_that_of_the_declarations():
    assert (CONFIGS.parent / "docs" / "configuration.md").read_text("utf-8") == validate.table()


def test_neither_the_configuration_nor_the_command_line_loads_jax():
    code = (
        "import sys, rlvlm_jax.config, rlvlm_jax.cli\n"
        "sys.exit(len({'jax', 'flax'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("start_s", 0.0), ("heartbeat_s", 0.5), ("start_s", float("nan")), ("deadline_s", -1.0)],
)
def test_seconds_of_hosts_are_checked_before_any_is_waited_for(key, value):
    c = config.default()
    config.check_hosts(c)
    c.hosts[key] = value
    for check in (config.check_hosts, lambda c: validate.validate(c, 1)):
        with pytest.raises(
            InputError, match=rf"config.hosts.{key}={value:g} is not between \d and"
        ):
            check(c)
