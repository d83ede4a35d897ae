# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configurations that older versions saved are read with today's keys."""

import json

from rlvlm_jax import config, old_keys
from rlvlm_jax.evaluation import runs
from tests.run_directories import write_run

# What a run of the defaults saved when the group train was called update.
OLD_GROUPS = {
    "rewards": {
        "accuracy": 1.0,
        "language": 1.0,
        "format": 0.0,
        "repetition": 0.0,
        "overlong": 0.0,
        "no_eos_penalty": True,
        "min_tokens": 1,
        "tolerance": 1e-6,
        "custom_memory_gib": 4.0,
    },
    "algorithm": {
        "whiten": "center",
        "normalise": False,
        "adora": False,
        "adora_lambda": 0.1,
        "filter": False,
        "filter_low": 0.1,
        "filter_high": 0.9,
        "length_norm": 0,
        "kl_reward_kind": "k1",
    },
    "update": {
        "schedule": "cosine",
        "final_lr": 0.0,
        "max_bad_steps": 5,
        "logprob_chunk": 64,
        "train_vit": False,
        "train_connector": False,
        "train_llm": True,
        "train_head": True,
        "only": "",
        "lr_vit": 0.0,
        "lr_connector": 0.0,
        "lr_head": 0.0,
    },
    "rollout": {"chunk": 16},
    "data": {"index": "", "limit_eval": 0},
    "eval": {"samples_seed": 1234},
    "sft": {"style": "worked", "direct_share": 0.6},
    "log": {"rollouts": True, "token_prompts": 4, "tensorboard": True, "wandb": "", "profile": ""},
}


def of_today():
    return json.loads(config.default().to_json())


def saved(**changes):
    """An old configuration, a nested dict; "__" in a key is a dot."""
    old = of_today()
    old["update"] = old.pop("train")
    del old["update"]["parts"], old["update"]["lr_vision"], old["rewards"]["rules"]
    del old["cache"], old["eval"]["limit"], old["log"]["writers"]
    old["compile_cache"] = "auto"
    for group, keys in OLD_GROUPS.items():
        old[group] |= keys
    for key, value in changes.items():
        group, name = key.split("__")
        old[group][name] = value
    return old


def leaves(nested):
    return dict(config.flatten(config.ConfigDict(nested)))


def test_the_defaults_of_then_are_those_of_today():
    translated = leaves(old_keys.translate(saved()))
    today = leaves(of_today())
    without_effect = {"cache", "log.writers", "log.profile"}
    assert translated.keys() - without_effect == today.keys() - without_effect
    assert all(value == today[key] for key, value in translated.items() if key != "log.profile")


def test_values_are_translated():
    old = saved(
        rewards__format=0.5,
        rewards__no_eos_penalty=False,
        rewards__min_tokens=0,
        algorithm__filter=True,
        algorithm__adora=True,
        algorithm__adora_lambda=0.25,
        algorithm__normalise=True,
        update__schedule="constant",
        update__lr_vit=1e-3,
        update__lr_connector=1e-3,
        update__train_vit=True,
        update__train_llm=False,
        sft__style="mixed",
        data__limit_eval=7,
    )
    new = old_keys.translate(old)
    assert new["rewards"]["rules"]["format"] == 0.5
    assert new["rewards"]["penalty"] == 0.0
    algorithm = new["algorithm"]
    assert (algorithm["filter_low"], algorithm["filter_high"]) == (0.1, 0.9)
    assert (algorithm["adora_weight"], algorithm["whiten"]) == (0.25, "scale")
    assert (new["train"]["final_lr"], new["train"]["lr_vision"]) == (1.0, 1e-3)
    assert new["train"]["parts"] == ["vit", "head"]
    assert new["sft"]["direct_share"] == 0.6
    assert new["eval"]["limit"] == 7
    assert leaves(new).keys() <= config.KEYS.keys()


def test_what_today_cannot_do_stays_to_tell_the_run_apart():
    new = old_keys.translate(saved(rewards__tolerance=0.1, rewards__min_tokens=5))
    assert new["rewards"]["tolerance"] == 0.1
    assert new["rewards"]["min_tokens"] == 5


def test_a_configuration_of_today_is_not_old():
    assert not old_keys.is_old(of_today())
    assert old_keys.is_old(saved())
    assert old_keys.translate(of_today()) == of_today()


def test_an_old_run_and_a_new_one_of_the_same_recipe_are_one_group(tmp_path):
    for name, recipe, seed in (("old", saved(), 0), ("new", of_today(), 1)):
        recipe = {key: value for key, value in recipe.items() if key not in ("mode", "seed")}
        write_run(tmp_path / name, seed=seed, evaluations=[(0, "val", [1, 0])], **recipe)
    (group,) = runs.read_groups([tmp_path / "old", tmp_path / "new"])
    assert [run.seed for run in group.runs] == [0, 1]
    other = {
        key: value for key, value in saved(update__lr=1.0).items() if key not in ("mode", "seed")
    }
    write_run(tmp_path / "other", evaluations=[(0, "val", [1, 0])], **other)
    assert len(runs.read_groups([tmp_path / "old", tmp_path / "other"])) == 2
