"""TRL's side of ``online.py``: its GRPO and RLOO trainers on the workload's prompts, with a clock in each step.

TRL samples with transformers' ``generate``. Its settings are its own defaults but for what is named in :func:`make`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from online_work import BETA, RATE, TOKENS, Group, Times, Turn, reward, tokenizer
from transformers import PrinterCallback, TrainerCallback
from workload import build

TRAINERS = {"grpo": (trl.GRPOTrainer, trl.GRPOConfig), "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}


def rewards(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """The reward as TRL calls it."""
    return [reward(completion) for completion in completion_ids]


def make(job: dict[str, Any], given: Sequence[tuple[int, ...]], folder: str) -> Any:
    """Return TRL's trainer for a job.

    One update a batch of completions (``num_iterations`` and ``steps_per_generation`` 1, TRL's defaults) spares GRPO
    the pass for old log-probs; no checkpointing spares both methods a second forward pass. Completions are sampled by
    ``generate``, TRL's default, for its continuous batching is slower on a processor and trains bfloat16 weights. TRL
    loads the reference by the name of the model, so the policy is written to ``folder`` and read from there.
    """
    task = job["task"]
    trainer, config = TRAINERS[task]
    model = build(job["model"], task, seed=job["seed"], device="cpu")
    if BETA[task]:
        model.save_pretrained(Path(folder, "start"))
        model.config._name_or_path = str(Path(folder, "start"))
    args = config(
        output_dir=folder,
        beta=BETA[task],
        num_generations=job["generations"],
        per_device_train_batch_size=job["prompts"] * job["generations"],
        max_completion_length=TOKENS,
        generation_kwargs={"min_new_tokens": TOKENS},
        shuffle_dataset=False,
        gradient_checkpointing=False,
        max_steps=job["steps"],
        learning_rate=RATE,
        lr_scheduler_type="constant",
        bf16=job["precision"] == "bfloat16",
        use_cpu=job["device"] == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
    )
    made = trainer(
        model=model,
        reward_funcs=rewards,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": " ".join(map(str, ids)) + " "} for ids in given]),
        processing_class=tokenizer(job["model"]),
    )
    made.remove_callback(PrinterCallback)
    return made


class Clock(TrainerCallback):
    """Times the parts of each of TRL's steps, hands the step to ``then``, and restarts after it.

    A step's time runs from one step's end to the next, so TRL's data loading and bookkeeping count, as its update.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        then: Callable[[Turn], None],
        around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.then, self.around, self.generations = then, around, trainer.num_generations
        self.device, self.began = trainer.args.device.type, 0.0
        self.sampling = self.sampled_and_scored = 0.0
        self.loss: Any = None
        self.norm: Any = None
        self.rewards: Any = None
        self.batch: Any = None
        self.own = {
            name: getattr(trainer, name)
            for name in (
                "_generate",
                "_generate_and_score_completions",
                "_calculate_rewards",
                "_get_grad_norm",
                "training_step",
            )
        }
        trainer._generate, trainer._generate_and_score_completions = self.generate, self.generate_and_score
        trainer._calculate_rewards, trainer._get_grad_norm = self.calculate_rewards, self.grad_norm
        trainer.training_step = self.step
        trainer.add_callback(self)

    def now(self) -> float:
        """Return the time when all work given so far is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def generate(self, *args: Any, **named: Any) -> Any:
        """Time prompts to completions."""
        began = self.now()
        found = self.own["_generate"](*args, **named)
        self.sampling = self.now() - began
        return found

    def generate_and_score(self, *args: Any, **named: Any) -> Any:
        """Time prompts to a batch that can be learned from, and keep the batch."""
        began = self.now()
        self.batch = self.own["_generate_and_score_completions"](*args, **named)
        self.sampled_and_scored = self.now() - began
        return self.batch

    def calculate_rewards(self, *args: Any, **named: Any) -> Any:
        """Keep the rewards."""
        self.rewards = self.own["_calculate_rewards"](*args, **named)
        return self.rewards

    def grad_norm(self, *args: Any, **named: Any) -> Any:
        """Keep the gradient's norm before clipping."""
        self.norm = self.own["_get_grad_norm"](*args, **named)
        return self.norm

    def step(self, *args: Any, **named: Any) -> Any:
        """Take TRL's step and keep the loss."""
        with self.around():
            self.loss = self.own["training_step"](*args, **named)
        return self.loss

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.began = self.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock, run the other side, start again."""
        seconds = self.now() - self.began
        scoring = self.sampled_and_scored - self.sampling
        times = Times(seconds, self.sampling, scoring, seconds - self.sampled_and_scored)
        found = groups(self.batch, self.rewards, self.generations)
        self.then(Turn(times, float(self.loss), float(self.norm), found))
        self.began = self.now()


def groups(batch: dict[str, torch.Tensor], scores: torch.Tensor, generations: int) -> list[Group]:
    """Return TRL's padded batch as prompts with their completions; its first rewards are those of ``scores``."""

    def plain(ids: torch.Tensor, mask: torch.Tensor) -> list[tuple[int, ...]]:
        return [tuple(row[held.bool()].tolist()) for row, held in zip(ids, mask, strict=True)]

    given = plain(batch["prompt_ids"], batch["prompt_mask"])
    answers = plain(batch["completion_ids"], batch["completion_mask"])
    found, advantages = scores[:, 0].tolist(), batch["advantages"].tolist()
    parts = [slice(start, start + generations) for start in range(0, len(given), generations)]
    return [Group(given[p.start], tuple(answers[p]), tuple(found[p]), tuple(advantages[p])) for p in parts]
