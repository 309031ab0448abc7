"""alpaca_eval's side of ``judge.py``: its pairwise annotator, its OpenAI client and its JSON cache, by a job in JSON.

``threads`` 0 leaves its own number; ``one_chunk`` hands it all rows at once, without a stop every 128. ``reused`` makes
its client once instead of once a call, a patch of three lines that is not alpaca_eval's: see ``_reuse``.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from judge_work import MODEL, TEMPLATE, VERDICT_TOKENS, rows

TOP_LOGPROBS = 5
"""As many as alpaca_eval's own configurations ask for."""


def config(job: dict[str, Any]) -> dict[str, Any]:
    """Return the annotator's configuration: the words of all sides, the parser of alpaca_eval's default annotator."""
    limit = {"client_kwargs": {"timeout": job["timeout"]}} if job.get("timeout") else {}
    return {
        "judge": {
            "prompt_template": "judge/words.txt",
            "fn_completions": "openai_completions",
            "completions_kwargs": {
                "model_name": MODEL,
                "max_tokens": VERDICT_TOKENS,
                "temperature": 0.0,
                "logprobs": True,
                "top_logprobs": TOP_LOGPROBS,
                "price_per_token": 0.0,
                **limit,
            },
            "fn_completion_parser": "logprob_parser",
            "completion_parser_kwargs": {
                "numerator_token": "1",
                "denominator_tokens": ["1", "2"],
                "is_binarize": False,
            },
            "completion_key": "completions_all",
            "batch_size": 1,
            "is_randomize_output_order": False,  # the rows have both orders already
        }
    }


def main() -> None:
    """Annotate the job's rows and write the answers."""
    job = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        found = annotate(job, Path(folder))
    found["versions"] = {name: version(name) for name in ("alpaca_eval", "openai")}
    Path(sys.argv[2]).write_text(json.dumps(found))


def annotate(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the answer to each row (None: lost, empty: unreadable), the seconds, and how starts of it failed."""
    import yaml

    clients = folder / "clients.yaml"
    clients.write_text(yaml.safe_dump({"default": [{"base_url": job["url"], "api_key": "scripted-key"}]}))
    os.environ["OPENAI_CLIENT_CONFIG_PATH"] = str(clients)
    if job["threads"]:
        os.environ["OPENAI_MAX_CONCURRENCY"] = str(job["threads"])
    from alpaca_eval.annotators import PairwiseAnnotator

    if job["reused"]:
        _reuse()
    (folder / "judge").mkdir()
    words = TEMPLATE.replace("{{prompt}}", "{instruction}")
    words = words.replace("{{first}}", "{output_1}").replace("{{second}}", "{output_2}")
    (folder / "judge" / "words.txt").write_text(f"<|im_start|>user\n{words}\n<|im_end|>")
    (folder / "judge" / "configs.yaml").write_text(yaml.safe_dump(config(job)))
    given = [
        {"instruction": row.prompt, "output_1": row.first, "output_2": row.second, "number": number}
        for number, row in enumerate(rows(job["rows"]))
    ]
    began = time.monotonic()
    annotator = PairwiseAnnotator(annotators_config="judge", base_dir=folder)
    problems = []
    for _ in range(job.get("starts", 1)):
        try:
            annotator(given, **({"chunksize": None} if job["one_chunk"] else {}))
            break
        except Exception as error:  # what was stored before it is kept, and a user would start it again
            problems.append(f"{type(error).__name__}: {str(error)[:200]}")
    return {"answers": _stored(annotator, given), "seconds": time.monotonic() - began, "problems": problems}


def _stored(annotator: Any, given: list[dict[str, Any]]) -> list[str | None]:
    """Return what its cache holds on each row; it drops a row whose answer it could not read."""
    found = annotator.df_annotations
    known = {}
    for row in [] if found is None else found.to_dict(orient="records"):
        known[row["instruction"], row["output_1"], row["output_2"]] = row["preference"]
    answers: list[str | None] = []
    for row in given:
        said = known.get((row["instruction"], row["output_1"], row["output_2"]), math.nan)
        answers.append(None if math.isnan(said) else "1" if 1 <= said < 1.5 else "2" if said > 1.5 else "")
    return answers


def _reuse() -> None:
    from alpaca_eval import utils

    made: list[Any] = []
    make = utils.get_all_clients
    utils.get_all_clients = lambda *given, **named: made or made.extend(make(*given, **named)) or made


if __name__ == "__main__":
    main()
