"""A server as the source of rollouts, against one that runs a tiny model in this process and speaks as vLLM does."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.acting import GOOD, act, column, ending, lines, own_logps, prompts, start
from tests.train.made import weights
from tests.train.served import EOS, Twist, Vllm, change, client, gap, moved, rolls, saved, told
from tests.train.tabular import ONE_STEP, REWARDS, Drawn, acted, expected, slope, table, token_logps
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.models.generate import generate
from tiebreak.recipe.reading import SERVED, rollout_of
from tiebreak.recipe.sections import Stage
from tiebreak.records import InputError
from tiebreak.train.actor import Looked
from tiebreak.train.collect import Judged
from tiebreak.train.credit import credit
from tiebreak.train.pace import Pace
from tiebreak.train.policy_gradient.presets import PLAIN
from tiebreak.train.policy_gradient.shape import shaped
from tiebreak.train.policy_gradient.switches import policy_gradient
from tiebreak.train.rollouts import Rollout
from tiebreak.train.serving import mark_of_weights

KEY = "sk-very-secret-0123456789"
LORA = Adapter(rank=4, alpha=8.0)
THREE = {"asked": prompts(9), "pace": Pace(epochs=1.0, batch=3, learning_rate=1e-2, warmup=0.0, decay="constant")}
"""Three steps of nine prompts."""


@pytest.mark.parametrize(("temperature", "ends"), [(1.0, 0.2), (0.6, 0.01)])
def test_draws_come_as_token_ids_with_the_log_probs_of_the_policy(
    temperature: float, ends: float, tmp_path: Path
) -> None:
    model = ending(ends)
    with Vllm(saved(model, tmp_path)) as server:
        rolled = rolls(client(server, model), 4, n=8, temperature=temperature)
    assert gap(model, rolled, temperature) < 1e-5
    finishes = [finish for one in rolled for finish in one.finishes]
    assert set(finishes) == {"stop", "length"}
    branches = [branch for one in rolled for branch in one.tree.branches]
    assert [branch[-1] == EOS for branch in branches] == [finish == "stop" for finish in finishes]
    assert all(len(b) == 5 for b, finish in zip(branches, finishes, strict=True) if finish == "length")
    assert len(set(branches)) > 8, "each draw has a stream of its own"


def test_a_request_leaves_nothing_to_the_servers_defaults(tmp_path: Path) -> None:
    model = start()
    with Vllm(saved(model, tmp_path)) as server:
        source = client(server, model)
        for turn in ("0.0", "1.0"):
            rolls(source, 2, n=3, turn=turn)
        rolls(client(server, model, seed=4), 2, n=3)
        bodies = server.asked("/v1/completions")
    plain = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "temperature": 1.0, "n": 1}
    assert all(plain.items() <= body.items() for body in bodies)
    assert {tuple(body["prompt"]) for body in bodies} == {one.ids for one in prompts(2)}
    assert all((body["max_tokens"], body["stop_token_ids"]) == (5, [EOS]) for body in bodies)
    seeds = {body["seed"] for body in bodies}
    assert len(seeds) == 18, "by seed, prompt, turn and draw"
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_draws_are_distributed_as_the_policy_says(tmp_path: Path) -> None:
    """The first token is a good one as often as it is likely to be, to four standard errors."""
    model, n = start(), 200
    with Vllm(saved(model, tmp_path)) as server:
        (one,) = rolls(client(server, model, how=Rollout(max_new_tokens=1)), 1, n=n)
    with torch.no_grad():
        chances = model(torch.tensor([one.tree.trunk])).logits[0, -1].softmax(-1)
    expected_share = float(chances[list(GOOD)].sum())
    share = sum(branch[0] in GOOD for branch in one.tree.branches) / n
    assert abs(share - expected_share) < 4 * math.sqrt(expected_share * (1 - expected_share) / n)


def test_the_likeliest_tokens_are_asked_for_once(tmp_path: Path) -> None:
    model = start()
    with Vllm(saved(model, tmp_path)) as server:
        rolled = rolls(client(server, model), 2, n=2, temperature=0.0)
        assert len(server.asked("/v1/completions")) == 2
    for one in rolled:
        ((best,),) = generate(model, [one.tree.trunk], ["x"], max_new_tokens=5, temperature=0.0, eos=EOS, pad=1)
        assert [branch[: len(best.ids)] for branch in one.tree.branches] == [best.ids] * 2
    assert gap(model, rolled) < 1e-5


@pytest.mark.parametrize("refresh", ["disk", "lora"])
def test_the_server_has_the_weights_that_the_policy_has(refresh: str, tmp_path: Path) -> None:
    """Whoever changed them, once each; what was handed over is gone from the disk when the server is left."""
    model = start()
    base = saved(model, tmp_path)
    adapter = LORA if refresh == "lora" else None
    if adapter:
        adapt(model, adapter, seed=1)
    path = "/v1/load_lora_adapter" if adapter else "/update_weights_from_disk"
    with Vllm(base) as server:
        source = client(server, model, refresh=None, adapter=adapter)
        assert gap(model, rolls(source)) < 1e-4
        for step in (1, 2):
            moved(model)
            assert gap(model, rolls(source, turn=f"{step}.0")) < 1e-4
            rolls(source, turn=f"{step}.1")
            assert len(server.asked(path)) == 1 + step
        if adapter:
            names = [body["lora_name"] for body in server.asked(path)]
            assert len(set(names)) == 3
            assert set(server.models) == {"start", names[-1]}, "those before are unloaded"
        source.close()
        assert set(server.models) == {"start"}
    assert not (tmp_path / "serving").exists()


def test_a_mark_of_weights_changes_with_any_of_them() -> None:
    model = start()
    marks = {mark_of_weights(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-4
        marks.add(mark_of_weights(model))
    assert len(marks) == 1 + len(list(model.parameters()))
    assert mark_of_weights(model) in marks


def test_tokens_of_a_server_that_lags_are_weighed_by_what_they_deserve(tmp_path: Path) -> None:
    """min(pi / mu, bound), where mu is the start that a deaf server goes on with."""
    old, model = start(), moved(start())
    with Vllm(saved(old, tmp_path), deaf=True) as server:
        rolled = rolls(client(server, model, refresh="disk"))
        assert len(server.asked("/update_weights_from_disk")) == 1
    assert gap(old, rolled) < 1e-5
    trees = [one.tree for one in rolled]
    pi, mu = own_logps(model, trees), own_logps(old, trees)
    judged = [Judged(one, (1.0, 0.0, 0.5), {"planted": (1.0, 0.0, 0.5)}) for one in rolled]
    batch, numbers = credit(
        judged,
        Looked(pi, None, None),
        knobs={**PLAIN, "trust": 1.5},
        beta=0.0,
        shape=partial(shaped, missing_eos="", missing_eos_value=1.0, share=0.0, limit=5),
        own=False,
        exact=False,
        device=torch.device("cpu"),
    )
    torch.testing.assert_close(batch.flat["trust"], (pi - mu).exp().clamp(max=1.5), atol=1e-4, rtol=1e-4)
    assert float((batch.flat["trust"] == 1.5).sum()) > 0
    assert numbers["sampling/gap"] == pytest.approx(float((pi - mu).square().mean().sqrt()), abs=1e-4)


def test_the_weights_make_the_gradient_that_of_the_policy_itself() -> None:
    """Over every answer of one token, drawn by a policy that lags; a bound takes away what lies above it."""
    theta, lag = table(0), table(1).detach()

    def found(bound: float) -> torch.Tensor:
        def loss(drawn: list[Drawn]) -> torch.Tensor:
            old = token_logps(theta, drawn).detach()
            trust = (old - token_logps(lag, drawn)).exp().clamp(max=bound)
            gains = torch.stack([REWARDS[one.prompt, one.answer[0]] for one in drawn])
            plain = {"clip": "none", "aggregation": "sequence_sum", "ratio": "token"}
            return policy_gradient(acted(theta, drawn, gains, trust=trust), **plain).loss

        return expected(theta, [0], loss, answers=ONE_STEP, by=lag)

    one_step = theta[0, 0].log_softmax(-1).exp()
    whole = -slope((one_step * REWARDS[0, :3]).sum(), theta)
    torch.testing.assert_close(found(math.inf), whole, atol=1e-12, rtol=0)
    cut = torch.minimum(one_step.detach(), 1.1 * lag[0, 0].softmax(-1))
    below = -slope((cut * REWARDS[0, :3] * theta[0, 0].log_softmax(-1)).sum(), theta)
    torch.testing.assert_close(found(1.1), below, atol=1e-12, rtol=0)
    assert not torch.allclose(below, whole, atol=1e-3)


def test_an_answer_that_ends_at_the_limit_is_told_by_its_last_token(tmp_path: Path) -> None:
    def too_long(choice: dict[str, Any], body: dict[str, Any]) -> None:
        choice["finish_reason"] = "length"

    model = ending(0.5)
    with Vllm(saved(model, tmp_path), twist=too_long) as server:
        rolled = rolls(client(server, model), 3, n=4)
    for one in rolled:
        assert [b[-1] == EOS for b in one.tree.branches] == [finish == "stop" for finish in one.finishes]
    assert any("stop" in one.finishes for one in rolled)


@pytest.mark.parametrize(("odd", "refused"), [(1, False), (2, True)])
def test_answers_that_end_at_another_token_count_as_cut_off_while_they_are_few(
    odd: int, refused: bool, tmp_path: Path
) -> None:
    left = list(range(odd))

    def elsewhere(choice: dict[str, Any], body: dict[str, Any]) -> None:
        if left:
            choice["finish_reason"] = "stop"
            left.pop()

    model = start()
    with Vllm(saved(model, tmp_path), twist=elsewhere) as server:
        if refused:
            assert "never at the tokenizer's EOS" in told(server, model)
        else:
            rolled = rolls(client(server, model), 4, n=3)
            assert {finish for one in rolled for finish in one.finishes} == {"length"}


@pytest.mark.parametrize(
    ("twist", "said"),
    [
        (change(token_ids=None, tokens=["a", "b"]), "no token ids.*return_token_ids"),
        (change(logprobs=None), "no log-probs.*--max-logprobs"),
        (change(token_logprobs=[-1.0]), "5 token ids with 1 log-probs"),
        (change(token_logprobs=[-1.0, math.nan, -1.0, -1.0, -1.0]), "no finite number"),
        (change(token_logprobs=[-1.0, None, -1.0, -1.0, -1.0]), "no finite number"),
        (change(token_logprobs=[-1.0, 7.5, -1.0, -1.0, -1.0]), r"7\.5 as a log-prob.*processed_logprobs"),
        (change(token_ids=[5, 6, 7, 8, 4000]), "the token 4000.*the model the training starts from"),
        (change(finish_reason="abort"), "something else than was asked for"),
    ],
)
def test_an_answer_to_learn_nothing_from_is_refused_with_the_cure(twist: Twist, said: str, tmp_path: Path) -> None:
    model = start()
    with Vllm(saved(model, tmp_path), twist=twist) as server:
        error = told(server, model)
    assert re.search(said, error), error


def test_ids_are_read_from_the_names_of_tokens_where_they_stand_nowhere_else(tmp_path: Path) -> None:
    model = start()
    with Vllm(saved(model, tmp_path), twist=change(token_ids=None)) as server:
        assert gap(model, rolls(client(server, model))) < 1e-5


def test_log_probs_from_before_the_temperature_are_refused(tmp_path: Path) -> None:
    model = start()
    with Vllm(saved(model, tmp_path), raw=True) as server:
        assert gap(model, rolls(client(server, model))) < 1e-5, "at 1 there is nothing to tell"
        with pytest.raises(InputError, match=r"before the temperature of 0\.7.*--logprobs-mode processed_logprobs"):
            rolls(client(server, model), temperature=0.7)


@pytest.mark.parametrize(("temperature", "probes"), [(0.7, 2), (0.99, 4)])
def test_a_temperature_is_looked_for_until_rounding_cannot_hide_it(
    temperature: float, probes: int, tmp_path: Path
) -> None:
    model = start()
    with Vllm(saved(model, tmp_path)) as server:
        source = client(server, model)
        for turn in ("0.0", "0.1"):
            rolls(source, temperature=temperature, turn=turn)
        assert sum(body["max_tokens"] == 1 for body in server.asked("/v1/completions")) == probes


def test_a_dead_server_is_one_clear_sentence_at_once(tmp_path: Path) -> None:
    model = start()
    with Vllm(saved(model, tmp_path)) as server:
        pass
    said = told(server, model, backoff=60.0)
    assert server.url in said
    assert "cannot be reached" in said
    assert "run again: the training goes on from its last checkpoint" in said


@pytest.mark.parametrize(
    ("path", "status", "more", "said"),
    [
        ("/v1/completions", 404, {}, "has to serve 'start' and take token ids"),
        ("/v1/completions", 401, {}, "name the variable in key_env"),
        ("/update_weights_from_disk", 404, {"refresh": "disk"}, "only SGLang loads whole models"),
        ("/v1/load_lora_adapter", 404, {"adapter": LORA}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.*--max-lora-rank 4"),
    ],
)
def test_what_a_server_refuses_is_told_with_the_cure(
    path: str, status: int, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = start()
    base = saved(model, tmp_path)
    if "adapter" in more:
        adapt(model, LORA, seed=1)
        more = {**more, "refresh": "lora"}
    with Vllm(base, refuse={path: status}) as server:
        error = told(server, model, **more)
    assert re.search(said, error), error
    assert f"answered {status}: scripted" in error


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"refresh": "lora"}, "set adapter"),
        ({"refresh": "disk", "adapter": LORA}, "set refresh: lora"),
        ({"refresh": "lora", "adapter": Adapter(kind="dora")}, "no dora"),
        ({"refresh": "dsk"}, "There is no refresh 'dsk'.*'disk'"),
    ],
)
def test_a_refresh_that_does_not_go_with_the_training_is_refused_at_the_door(
    more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = start()
    with Vllm(saved(model, tmp_path)) as server, pytest.raises(InputError, match=said):
        client(server, model, **more)
    assert server.log == []


def test_the_key_goes_into_the_header_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_KEY", KEY)
    model = start()
    with Vllm(saved(model, tmp_path), refuse={"/v1/completions": 401}) as server:
        said = told(server, model, refresh="disk", key_env="ROLLOUT_KEY")
    assert server.keys == {f"Bearer {KEY}"}
    assert "ROLLOUT_KEY" in said
    assert KEY not in said + json.dumps(server.log)
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("adapter", [None, LORA], ids=["disk", "lora"])
def test_a_policy_learns_from_a_server_as_from_itself(adapter: Adapter | None, tmp_path: Path) -> None:
    """Of three steps each begins with the weights that the one before left, so that nothing is off-policy."""
    model = start()
    before = weights(model).clone()
    with Vllm(saved(model, tmp_path)) as server:
        source = client(server, model, refresh=None, adapter=adapter)
        done = act("grpo", tmp_path / "run", model, source=source, adapter=adapter, **THREE)
        asked = server.asked("/v1/load_lora_adapter" if adapter else "/update_weights_from_disk")
    assert (done.steps, len(asked)) == (3, 3)
    assert len(weights(model)) > len(before) or not torch.equal(weights(model), before)
    gaps = column(tmp_path / "run", "sampling/gap")
    assert len(gaps) == 3
    assert max(gaps) < 1e-4


def test_a_server_that_keeps_its_weights_falls_behind_and_the_gap_says_so(tmp_path: Path) -> None:
    model = start()
    with Vllm(saved(model, tmp_path)) as server:
        act("grpo", tmp_path / "run", model, source=client(server, model), **THREE)
    first, second, third = column(tmp_path / "run", "sampling/gap")
    assert first < 1e-4
    assert 1e-3 < second < third


def test_a_run_that_lost_its_server_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """With another server it ends as if the first had lived: draws and all, each step is what it would have been."""
    ends = []
    for lives in (math.inf, 9):
        model, folder = start(), tmp_path / f"{lives}"
        base = saved(model, folder)
        with Vllm(base, lives=lives) as server:
            source = client(server, model, refresh="disk", retries=1)
            if lives == math.inf:
                act("grpo", folder / "run", model, source=source, checkpoint_every=1, **THREE)
            else:
                with pytest.raises(InputError, match=r"500: scripted.*goes on from its last checkpoint"):
                    act("grpo", folder / "run", model, source=source, checkpoint_every=1, **THREE)
        if lives != math.inf:
            assert len(lines(folder / "run")) == 1
            model = start()
            with Vllm(base) as server:
                source = client(server, model, refresh="disk")
                act("grpo", folder / "run", model, source=source, checkpoint_every=1, **THREE)
        ends.append((weights(model), column(folder / "run", "objective/scores")))
    assert ends[0][1] == ends[1][1]
    torch.testing.assert_close(ends[0][0], ends[1][0], atol=1e-6, rtol=0)


def test_keys_about_the_server_are_no_keys_of_a_rollout() -> None:
    keys = {"endpoint": "http://gpu:8000/v1", "model": "start", "refresh": "lora", "key_env": "KEY", "timeout": 9.0}
    stage = Stage(method="grpo", model="m", rollout={**keys, "n": 4})
    assert set(stage.rollout.model_dump()) >= SERVED
    assert Rollout(**rollout_of(stage)).n == 4
