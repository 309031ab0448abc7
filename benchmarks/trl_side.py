"""TRL's side: its own trainer on the workload's rows, a hook between its steps, and its head made like ours on request.

TRL gets text, as its users give it: a tokenizer with one word per id turns the rows into text and TRL turns them back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl.kernels import chunked_logprob
from trl.trainer import utils
from workload import RATES, Row, build, vocabulary

TRAINERS = {"dpo": (trl.DPOTrainer, trl.DPOConfig), "reward": (trl.RewardTrainer, trl.RewardConfig)}
TRAINERS |= {"sft": (trl.SFTTrainer, trl.SFTConfig)}


def tokenizer(model: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are the ids themselves, with end-of-sequence and padding apart.

    Padding has an id of its own: TRL reads a reward at the last token that is not padding.
    """
    size = vocabulary(model)
    words = {str(i): i for i in range(size - 2)} | {"<eos>": size - 2, "<pad>": size - 1}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", pad_token="<pad>")


def dataset(rows: Sequence[Row], task: str) -> Dataset:
    """Return ``rows`` as text in the columns TRL documents for ``task``."""

    def text(ids: tuple[int, ...]) -> str:
        return " ".join(map(str, ids[:-1])) + " <eos>"

    texts = [{"prompt": " ".join(map(str, row.prompt)) + " ", "chosen": text(row.chosen)} for row in rows]
    if task == "sft":
        return Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in texts])
    return Dataset.from_list([new | {"rejected": text(row.rejected)} for new, row in zip(texts, rows, strict=True)])


def make(job: dict[str, Any], rows: Sequence[Row], folder: str) -> Any:
    """Return TRL's trainer for a job; what the job's setting does not name is TRL's default."""
    task, setting = job["task"], job["setting"]
    trainer, config = TRAINERS[task]
    given: dict[str, Any] = {} if setting["trl_checkpointing"] is None else {"gradient_checkpointing": False}
    if task == "dpo" and setting["trl_precompute"]:
        given["precompute_ref_log_probs"] = True
    args = config(
        output_dir=folder,
        per_device_train_batch_size=job["pairs"],
        max_steps=job["steps"],
        learning_rate=RATES[task],
        lr_scheduler_type="constant",
        bf16=job["precision"] == "bfloat16",
        use_cpu=job["device"] == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
        **given,
    )
    models = {"model": build(job["model"], task, seed=job["seed"], device="cpu")}
    if task == "dpo":
        models["ref_model"] = build(job["model"], task, seed=job["seed"] + 1, device="cpu")
    made = trainer(**models, args=args, train_dataset=dataset(rows, task), processing_class=tokenizer(job["model"]))
    made.remove_callback(PrinterCallback)
    return made


class LabelledHead:
    """TRL's fused head without what it computes only to log it; see :func:`labelled_head`."""

    own = utils._ChunkedLogProbFunction

    @classmethod
    def apply(cls, *args: Any) -> tuple[torch.Tensor, ...]:
        """Compute log-probs by TRL's function; entropy, sum of squares, mean logits and top-1 are zeros."""
        log_probs = cls.own.apply(*args[:8], ("log_probs",))[0]
        blank = torch.zeros_like(log_probs)
        return log_probs, blank, blank, blank, blank.bool()


def _product_in_its_own_precision(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    total.add_(a @ b)


@contextlib.contextmanager
def labelled_head() -> Iterator[None]:
    """Make TRL's head do on a processor no more than it does on a GPU, so that what is left is body against body.

    On CUDA, TRL 1.16 projects only positions with a label, multiplies in bfloat16 in the backward pass too and gets its
    statistics for logging almost for free; on a processor it projects every position, prompt and padding included,
    multiplies in float32 in the backward pass and pays for the statistics. Three names are replaced meanwhile:

    - ``trl.trainer.utils._use_triton``, which there decides one thing, whether only labelled positions are projected,
      says yes (the kernels have their own copy of the name and still fold tiles without Triton);
    - ``trl.kernels.chunked_logprob._addmm_fp32`` multiplies in its arguments' precision and still adds in float32;
    - ``trl.trainer.utils._ChunkedLogProbFunction`` computes log-probabilities alone; the statistics are zeros.

    Neither the loss nor anything outside the head is touched.
    """
    kept = utils._use_triton, chunked_logprob._addmm_fp32, utils._ChunkedLogProbFunction
    utils._use_triton = lambda device: True
    chunked_logprob._addmm_fp32 = _product_in_its_own_precision
    utils._ChunkedLogProbFunction = LabelledHead
    try:
        yield
    finally:
        utils._use_triton, chunked_logprob._addmm_fp32, utils._ChunkedLogProbFunction = kept


def patched_against_own(trainer: Any) -> dict[str, float]:
    """Return the loss of one batch by TRL's own head and by the labelled one, before any training."""
    found = {}
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    for name, head in (("own", contextlib.nullcontext()), ("labelled", labelled_head())):
        with torch.no_grad(), head, trainer.accelerator.autocast():
            found[name] = float(trainer.compute_loss(trainer.model, inputs))
        trainer._metrics["train"].clear()
    return found | {"difference": abs(found["own"] - found["labelled"])}


@contextlib.contextmanager
def timed_references(device: str) -> Iterator[list[float]]:
    """Time TRL's precomputed reference passes, which it makes batch by batch while its trainer is set up."""
    own, spent = trl.DPOTrainer.compute_ref_log_probs, []

    def timed(self: Any, *args: Any) -> Any:
        began = time.perf_counter()
        found = own(self, *args)
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
        return found

    trl.DPOTrainer.compute_ref_log_probs = timed
    try:
        yield spent
    finally:
        trl.DPOTrainer.compute_ref_log_probs = own


class Seen(NamedTuple):
    """What TRL did in one step: seconds since the stopwatch was restarted, loss, gradient norm, rows."""

    seconds: float
    loss: float
    grad_norm: float
    rows: list[Row]


class Between(TrainerCallback):
    """Runs ``then`` after each of TRL's steps and restarts TRL's stopwatch, so that neither pays for the other.

    TRL's time holds all it does from one step's end to the next: its data loading, metrics and bookkeeping included.
    """

    def __init__(
        self,
        trainer: Any,
        rows: Sequence[Row],
        *,
        then: Callable[[Seen], None],
        around: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self.then, self.around, self.began = then, around, 0.0
        self.own_step, self.own_norm = trainer.training_step, trainer._get_grad_norm
        self.ids: Any = None
        self.loss: Any = None
        self.norm: Any = None
        self.by_ids = {row.prompt + row.chosen: row for row in rows}
        self.device, self.pairs = trainer.args.device.type, trainer.args.per_device_train_batch_size
        trainer.training_step, trainer._get_grad_norm = self.step, self.grad_norm
        trainer.add_callback(self)

    def step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        """Take TRL's step and remember what it was given."""
        self.ids = [ids[held.bool()] for ids, held in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        with self.around():
            self.loss = self.own_step(model, inputs, *rest, **named)
        return self.loss

    def grad_norm(self, *args: Any, **named: Any) -> Any:
        """Remember the gradient's norm before clipping."""
        self.norm = self.own_norm(*args, **named)
        return self.norm

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the stopwatch."""
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the stopwatch, run the other side, start again."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.began
        rows = [self.by_ids[tuple(ids.tolist())] for ids in self.ids[: self.pairs]]
        self.then(Seen(seconds, float(self.loss), float(self.norm), rows))
        self.began = time.perf_counter()
