# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The peer's side: transformers' `generate` and a torch update, following MAYE's loop.

Samples with `generate`, G sequences per prompt, with a key-value cache. Computes old and reference
log-probabilities in full passes over prompt and response, images included, with two copies of the
model. Updates by minibatch: token-level clipped loss with a k3 penalty, gradient clipping, AdamW,
frozen vision tower.

Deviates from MAYE, each time in torch's favour: computes logits for response columns only; cuts
images into patches once, outside the timed part; takes as many sequences per log-prob pass as a
micro-batch has (the whole minibatch if memory allows); uses the model's own three position axes.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from rlvlm_jax.bench.work import Workload
from rlvlm_jax.config import microbatch, sequences
from rlvlm_jax.errors import InputError


@dataclasses.dataclass
class Peer:
    """Two copies of the model, the optimizer of one, and the batch in transformers' format."""

    work: Workload
    model: Any
    reference: Any
    optimizer: Any
    prompts: dict[str, torch.Tensor]  # input_ids, attention_mask, mm_token_type_ids: [N, P]
    media: list[dict[str, torch.Tensor]]  # what the model takes for the images of each prompt
    tokens: torch.Tensor | None = None  # int64[B, R], the last responses
    old: torch.Tensor | None = None
    ref: torch.Tensor | None = None

    def _timed(self, part: Callable[[], None]) -> float:
        device = self.prompts["input_ids"].device
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        part()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def images(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Returns the images of these prompts; empty if they have none."""
        inputs = [self.media[row] for row in rows if self.media[row]]
        names = inputs[0] if inputs else ()
        return {name: torch.cat([prompt[name] for prompt in inputs]) for name in names}

    def rollout(self) -> float:
        """Samples, and copies the responses to the host; returns seconds."""

        def sample() -> None:
            c = self.work.config.rollout
            out = self.model.generate(
                **self.prompts,
                **self.images(range(c.prompts)),
                do_sample=True,
                temperature=c.temperature,
                top_k=c.top_k,
                top_p=c.top_p,
                num_return_sequences=c.samples,
                max_new_tokens=c.max_tokens,
                suppress_tokens=list(self.work.session.banned),
                pad_token_id=self.work.session.tokenizer.pad_id,
                use_cache=True,
            )
            self.tokens = out[:, self.prompts["input_ids"].shape[1] :]
            self.tokens.cpu()

        self.model.eval()
        seconds = self._timed(sample)
        expected = (sequences(self.work.config), self.work.config.rollout.max_tokens)
        if tuple(self.tokens.shape) != expected:
            raise RuntimeError(f"generate returned {tuple(self.tokens.shape)}, expected {expected}")
        return seconds

    def response_logits(self, model: Any, rows: Sequence[int], tokens: Any) -> torch.Tensor:
        """Returns float32[b, R, V], the logits that predict each token of these responses.

        Args:
            model: either copy.
            rows: b sequence indices.
            tokens: int64[B, R], of all sequences.
        """
        index = [row // self.work.config.rollout.samples for row in rows]
        responses = tokens[list(rows)]
        ones, zeros = torch.ones_like(responses), torch.zeros_like(responses)
        response_inputs = {
            "input_ids": responses,
            "attention_mask": ones,
            "mm_token_type_ids": zeros,
        }
        inputs = {
            name: torch.cat([value[index], response_inputs[name].to(value.dtype)], dim=1)
            for name, value in self.prompts.items()
        }
        model.model.rope_deltas = None  # set by `generate`
        out = model(
            **inputs,
            **self.images(index),
            use_cache=False,
            logits_to_keep=responses.shape[1] + 1,
        )
        return out.logits[:, :-1].float() / self.work.config.rollout.temperature

    def _logprobs(self, model: Any, rows: Sequence[int]) -> torch.Tensor:
        logits = self.response_logits(model, rows, self.tokens)
        chosen = self.tokens[list(rows)][..., None]
        return torch.log_softmax(logits, dim=-1).gather(-1, chosen)[..., 0]

    def logprobs(self) -> float:
        """Runs the old and the reference pass over the last responses; returns seconds."""
        c = self.work.config
        size = microbatch(c)

        def both() -> None:
            parts = [range(i, i + size) for i in range(0, sequences(c), size)]
            with torch.no_grad():
                self.old = torch.cat([self._logprobs(self.model, part) for part in parts])
                if self.reference is not None:
                    self.ref = torch.cat([self._logprobs(self.reference, part) for part in parts])

        return self._timed(both)

    def update(self) -> float:
        """Runs all optimizer steps on the last responses; returns seconds."""
        c = self.work.config
        micro = microbatch(c)
        scores = torch.arange(sequences(c), device=self.tokens.device) % 2
        advantages = (scores - scores.float().mean())[:, None].expand(self.tokens.shape)

        def steps() -> None:
            for _ in range(c.train.epochs):
                order = torch.randperm(sequences(c)).tolist()
                for first in range(0, sequences(c), c.train.minibatch):
                    chosen = order[first : first + c.train.minibatch]
                    for i in range(0, len(chosen), micro):
                        rows = chosen[i : i + micro]
                        (self._loss(rows, advantages) * len(rows) / len(chosen)).backward()
                    torch.nn.utils.clip_grad_norm_(
                        [p for p in self.model.parameters() if p.requires_grad],
                        c.train.grad_clip or float("inf"),
                    )
                    self.optimizer.step()
                    self.optimizer.zero_grad()

        self.model.train()
        return self._timed(steps)

    def _loss(self, rows: Sequence[int], advantages: torch.Tensor) -> torch.Tensor:
        a, rows = self.work.config.algorithm, list(rows)
        new = self._logprobs(self.model, rows)
        ratio = torch.exp(new - self.old[rows])
        clipped = ratio.clamp(1 - a.clip_low, 1 + a.clip_high)
        loss = torch.maximum(-advantages[rows] * ratio, -advantages[rows] * clipped).mean()
        if self.ref is not None:
            logprob_diff = self.ref[rows] - new
            loss = loss + a.kl_loss_coef * (torch.exp(logprob_diff) - logprob_diff - 1).mean()
        return loss


def check_comparable(work: Workload) -> None:
    """Refuses a configuration that this loop does not implement.

    Raises:
        InputError: the message names the key.
    """
    c = work.config
    if work.session.source.is_orbax or c.model.random_init:
        raise InputError(
            "--peer=torch reads its weights from config.model.path, so it must be a Hugging Face "
            "directory, with config.model.random_init=False"
        )
    required = {
        "train.lora_rank": 0,
        "train.parts": ("llm", "head"),
        "algorithm.loss": "ppo",
        "algorithm.aggregate": "token",
        "algorithm.kl_loss_kind": "k3",
        "algorithm.kl_reward_coef": 0.0,
        "algorithm.entropy_coef": 0.0,
        "algorithm.is_cap": 0.0,
        "algorithm.dual_clip": 0.0,
        "mesh.data": 1,
        "mesh.fsdp": 1,
        "mesh.tensor": 1,
    }
    for key, value in required.items():
        group, name = key.split(".")
        if c[group][name] != value:
            raise InputError(
                f"--peer=torch trains with config.{key}={value!r}, not {c[group][name]!r}; set "
                "that value, or leave --peer out"
            )


def start(work: Workload) -> Peer:
    """Loads the same weights and prompts; runs nothing."""
    check_comparable(work)
    session, source, c = work.session, work.session.source, work.config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, c.model.dtype)
    transformers.utils.logging.disable_progress_bar()
    flash = device == "cuda" and transformers.utils.is_flash_attn_2_available()
    attention = "flash_attention_2" if flash and c.model.dtype == "bfloat16" else "sdpa"

    def load() -> Any:
        kind = getattr(transformers, source.family.architecture)
        return kind.from_pretrained(
            source.directory, dtype=dtype, attn_implementation=attention
        ).to(device)

    model = load()
    model.generation_config.eos_token_id = None  # every response has the full length
    model.model.visual.requires_grad_(False)
    if c.model.remat == "full":
        model.gradient_checkpointing_enable()
    reference = load().eval().requires_grad_(False) if c.algorithm.kl_loss_coef else None
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=c.train.lr,
        betas=(c.train.b1, c.train.b2),
        eps=c.train.eps,
        weight_decay=c.train.weight_decay,
        fused=True,
    )
    batch = work.batch
    image = (batch.tokens == source.config.image_token_id) & batch.mask
    prompts = {
        "input_ids": torch.tensor(batch.tokens, dtype=torch.long, device=device),
        "attention_mask": torch.tensor(batch.mask, dtype=torch.long, device=device),
        "mm_token_type_ids": torch.tensor(image, dtype=torch.int, device=device),
    }
    images = [
        {
            name: torch.tensor(x, dtype=dtype if x.dtype.kind == "f" else torch.long, device=device)
            for name, x in source.family.hf_inputs(source.config, row).items()
        }
        for row in session.media.rows(batch.media)
    ]
    return Peer(work, model, reference, optimizer, prompts, images)


def largest_logprob_diff(peer: Peer, tokens: np.ndarray, logprobs: np.ndarray) -> float:
    """Returns the largest difference from our log-probabilities of our responses, in nats.

    Args:
        peer: before its first update.
        tokens: int32[B, R], sampled by us.
        logprobs: float32[B, R], ours, with the banned tokens excluded.
    """
    device = peer.prompts["input_ids"].device
    responses = torch.tensor(tokens, dtype=torch.long, device=device)
    size = peer.work.config.rollout.samples
    largest = 0.0
    with torch.no_grad():
        for first in range(0, len(tokens), size):
            rows = list(range(first, first + size))
            logits = peer.response_logits(peer.model, rows, responses)
            logits[..., list(peer.work.session.banned)] = -torch.inf
            peer_logprobs = torch.log_softmax(logits, -1).gather(-1, responses[rows][..., None])[
                ..., 0
            ]
            logprob_diff = np.abs(peer_logprobs.cpu().numpy() - logprobs[rows])
            largest = max(largest, float(logprob_diff.max()))
    return largest
