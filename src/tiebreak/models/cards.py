"""The model card of a trained model: what it is, what it comes from, and the line of Python that uses it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from tiebreak.models.forms import Form

_OURS = (
    "import tiebreak; from tiebreak.models.load import load_reward",
    "tiebreak.score_responses(load_reward({name}), [(prompt, responses)])",
)
_PIPED = "from transformers import pipeline"
_SCORED = "pipeline('text-classification', {name}, function_to_apply='none', top_k=None)({text})"
_USE: Mapping[str, tuple[str, str]] = {
    "policy": (_PIPED, "pipeline('text-generation', {name})(prompt)"),
    "scalar": (_PIPED, _SCORED),
    "attributes": (_PIPED, _SCORED),
    "steps": (
        "from transformers import AutoModelForTokenClassification as Model, AutoTokenizer as Tokenizer",
        "Model.from_pretrained({name})(**Tokenizer.from_pretrained({name})({text}, return_tensors='pt'))"
        ".logits.softmax(-1)[0, :, 1]",
    ),
}
"""By kind what to import, and the line; the kinds that are not here need this package to put answers side by side."""

_IS: Mapping[str, str] = {
    "policy": "A causal language model.",
    "scalar": "A reward model: one number for a prompt and an answer, the higher the better.",
    "attributes": "A reward model with a mark for each of several attributes.",
    "skew": "A preference model: an embedding of a prompt and an answer, by which answers to one prompt are compared; "
    "its preferences may go in circles.",
    "steps": "A process reward model: at the last token of each step of an answer, the probability that it is right.",
    "pairwise": "A preference model: it reads a prompt and two answers at once and says which is better.",
    "gap": "A reward model of improvement: how much better an answer is than a draft that it is shown.",
}


def model_card(
    name: str,
    form: Form | None,
    base: str,
    method: str,
    *,
    does: str = "",
    formula: str = "",
    paper: str = "",
    licence: str = "",
    eos: str = "",
    plain: bool = True,
) -> str:
    """Return the text of README.md for a model folder.

    Args:
        name: what the model is called, and where it is loaded from in the line of use.
        form: of its head; None for a policy.
        base: the model it was trained from.
        method: the name of the row that trained it.
        does: what that does, in a line.
        formula: what that minimises, in a line.
        paper: where it was published.
        licence: of the weights, as a line of its own; nothing is said about it where it is empty.
        eos: what has to follow an answer's text, see :func:`ending`.
        plain: whether plain transformers has a class for it, see :func:`tiebreak.models.heads.loads_plainly`.
    """
    kind = "policy" if form is None else form.kind
    text = f"prompt + response + {eos!r}" if eos else "prompt + response"
    imported, line = _USE.get(kind, _OURS) if plain else _OURS
    told = {"Base": _code(base), "Method": ", ".join(part for part in (_code(method), does) if part)}
    told |= {"Loss": _code(formula), "Paper": paper, **_told(form)}
    rows = [f"- {what}: {said}" for what, said in told.items() if said]
    parts = [
        _front(kind, base, method),
        f"# {name}",
        _IS[kind],
        "\n".join(rows),
        "## Use",
        f"```python\n{imported}\n\n{line.format(name=repr(name), text=text)}\n```",
        *(["## Licence", licence] if licence else []),
    ]
    return "\n\n".join(parts) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _told(form: Form | None) -> dict[str, str]:
    """Return what a reader has to know to make a score of the outputs."""
    if form is None:
        return {}
    weighted = ", ".join(f"{weight:g} {name}" for name, weight in zip(form.names, form.weights, strict=True))
    return {
        "scalar": {"Score": "the difference of two answers' scores is what was compared in training"},
        "attributes": {"Score": f"the weighted sum {weighted}"},
        "skew": {
            "Score": "P(i is better than j) = sigmoid(s(i, j) / tau), s(i, j) the sum over blocks of two outputs of "
            f"v_i[0] v_j[1] - v_i[1] v_j[0], tau = {form.tau:g}"
        },
        "steps": {
            "Score": f"the {form.aggregate} of the steps' probabilities",
            "Steps": f"end at the token that ends {json.dumps(form.separator)}, and at the last token",
        },
        "pairwise": {"Score": "P(a is better than b) = sigmoid(s(a, b) - s(b, a)), both orders read"},
        "gap": {"Score": "P(a is better than b) = sigmoid(s(a behind b) - s(b behind a))"},
    }[form.kind]


def _front(kind: str, base: str, method: str) -> str:
    """Return the metadata that the hub reads; a base that is a folder is not named there."""
    task = {"policy": "text-generation", "steps": "token-classification"}.get(kind, "text-classification")
    held: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task}
    if base and not base.startswith((".", "/", "~")):
        held["base_model"] = base
    held["tags"] = ["tiebreak", "policy" if kind == "policy" else "reward-model", *([method] if method else [])]
    return "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in held.items()) + "\n---"


def ending(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what has to follow an answer's text so that it has ended: EOS, or nothing where the tokenizer adds it."""
    ids = tokenizer("a")["input_ids"]
    return "" if ids and ids[-1] == tokenizer.eos_token_id else str(tokenizer.eos_token)


def head_card(name: str, base: str, method: str, *, does: str = "", formula: str = "", paper: str = "") -> str:
    """Return the text of README.md for the folder of a head that stands apart from its frozen backbone.

    Args:
        name: where the head is loaded from.
        base: its backbone.
        method: the name of the row that trained it.
        does: what that does, in a line.
        formula: what that minimises, in a line.
        paper: where it was published.
    """
    told = {"Backbone": _code(base), "Method": ", ".join(part for part in (_code(method), does) if part)}
    told |= {"Loss": _code(formula), "Paper": paper}
    rows = [f"- {what}: {said}" for what, said in told.items() if said]
    use = f"from tiebreak.models.ideal import load_ideal\n\nload_ideal({name!r}).scores([(prompt, responses)])"
    told_of = "A head on features of a frozen backbone. It scores answers; one for users takes `user=` too."
    return "\n\n".join([f"# {name}", told_of, "\n".join(rows), "## Use", f"```python\n{use}\n```"]) + "\n"
