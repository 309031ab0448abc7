"""The table of formats that ``tiebreak import`` reads; each row's code is loaded when it is used."""

from __future__ import annotations

from tiebreak.registry import Row, Table

FORMATS = Table(
    "data",
    "format",
    [
        Row(
            name="preferences",
            does="prompt, chosen, rejected: JSON, JSONL or Parquet; explicit or implicit prompt, text or turns",
            target="tiebreak.data.preferences:read",
            knobs={"source": "", "by": "", "licence": "", "split_at": ""},
        ),
        Row(
            name="hh",
            does="HH-RLHF transcripts, split at the last assistant turn",
            target="tiebreak.data.preferences:read_transcripts",
            knobs={"source": "hh-rlhf", "by": "", "licence": "MIT", "conversational": False},
            paper="arXiv:2204.05862",
        ),
        Row(
            name="tldr_comparisons",
            does="human comparisons of two summaries with worker and confidence from 1 (first) to 9 (second)",
            target="tiebreak.data.summaries:read_comparisons",
            knobs={"source": "summarize_from_feedback", "licence": "", "order": "unknown", "min_strength": 0.0},
            paper="arXiv:2009.01325",
        ),
        Row(
            name="judged_summaries",
            does="posts with a model's summary, a reference and, for some, a judge's verdict and explanation",
            target="tiebreak.data.summaries:read_judged",
            knobs={"source": "tldr-judged", "licence": "", "model": "oai1b", "by": "model:gpt-4"},
            paper="arXiv:2403.17031",
        ),
        Row(
            name="llmbar",
            does="LLMBar's pairs with their label and what judges said of them in both orders",
            target="tiebreak.data.verdicts:read_llmbar",
            knobs={"source": "llmbar", "licence": "MIT"},
            paper="arXiv:2310.07641",
        ),
        Row(
            name="reviews",
            does="FastChat's reviews: two answers to a question, with a score for each",
            target="tiebreak.data.verdicts:read_reviews",
            knobs={"source": "", "licence": "", "by": "", "questions": "question.jsonl", "answers": "answer*.jsonl"},
        ),
        Row(
            name="prompts",
            does="a text file with a prompt on each line, spaces kept: what is to be answered",
            target="tiebreak.data.prompts:read",
            knobs={"source": "", "licence": ""},
        ),
        Row(
            name="table",
            does="any CSV, TSV, JSON, JSONL or Parquet file, by a mapping file",
            target="tiebreak.data.mapped:read",
            knobs={"mapping": ""},
        ),
        Row(
            name="world",
            does="a small made-up world of posts whose true quality is known",
            target="tiebreak.data.world:read",
            knobs={"n": 2000, "held_out": 0, "seed": 0},
        ),
        Row(
            name="arithmetic",
            does="sums with a known answer, and written answers that are right with a planted probability",
            target="tiebreak.data.arithmetic:read",
            knobs={"n": 2000, "held_out": 0, "digits": 2, "operations": "+", "steps": False, "right": 0.5, "seed": 0},
        ),
    ],
)
