"""distilabel's side of ``judge.py``: rows through a loader and a text generation task, by a job in JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from judge_work import MODEL, TEMPLATE, TOP_LOGPROBS, VERDICT_TOKENS, rows


def main() -> None:
    """Run the job's rows through the pipeline and write the answers."""
    job = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DISTILABEL_CACHE_DIR"] = folder
        found = generate(job, folder)
    found["versions"] = {name: version(name) for name in ("distilabel", "openai")}
    Path(sys.argv[2]).write_text(json.dumps(found))


def generate(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the answer to each row (None: lost, empty: unreadable), the seconds, and how it failed if it did."""
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    columns = ["prompt", "first", "second"]
    given = [dict(zip(("number", *columns), (n, *row), strict=True)) for n, row in enumerate(rows(job["rows"]))]
    settings = {"max_new_tokens": VERDICT_TOKENS, "temperature": 0.0}
    if job.get("logprobs"):
        settings |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    limit = {"timeout": job["timeout"]} if job.get("timeout") else {}
    with Pipeline(name="judge", cache_dir=folder) as pipeline:
        load = LoadDataFromDicts(data=given, batch_size=job["batch"])
        llm = OpenAILLM(model=MODEL, base_url=job["url"], api_key="scripted-key", generation_kwargs=settings, **limit)
        ask = TextGeneration(llm=llm, template=TEMPLATE, columns=columns, input_batch_size=job["batch"])
        load >> ask
    began, problems, made = time.monotonic(), [], []
    try:
        made = pipeline.run()["default"]["train"]
    except Exception as error:  # it could not put its batches together: started again, it meets the same batches
        problems.append(f"{type(error).__name__}: {str(error)[:200]}")
    seconds = time.monotonic() - began
    answers: list[str | None] = [None] * len(given)
    for row in made:
        said = row["generation"]
        answers[row["number"]] = said if said is None or said in ("1", "2") else ""
    return {"answers": answers, "seconds": seconds, "problems": problems}


if __name__ == "__main__":
    main()
