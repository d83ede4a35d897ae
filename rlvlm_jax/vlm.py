# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`VLM`: load a model, generate, compute log-probabilities, save. For notebooks and scripts.

Uses the functions of training, on one device. Rounds shapes up to a few sizes, so that a new prompt
seldom compiles anything.
"""

import functools
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlvlm_jax import sharding, startup
from rlvlm_jax.config import KEYS
from rlvlm_jax.data.prompts import Encoded, Media, collate, encode_prompt
from rlvlm_jax.errors import InputError
from rlvlm_jax.logprobs import logprobs
from rlvlm_jax.models import families, huggingface
from rlvlm_jax.models.model import Model
from rlvlm_jax.sampling.logits import Policy
from rlvlm_jax.sampling.sampler import SampleSettings, make_sample_fn, sequence_keys
from rlvlm_jax.types import Prompts

MAX_ROWS = 32  # sequences in one compiled call


class Completion(NamedTuple):
    """One sampled response."""

    text: str  # without special tokens
    tokens: list[int]  # including the stop token
    logprobs: np.ndarray  # float32[len(tokens)], nats, of the model itself (temperature 1)
    finish_reason: str  # "stop" or "length"


def _round_up(size: int, multiple: int) -> int:
    """Rounds up to `multiple` times a power of two: few different values."""
    return multiple * 2 ** max(0, math.ceil(math.log2(max(size, 1) / multiple)))


def _image_of(part: Mapping[str, Any]) -> Any:
    """Returns the image of one part of a chat message."""
    for key in ("image", "path", "url", "image_url"):
        if part.get(key) is not None:
            source = part[key]
            return source["url"] if isinstance(source, Mapping) else source
    raise InputError(f"a message's image part {dict(part)!r} names no image")


class VLM:
    """A vision-language model with its tokenizer and image processor, on one device."""

    def __init__(
        self,
        source: startup.Source,
        model: Model,
        params: Any,
        dtypes: Mapping[str, str],
    ):
        self.model, self.params = model, params
        self.tokenizer = startup.load_tokenizer(source)
        self.media = startup.open_media(source)
        self._files, self._dtypes = source.files, dtypes
        self._banned = startup.banned_ids(source, self.tokenizer)
        self._encode = jax.jit(model.encode_images)
        self._logprobs = jax.jit(functools.partial(logprobs, model, Policy(), 64))

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike, dtype: str = "float32") -> "VLM":
        """Loads a model of any family.

        Args:
            path_or_repo: Hugging Face directory or repository, orbax directory (a run's
                checkpoint, or the output of `rlvlm_jax.convert`), or "bundled".
            dtype: compute type, "float32" or "bfloat16"; parameters are float32.

        Raises:
            InputError: the model does not exist, is damaged or is of an unsupported kind, or there
                is no such dtype.
        """
        if dtype not in KEYS["model.dtype"].choices:
            choices = ", ".join(KEYS["model.dtype"].choices)
            raise InputError(f"dtype={dtype!r} is not one of {choices}")
        source = startup.open_source(os.fspath(path_or_repo))
        model = families.build(source.config, dtype=dtype, platform=jax.default_backend())
        if source.is_orbax:
            params = startup.restore_merged(source.directory, model, sharding.make_mesh(1, 1, 1))
            return cls(source, model, params, huggingface.lossless_dtypes(params, source.files))
        params, dtypes = huggingface.load_hf(
            source.directory,
            source.config,
            place=lambda _, shape, read: jnp.asarray(read(tuple(map(slice, shape)))),
        )
        return cls(source, model, params, dtypes)

    def generate(
        self,
        prompts: Sequence[Mapping[str, Any]],
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_tokens: int = 64,
        seed: int = 0,
    ) -> list[list[Completion]]:
        """Samples `n` responses to every prompt.

        Never samples vision tokens. The samples of a prompt depend only on the seed, the prompt and
        the number of the sample, not on the other prompts of the call.

        Args:
            prompts: each {"text": rendered prompt, "images": [PIL image or path, ...]} or
                {"messages": chat in the Hugging Face format}.
            n: responses per prompt.
            temperature: 0 is greedy.
            top_p: nucleus sampling; 1 = off.
            top_k: 0 = off.
            max_tokens: limit per response.
            seed: of the random keys.

        Returns:
            A list of n completions per prompt.

        Raises:
            InputError: a prompt or an argument cannot be used.
        """
        for name, good, rule in (
            ("n", n >= 1, "at least 1"),
            ("temperature", temperature >= 0, "0 or more"),
            ("top_p", 0 < top_p <= 1, "above 0 and at most 1"),
            ("top_k", top_k >= 0, "0 or more"),
            ("max_tokens", max_tokens >= 1, "at least 1"),
        ):
            if not good:
                raise InputError(f"generate: {name} must be {rule}")
        settings = SampleSettings(
            samples=n,
            max_tokens=max_tokens,
            stop_ids=self.tokenizer.stop_ids,
            pad_id=self.tokenizer.pad_id,
            banned_ids=self._banned,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
        )
        sample = _jitted_sampler(self.model, settings)
        key = jax.random.key(seed)
        encoded = self._encode_prompts(prompts)
        ids = _prompt_ids(encoded, self.media)
        results: list[list[Completion]] = []
        for start, batch in self._batches(encoded, max(1, MAX_ROWS // n)):
            rows = np.zeros(batch.tokens.shape[0], np.uint32)
            batch_ids = ids[start : start + len(rows)]
            rows[: len(batch_ids)] = batch_ids
            keys = jax.vmap(lambda k: sequence_keys(k, np.arange(n, dtype=np.uint32)))(
                sequence_keys(key, rows)
            ).reshape(-1)
            rollout = jax.device_get(
                sample(self.params, batch, self._encode(self.params, batch), keys)
            )
            for prompt in range(len(batch_ids)):
                group = range(prompt * n, prompt * n + n)
                results.append([self._completion(rollout, row) for row in group])
        return results

    def logprobs(
        self, prompts: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Returns the log-probability of every token of a response to each prompt.

        Args:
            prompts: as for `generate`.
            responses: token ids, one list per prompt.

        Returns:
            float32[len(response)] for each, nats, at temperature 1.

        Raises:
            InputError: a prompt cannot be used, a token id is not in the vocabulary, or the numbers
                of responses and prompts differ.
        """
        if len(prompts) != len(responses):
            raise InputError(f"{len(prompts)} prompts, but {len(responses)} responses")
        vocabulary = self.model.config.vocab_size
        for number, response in enumerate(responses):
            if any(not 0 <= token < vocabulary for token in response):
                raise InputError(f"response {number} holds a token id outside 0..{vocabulary - 1}")
        encoded = self._encode_prompts(prompts)
        length = _round_up(max((len(r) for r in responses), default=1), 16)
        results = []
        for start, batch in self._batches(encoded, MAX_ROWS // 4):
            rows = batch.tokens.shape[0]
            batch_responses = responses[start : start + rows]
            tokens, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
            for row, response in enumerate(batch_responses):
                tokens[row, : len(response)], mask[row, : len(response)] = response, True
            features = self._encode(self.params, batch)
            lps, *_ = self._logprobs(self.params, batch, features, tokens, mask, mask)
            lps = np.asarray(lps)
            results += [lps[row, : len(response)] for row, response in enumerate(batch_responses)]
        return results

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes a Hugging Face directory; every tensor keeps the bits and type it was loaded with.

        Raises:
            InputError: the directory contains a model already, or cannot be written.
        """
        huggingface.save_hf(self.params, directory, files=self._files, dtypes=self._dtypes)

    def _encode_prompts(self, prompts: Sequence[Mapping[str, Any]]) -> list[Encoded]:
        encoded = []
        if isinstance(prompts, str | Mapping):
            raise InputError("prompts must be a list of prompts, not a single one")
        for number, prompt in enumerate(prompts):
            if not isinstance(prompt, Mapping):
                raise InputError(
                    f"prompt {number} is of type {type(prompt).__name__}; expected a dict"
                )
            if "messages" in prompt:
                text = self.tokenizer.render(prompt["messages"])
                images = [
                    _image_of(part)
                    for message in prompt["messages"]
                    if not isinstance(message["content"], str)
                    for part in message["content"]
                    if part.get("type") in ("image", "image_url")
                ]
            elif "text" in prompt:
                text, images = prompt["text"], prompt.get("images") or []
                if not isinstance(text, str) or not isinstance(images, list | tuple):
                    raise InputError(f'prompt {number}: "text" must be a string, "images" a list')
            else:
                raise InputError(f'prompt {number} has neither "text" nor "messages"')
            encoded.append(
                encode_prompt(text, images, self.tokenizer, self.media, name=f"prompt {number}")
            )
        return encoded

    def _batches(self, encoded: Sequence[Encoded], rows: int) -> Iterator[tuple[int, Prompts]]:
        """Yields (number of the first prompt, batch); empty rows fill up the last batch."""
        for start in range(0, len(encoded), rows):
            part = list(encoded[start : start + rows])
            count = _round_up(len(part), 1)
            tokens = _round_up(max(len(prompt.tokens) for prompt in part), 32)
            unit = 4 * self.media.patches_per_token
            patches = _round_up(max(prompt.patches for prompt in part), unit)
            part += [None] * (count - len(part))
            yield start, collate(part, tokens, patches, self.tokenizer.pad_id, self.media)

    def _completion(self, rollout: Any, row: int) -> Completion:
        count = int(rollout.valid[row].sum())
        tokens = rollout.tokens[row, :count].tolist()
        return Completion(
            text=self.tokenizer.decode(tokens),
            tokens=tokens,
            logprobs=rollout.logprobs[row, :count],
            finish_reason="length" if rollout.truncated[row] else "stop",
        )


@functools.lru_cache(maxsize=32)
def _jitted_sampler(model: Model, settings: SampleSettings) -> Any:
    return jax.jit(make_sample_fn(model, settings))


def _prompt_ids(encoded: Sequence[Encoded], media: Media) -> np.ndarray:
    """Returns uint32[N]: a hash of each prompt's content and of its number of earlier copies."""
    repeats: dict[int, int] = {}
    ids = []
    for prompt in encoded:
        content = 0
        # The positions hold the shapes of the images.
        for array in (prompt.tokens, prompt.positions, media.pixels(prompt.media)):
            content = zlib.crc32(array.tobytes(), content)
        repeats[content] = repeats.get(content, -1) + 1
        ids.append(zlib.crc32(repeats[content].to_bytes(4, "little"), content))
    return np.asarray(ids, np.uint32)
