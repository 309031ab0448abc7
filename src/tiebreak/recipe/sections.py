"""What each section of a recipe may say: its keys, their defaults and what they mean."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""A name that is also the name of a folder."""


class Section(BaseModel):
    """A section with fixed keys."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        allow_inf_nan=False,  # of declared keys; a judge's sharpness may be infinite
        coerce_numbers_to_str=True,
        ser_json_inf_nan="constants",
    )


class Open(Section):
    """A section that also takes the knobs of the row it names."""

    model_config = ConfigDict(extra="allow")

    @property
    def knobs(self) -> dict[str, Any]:
        """The keys that are not the section's own."""
        return dict(self.model_extra or {})


class Import(Open):
    """What comes in, and which prompts are for training and which for testing."""

    format: str = Field("preferences", description="name of a format, see `tiebreak ls data`")
    path: str | None = Field(None, description="file to read")
    prompts: str | None = Field(None, description="file with a further prompt on each line: the set `asked`")
    split: dict[str, float | int | str | None] = Field(
        default={"test": 0.1, "train": None},
        description="set -> share or count of prompt groups, a tag, or null for the rest",
    )
    limit: int | None = Field(None, ge=1, description="read this many rows only")

    @field_validator("path", "prompts")
    @classmethod
    def _at_home(cls, path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser())


class Sample(Section):
    """Which model answers which prompts, and how."""

    model: str = Field(description="a training stage, a folder or a hub name")
    prompts: str = Field("train", description="set of prompts")
    limit: int | None = Field(None, ge=1, description="use this many prompts only")
    n: int = Field(2, ge=1, description="responses per prompt")
    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling; 1 is off")
    top_k: int = Field(0, ge=0, description="sample from the k likeliest tokens; 0 is off")
    max_new_tokens: int = Field(64, ge=1, description="longest response")
    window: int = Field(1024, ge=16, description="tokens of prompt and response together")
    cut: Literal["start", "end"] = Field("start", description="which end of too long a prompt loses lines")
    batch: int = Field(128, ge=1, description="sequences decoded together")
    strategy: Literal["all", "best_of_n", "rejection"] = Field("all", description="which responses go on")
    reward: str | dict[str, Any] | list[str | dict[str, Any]] | None = Field(
        None, description="what chooses: a reward model, or names of rewards, see `tiebreak ls rewards`"
    )
    keep: int | None = Field(
        None, ge=1, description="best_of_n: the best so many, 1 when missing; rejection: accept until there are so many"
    )
    beta: float | None = Field(
        None, gt=0, description="rejection: temperature in units of the reward, 0.5 when missing"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Sample:
        if (self.strategy == "all") != (self.reward is None):
            raise ValueError("expected a reward to choose by with strategy best_of_n or rejection, and none with all")
        if self.strategy == "all" and self.keep is not None:
            raise ValueError("keep has no effect where strategy is all; leave it out, or name a strategy")
        if self.strategy != "rejection" and self.beta is not None:
            raise ValueError("beta has no effect without strategy: rejection; leave it out")
        if self.keep is not None and self.keep > self.n:
            raise ValueError(f"keep is {self.keep} of {self.n} responses; raise n, or keep fewer")
        terms = self.reward if isinstance(self.reward, list) else [self.reward]
        for knobs in (knobs for term in terms if isinstance(term, dict) for knobs in term.values()):
            if isinstance(knobs, dict) and (
                knobs.get("normalise") in ("whiten", "running") or isinstance(knobs.get("weight"), dict)
            ):
                raise ValueError(
                    "a reward that is normalised over a run or a batch, or whose weight changes, would say something "
                    "else of a prompt in each run; expected normalise: group or none, and a number as weight"
                )
        return self


class Budget(Section):
    """What a judge may spend at most, over all runs on one ledger."""

    usd: float | None = Field(None, gt=0, description="US dollars; the model's price has to be known")
    calls: int | None = Field(None, ge=1, description="calls that are paid for")


class Judge(Open):
    """Who judges, and in which orders."""

    by: str = Field(description="name of a judge, see `tiebreak ls judge`")
    orders: Literal["both", "random", "given"] = Field("both", description="both orders cancel position bias")
    attempts: int = Field(1, ge=1, description="times each question is asked")
    concurrency: int = Field(32, ge=1, description="calls in flight")
    limit: int | None = Field(None, ge=1, description="judge this many pairs only")
    again: list[Literal["slot", "tie", "both_bad", "skip", "invalid"]] = Field(
        default=[], description="verdicts to ask again, such as invalid"
    )
    batch_files: str | None = Field(None, description="folder of a provider's batch files; nobody is called")
    budget: Budget | None = Field(None, description="a cap on what it spends; reached, it stops and can go on later")


class Collect(Section):
    """What people are asked; `tiebreak collect --terminal` asks them."""

    question: str = Field("Which answer is better?", min_length=1, description="asked of each two answers")
    votes: int = Field(1, ge=1, description="people wanted for each comparison")
    least: int = Field(1, ge=1, description="judged comparisons before later sections go on")
    limit: int | None = Field(None, ge=1, description="ask about this many comparisons only")
    save: str | None = Field(
        None, description="folder that gets a preference set after each answer, user_preferences_NNN.json"
    )


class Audit(Section):
    """Which checks to run."""

    checks: list[str] | None = Field(None, description="names of checks, all when missing")
    knobs: dict[str, dict[str, Any]] = Field(default={}, description="check -> knobs that differ")


class Adapter(Section):
    """A small set of weights to train in place of all; the model without it is the reference."""

    kind: Literal["lora", "dora", "qlora"] = Field("lora", description="qlora: on a base in 4 bits, which needs CUDA")
    rank: int = Field(16, ge=1, description="width of the update")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / rank")
    targets: str | list[str] = Field("all-linear", description="names of the layers that get one")


class Reference(Section):
    """What a policy is compared with while it learns."""

    compute: Literal["cached", "step"] | None = Field(
        None,
        description="log-probs once before training, kept on disk; or in each step, from a frozen copy; cached when "
        "missing, unless the method asks for more",
    )
    sync_every: int | None = Field(
        None, ge=0, description="steps after which it takes a share of the policy; 0, if missing: it stays"
    )
    sync_mix: float | None = Field(
        None, gt=0, le=1, description="that share, 1 when missing; a small one at every step is a moving average"
    )


class Rollout(Section):
    """How a policy's own answers are drawn while it learns from them, and how often they are learned from."""

    n: int | None = Field(None, ge=1, description="answers per prompt; the method's when missing")
    temperature: float | None = Field(None, gt=0, description="of the policy; the method's when missing")
    max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    repeats: int | None = Field(None, ge=1, description="times through a batch of answers; the method's if missing")
    minibatches: int | None = Field(None, ge=1, description="steps each time; the method's when missing")
    batch: int = Field(256, ge=1, description="answers decoded together")
    endpoint: str | None = Field(None, description="address of a vLLM or SGLang that draws, such as http://gpu:8000/v1")
    model: str | None = Field(None, description="name under which that server has the start")
    refresh: Literal["lora", "disk", "none"] | None = Field(
        None, description="how it gets the weights: lora for an adapter (vLLM) and disk else (SGLang) when missing"
    )
    key_env: str | None = Field(None, description="environment variable with the server's key")
    concurrency: int = Field(256, ge=1, description="requests to the server at once")
    timeout: float = Field(600.0, gt=0, description="seconds for one of them")


class Stage(Open):
    """One model to train."""

    method: str = Field(description="name of an objective, see `tiebreak ls objectives`")
    model: str | dict[str, Any] = Field(
        description="another stage, a folder, a hub name, or a configuration (model_type, ...) to build from scratch"
    )
    reward: str | dict[str, Any] | list[str | dict[str, Any]] | None = Field(
        None, description="of a policy's own answers: a reward model, or names of rewards, see `tiebreak ls rewards`"
    )
    value: str | None = Field(
        None,
        description="start of the value net: a stage, a folder, or `shared`; the reward model when missing",
    )
    rollout: Rollout = Field(Rollout(), description="of methods that learn from the policy's own answers")
    prompts: str = Field("train", description="set of prompts that the policy answers")
    steps: int | None = Field(None, ge=1, description="batches of prompts to learn from, instead of `epochs`")
    rows: Literal["pairs", "chosen", "responses", "references"] | None = Field(
        None, description="pairs; for sft the prompts' references, imported responses, or the pairs' chosen side"
    )
    curated: str = Field("pairs", description="name of the list of curate steps whose rows are learned from")
    backbone: Literal["trained", "frozen"] = Field(
        "trained", description="of a reward model; frozen: its features are computed once, and a head learns on them"
    )
    band: int | None = Field(None, ge=0, description="learn from the rows of this band only, 0 the first")
    loss_on: Literal["completion", "assistant", "all"] = Field(
        "completion", description="sft: which tokens count; assistant: every assistant turn of a conversation"
    )
    epochs: float | None = Field(None, gt=0, description="times through the rows; the method's when missing")
    batch: int | None = Field(None, ge=1, description="rows per step; the method's when missing")
    batch_tokens: int | None = Field(None, ge=1, description="fill steps with this many tokens instead of `batch` rows")
    order: str = Field("random", description="name of an order, see `tiebreak ls orders`")
    mixture: dict[str, float] | None = Field(
        None, description="share of the rows by the prompts' source; as they come when missing"
    )
    learning_rate: float | None = Field(None, gt=0, description="at its highest; the method's when missing")
    decay: Literal["cosine", "linear", "constant", "inverse_sqrt", "warmup_stable_decay"] | None = Field(
        None, description="how the learning rate falls; the method's when missing"
    )
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps")
    optimizer: str = Field("adamw", description="name of an optimizer, see `tiebreak ls optimizers`")
    optimizer_knobs: dict[str, Any] = Field(default={}, description="its knobs that differ")
    weight_decay: float = Field(0.0, ge=0, description="of matrices; biases and norms are left alone")
    clip: float = Field(1.0, gt=0, description="bound of the gradient's norm")
    precision: Literal["float32", "bfloat16", "bfloat16_weights"] = Field(
        "float32", description="bfloat16: of matrix products; bfloat16_weights: of weights too, a float32 copy beside"
    )
    checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")
    tokens: int | Literal["auto"] | None = Field(
        None, description="tokens computed at once; a batch is split without changing its gradient; auto: what fits"
    )
    adapter: Adapter | None = Field(None, description="train an adapter instead of all weights")
    reference: Reference = Field(Reference(), description="of objectives that compare with one")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of a moving average of the weights, the result; 0: none")
    window: int = Field(1024, ge=16, description="tokens of prompt and completion together")
    cut: Literal["start", "end"] = Field("start", description="which end of too long a prompt loses lines")
    held_out: float = Field(0.1, ge=0, lt=1, description="share of prompts kept out, unless a test set holds pairs")
    limit: int | None = Field(None, ge=1, description="train on this many rows only")
    evaluate_every: int = Field(0, ge=0, description="steps; 0 evaluates at the end")
    checkpoint_every: int = Field(200, ge=1, description="steps")
    log_every: int = Field(10, ge=1, description="steps")
    keep: Literal["last", "best"] = Field("last", description="best: the weights with the best held-out result")
    patience: int = Field(0, ge=0, description="stop after this many evaluations without a lower loss; 0: never")
    trackers: list[str] = Field(default=[], description="where metrics go besides the file, see `tiebreak ls trackers`")
    vocabulary: int = Field(2048, ge=300, description="tokens, where a tokenizer is trained")


class WinRate(Section):
    """Whose answers are compared with whose, and who says which is better."""

    of: str = Field("policy", description="a training stage, a folder or a hub name")
    against: list[str] = Field(default=["sft"], description="models, or `reference` for the prompts' own")
    judge: Judge | None = Field(None, description="the judge section's when missing")
    prompts: str = Field("test", description="set of prompts")
    limit: int | None = Field(None, ge=1, description="use this many prompts only")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    max_new_tokens: int | None = Field(None, ge=1, description="the sample section's when missing")
    kl: bool = Field(False, description="also how far `of` is from each model, KL in nats; needs a temperature above 0")

    @model_validator(mode="after")
    def _has_a_distance(self) -> WinRate:
        if self.kl and self.temperature == 0:
            raise ValueError("kl is measured on sampled answers; expected a temperature above 0, such as 1")
        if self.kl and self.of == "reference":
            raise ValueError("kl is a model's; expected another name than reference as of")
        return self


class Evaluate(Section):
    """What is measured in the end."""

    win_rate: WinRate | None = Field(None, description="whose answers are better, by a judge")
    reward: str | None = Field(None, description="the reward model to test: a stage or a folder")
    truth: str | None = Field(None, description="a rule that knows: tests judge, reward model and policy against it")
    examples: int = Field(8, ge=0, description="prompts shown side by side")


class Report(Section):
    """The page at the end."""

    title: str = Field("", description="heading; the project's name when missing")
    figures: bool = Field(True, description="draw figures where matplotlib is installed")


class Export(Section):
    """Training rows for other tools."""

    curated: str = Field("pairs", description="name of the list of curate steps whose pairs are written")
    shape: Literal["preference", "preference_implicit", "unpaired", "prompt_completion"] = Field(
        "preference", description="columns, as TRL names them"
    )
    conversational: bool = Field(False, description="turns with role and content instead of text")
    path: str = Field("pairs.jsonl", description="file name ending in .jsonl or .parquet, inside the section's folder")

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if Path(path).name != path or not path.endswith((".jsonl", ".parquet")):
            raise ValueError("expected a file name without folders that ends in .jsonl or .parquet")
        return path


class Study(Section):
    """A recipe carried out many times: every combination of what varies is a cell, once with each seed."""

    seeds: list[int] = Field(default=[0], min_length=1, description="each cell is carried out once with each")
    vary: dict[str, dict[str, dict[str, Any]]] = Field(
        min_length=1, description="axis -> cell -> keys as on the command line (`train.policy.beta`) -> value"
    )
    jobs: int = Field(1, ge=1, description="seeds worked on at once, each in a process of its own")

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Study:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("expected each seed once in study.seeds")
        for axis, cells in self.vary.items():
            if not cells:
                raise ValueError(f"study.vary.{axis} has no cells; expected at least one, such as plain: {{}}")
        return self


class Recipe(Section):
    """A whole experiment."""

    project: str = Field("tiebreak", min_length=1, description="name of the folder under runs/, or a path with a slash")
    seed: int = Field(0, description="of every draw")
    threads: int | None = Field(
        None, ge=1, description="processor threads of the models; torch's own choice when missing"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where models train, sample and score")
    ledger: str | None = Field(None, description="path or URL; the project's own SQLite file when missing")
    import_: Import | None = Field(None, alias="import")
    sample: Sample | None = None
    collect: Collect | None = None
    judge: Judge | None = None
    audit: Audit | None = None
    curate: list[str | dict[str, Any]] | dict[str, list[str | dict[str, Any]]] | None = None
    train: dict[str, Stage] = Field(default={})
    evaluate: Evaluate | None = None
    report: Report | None = None
    export: Export | None = None
    study: Study | None = None

    @field_validator("project")
    @classmethod
    def _a_folder(cls, project: str) -> str:
        if project in (".", ".."):
            raise ValueError("expected a name, or a path with a slash such as ./here")
        return project

    @field_validator("curate", mode="before")
    @classmethod
    def _files(cls, curate: Any) -> Any:
        if isinstance(curate, str):
            raise ValueError(f"expected a list of steps, such as [{curate}]")
        for name in curate if isinstance(curate, dict) else ():
            if not NAME.fullmatch(str(name)):
                raise ValueError(f"{name!r} names a file; expected letters, digits, - and _")
        return curate

    @field_validator("train")
    @classmethod
    def _names(cls, train: dict[str, Stage]) -> dict[str, Stage]:
        for name in train:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} names a folder; expected letters, digits, - and _")
            if name == "reference":
                raise ValueError("'reference' means the prompts' own answers; expected another name for a stage")
        return train

    @property
    def curations(self) -> dict[str, list[str | dict[str, Any]]]:
        """Each list of curate steps by its name; one that has none is called ``pairs``."""
        return self.curate if isinstance(self.curate, dict) else {} if self.curate is None else {"pairs": self.curate}

    @property
    def folder(self) -> Path:
        """Where the project lives."""
        return Path(self.project).expanduser() if "/" in self.project else Path("runs") / self.project


def resolved(section: BaseModel) -> dict[str, Any]:
    """Return a section with all its defaults as strict JSON can hold it: infinity is the word ``inf``."""
    return _strict(section.model_dump(mode="json", by_alias=True, exclude_none=True))  # type: ignore[no-any-return]


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_strict(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
