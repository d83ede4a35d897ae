# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The data of a run: reads and checks all records before the first step, and chooses shapes."""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from rlvlm_jax import config as config_lib
from rlvlm_jax import distributed, rewards, sharding
from rlvlm_jax.data import dataset, loader, problems
from rlvlm_jax.data.example import Example
from rlvlm_jax.startup import Session

SPLITS = ("val", "test", "test_ood")


class RunData(NamedTuple):
    """The data of a run.

    Attributes:
        loader: of the training batches; None in an evaluation.
        total_steps: number of training steps.
        evaluation_sets: split -> its questions; each process encodes its share of them.
        reports: split -> how many records were read, used and dropped, and why.
        digests: split -> digest of the content of its used records, twelve hexadecimal digits.
    """

    loader: loader.Loader | None
    total_steps: int
    evaluation_sets: dict[str, loader.EvaluationSet]
    reports: dict[str, dict[str, Any]]
    digests: dict[str, str]


def open_data(session: Session) -> RunData:
    """Reads and checks all records; every process calls it and gets the same records.

    Raises:
        InputError: a record cannot be used; names its file, line and id.
    """
    c = session.config
    reader = dataset.Reader(
        tokenizer=session.tokenizer,
        media=session.media,
        instruction=c.data.instruction,
        system=c.data.system,
        max_prompt_tokens=c.data.max_prompt_tokens,
        on_bad_record=c.data.on_bad_record,
        gold_check=lambda golds: rewards.check_golds(
            golds, c.rewards.judge, c.rewards.deadline_s, workers=c.rewards.workers
        ),
        index=c.cache,
        part=(jax.process_index(), jax.process_count()),
        together=distributed.together,
    )
    reports, questions, digests = {}, {}, {}
    for split in SPLITS:
        if c.data[split]:
            examples, reports[split] = reader.read(c.data[split], f"config.data.{split}")
            questions[split] = examples[: c.eval.limit or None]
            digests[split] = digest(questions[split])
    evaluation_sets = _evaluation_sets(session, reader, questions)
    if c.mode == "eval":
        return RunData(None, 0, evaluation_sets, reports, digests)

    prompts = c.rollout.prompts
    if c.mode == "sft":
        prompts = c.train.minibatch
        reader = dataclasses.replace(reader, max_solution_tokens=c.rollout.max_tokens)
    examples, reports["train"] = reader.read(c.data.train, "config.data.train", at_least=prompts)
    for split, eval_examples in questions.items():
        reports[split]["also_in_train"] = _overlap(split, examples, eval_examples)
    if c.mode == "sft" and c.sft.direct_share:
        examples = list(problems.in_mixed_styles(examples, c.sft.direct_share))
    digests["train"] = digest(examples)
    training = loader.Loader(
        examples,
        reader.encode,
        media=session.media,
        prompts=prompts,
        buckets=c.data.buckets,
        seed=c.seed,
        workers=c.data.workers,
        pad_id=session.tokenizer.pad_id,
        on_bad_record=c.data.on_bad_record,
        share=_share(session, prompts),
    )
    total_steps = c.total_steps or math.ceil(c.epochs * len(examples) / prompts)
    return RunData(training, total_steps, evaluation_sets, reports, digests)


def digest(examples: Iterable[Example]) -> str:
    """Returns twelve digits that differ if texts, lengths or image sizes differ."""
    hasher = hashlib.sha256()
    for example in examples:
        about = (
            example.id,
            example.question,
            example.solution,
            example.messages,
            example.tokens,
            example.patches,
        )
        hasher.update(repr(about).encode("utf-8", "backslashreplace"))
    return hasher.hexdigest()[:12]


def _evaluation_sets(
    session: Session, reader: dataset.Reader, questions: Mapping[str, list[Example]]
) -> dict[str, loader.EvaluationSet]:
    """Returns the sets of all splits, which share their static shapes."""
    c = session.config
    prompts = config_lib.eval_batch(c)
    if not questions:
        return {}
    sizes = [
        (example.tokens, example.patches) for examples in questions.values() for example in examples
    ]
    buckets = loader.choose_buckets(sizes, loader.EVALUATION_BUCKETS, prompts)
    return {
        split: loader.EvaluationSet(
            examples,
            reader.encode,
            media=session.media,
            prompts=prompts,
            buckets=buckets,
            workers=c.data.workers,
            pad_id=session.tokenizer.pad_id,
            on_bad_record=c.data.on_bad_record,
            share=_share(session, prompts),
        )
        for split, examples in questions.items()
    }


def _overlap(split: str, train_examples: list[Example], eval_examples: list[Example]) -> list[str]:
    """Returns the ids of the questions that are also in the training set, and logs a warning."""
    shared = dataset.overlap(train_examples, eval_examples)
    if shared:
        logging.warning(
            "%d of %d questions of config.data.%s are in config.data.train too, such as "
            "%s; their accuracy says nothing about new problems",
            *(len(shared), len(eval_examples), split, shared[0][1]),
        )
    return [eval_id for _, eval_id in shared]


def _share(session: Session, prompts: int) -> loader.Share:
    """Returns this process's rows of a batch of `prompts` prompts."""
    rows = sharding.rows_here(session.mesh, prompts)
    return loader.Share(rows, distributed.together)
