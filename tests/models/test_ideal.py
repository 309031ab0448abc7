"""PAL's heads: ideal points, users on the simplex, and the folder they are saved in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.models.tiny import causal
from tiebreak.models.encode import encode_tree
from tiebreak.models.features import FeedForward, LinearHead, features, prompt_features, weights_mark
from tiebreak.models.gated import Gated
from tiebreak.models.ideal import (
    CONFIG,
    MIXES,
    Backbone,
    Head,
    IdealMixture,
    IdealPoint,
    Users,
    load_head,
    load_ideal,
    save_head,
)
from tiebreak.models.load import Loaded, save_model, to_reward
from tiebreak.records import InputError, Prompt, Response

USERS = ("ann", "bo", "cy")


def values(count: int = 12, width: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def heads() -> list[Head]:
    made: list[Head] = [
        LinearHead(5, 2, bias=True, seed=1),
        FeedForward(5, hidden=(4, 3), activation="tanh", masked=True, seed=2),
        *(IdealPoint(5, USERS, prototypes=3, mix=mix, seed=4) for mix in MIXES),
        IdealPoint(5, USERS, space=7, seed=4),
        Gated(5, 3, hidden=(4,), seed=6),
        IdealMixture(5, USERS, space=6, seed=5),
    ]
    for head in made:
        head.calibrate(values(), values(seed=1))
    return made


@pytest.mark.parametrize("mix", MIXES)
def test_a_score_is_the_distance_to_the_users_point(mix: str) -> None:
    head = IdealPoint(5, USERS, mix=mix, seed=3)
    head.calibrate(values())
    users = torch.tensor([0, 1, 2] * 4)
    share = torch.softmax(head.users.weight, 1)[users]
    project = head.project
    point = {"f(Pw)": lambda: project(share @ head.prototypes), "f(P)w": lambda: share @ project(head.prototypes)}
    expected = point.get(mix, lambda: share @ head.prototypes)()
    away = project((values() - values().mean(0)) / values().std(0, correction=0)) - expected
    assert torch.allclose(head(values(), users), -away.square().sum(1).sqrt(), atol=1e-5)


def test_with_one_prototype_all_users_share_one_point() -> None:
    head = IdealPoint(5, USERS, prototypes=1, seed=3)
    points = head.points(torch.tensor([0, 1, 2]))
    assert torch.equal(points[0], points[1])
    assert torch.equal(points[0], points[2])
    assert torch.allclose(points[0], head.project(head.prototypes)[0])


def test_moving_features_and_prototypes_together_changes_no_score() -> None:
    head = IdealPoint(5, USERS, mix="Pw", seed=3)
    with torch.no_grad():
        for parameter in head.project.body.parameters():
            parameter.zero_()
    users = torch.tensor([0, 1, 2] * 4)
    before = head(values(), users)
    with torch.no_grad():
        head.prototypes += 3.0
    assert torch.allclose(head(values() + 3.0, users), before, atol=1e-5)


def test_users_lie_on_the_simplex() -> None:
    users = IdealPoint(5, USERS, prototypes=4, seed=0).users
    with torch.no_grad():
        users.weight.mul_(10)
    shares = users.shares(torch.tensor([2, 0, 1]))
    assert torch.allclose(shares.sum(1), torch.ones(3))
    assert bool((shares >= 0).all())


def test_every_user_is_there_before_the_optimizer() -> None:
    head = IdealPoint(5, USERS, seed=0)
    assert head.users.weight.shape == (3, 2)
    assert any(parameter is head.users.weight for parameter in head.parameters())
    assert head.users.codes(["cy", "ann"]).tolist() == [2, 0]


def test_an_unknown_user_is_refused_and_not_added() -> None:
    users = Users(USERS, 2)
    with pytest.raises(InputError, match=r"does not know the user 'anna', only 3 others .* Did you mean 'ann'"):
        users.codes(["bo", "anna"])
    assert users.names == USERS
    with pytest.raises(InputError, match="already"):
        users.join("bo", torch.zeros(2))
    with pytest.raises(InputError, match="twice"):
        Users(("ann", "ann"), 2)
    with pytest.raises(InputError, match="0 prototypes"):
        Users(USERS, 0)


def test_a_score_behind_a_prompt_is_a_scaled_cosine() -> None:
    head = IdealMixture(5, USERS, seed=3)
    prompts, users = values(seed=7), torch.tensor([0, 1, 2] * 4)
    head.calibrate(values(), prompts)
    share = torch.softmax(head.users.weight, 1)[users]
    each = [g(head.asked(prompts)) for g in head.prototypes]
    point = sum(share[:, k : k + 1] * of_one for k, of_one in enumerate(each))
    answer = head.project(head.standard(values()))
    cosine = (answer * point).sum(1) / (answer.norm(dim=1) * point.norm(dim=1))
    assert torch.allclose(head(values(), users, prompts), cosine / 0.07, atol=1e-4)
    with torch.no_grad():
        head.log_scale.fill_(9.0)
    assert torch.allclose(head(values(), users, prompts), cosine * 100, atol=1e-3)


def test_what_a_head_needs_is_said() -> None:
    with pytest.raises(InputError, match="whose preference it is"):
        IdealPoint(5, USERS)(values())
    with pytest.raises(InputError, match="the prompts' features"):
        IdealMixture(5, USERS)(values(), torch.zeros(12, dtype=torch.long))
    with pytest.raises(InputError, match="no mix 'P'"):
        IdealPoint(5, USERS, mix="P")


def test_weights_are_drawn_from_the_seed_and_nothing_else() -> None:
    state = torch.random.get_rng_state()
    first, second = (IdealPoint(5, USERS, seed=8) for _ in range(2))
    other = IdealPoint(5, USERS, seed=9)
    assert torch.equal(first.prototypes, second.prototypes)
    assert not torch.equal(first.prototypes, other.prototypes)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_head_comes_back_from_its_folder(tmp_path: Path) -> None:
    users, prompts = torch.tensor([0, 1, 2] * 4), values(seed=1)
    for head in heads():
        save_head(head, tmp_path / "head", names=["a", "b", "c", "d", "e"])
        again = load_head(tmp_path / "head")
        assert type(again) is type(head)
        assert torch.equal(again(values(), users, prompts), head.eval()(values(), users, prompts))
    told = json.loads((tmp_path / "head" / CONFIG).read_text())
    assert (told["kind"], told["users"]) == ("pal_b", list(USERS))


def start() -> Loaded:
    loaded = causal("llama")
    return Loaded(to_reward(loaded.model, loaded.tokenizer, seed=2), loaded.tokenizer)


def asked() -> list[tuple[Prompt, list[Response]]]:
    said = {"How are you?": ("I am well.", "Go away."), "My cat left home": ("The cat came back.", "No." * 80, "Cat.")}
    prompts = {text: Prompt(text=text) for text in said}
    return [(p, [Response(prompt_id=p.id, text=answer) for answer in said[text]]) for text, p in prompts.items()]


@pytest.mark.parametrize("kind", [IdealPoint, IdealMixture])
def test_a_saved_head_scores_texts_as_each_user_likes_them(kind: type[Head], tmp_path: Path) -> None:
    loaded = start()
    save_model(loaded.model, loaded.tokenizer, tmp_path / "backbone")
    rows = asked()
    known = [encode_tree(loaded.tokenizer, prompt, answers, window=90)[0] for prompt, answers in rows]
    found, prompts = features(loaded.model, known[:1]), prompt_features(loaded.model, known[:1])
    head = kind(32, USERS, seed=1)
    head.calibrate(found.values + torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), prompts.values)
    below = Backbone(where=str(tmp_path / "backbone"), mark=weights_mark(loaded.model), window=90)
    save_head(head, tmp_path / "head", backbone=below)

    reader = load_ideal(tmp_path / "head")
    one, two = reader.scores(rows, user="cy")
    expected = head.eval()(found.each, torch.tensor([2, 2]), prompts.each.expand(2, 32))
    assert two is None
    assert one == pytest.approx(expected.tolist(), abs=1e-4)
    assert reader.scores(rows, user="ann")[0] != one
    with pytest.raises(InputError, match="does not know the user 'dee'"):
        reader.scores(rows, user="dee")


def test_a_backbone_may_lie_inside_the_folder_or_move(tmp_path: Path) -> None:
    loaded = start()
    head = LinearHead(32, seed=0)
    save_head(head, tmp_path / "head", backbone=Backbone(where="backbone", mark=weights_mark(loaded.model)))
    save_model(loaded.model, loaded.tokenizer, tmp_path / "head" / "backbone")
    inside = load_ideal(tmp_path / "head").scores(asked())
    (tmp_path / "head" / "backbone").rename(tmp_path / "moved")
    assert load_ideal(tmp_path / "head", backbone=str(tmp_path / "moved")).scores(asked()) == inside
    assert inside[0] is not None
    assert all(math.isfinite(score) for score in inside[0])


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    loaded = start()
    save_model(loaded.model, loaded.tokenizer, tmp_path / "backbone")
    save_head(LinearHead(32), tmp_path / "head", backbone=Backbone(where=str(tmp_path / "backbone"), mark="another"))
    with pytest.raises(InputError, match="learned on another backbone"):
        load_ideal(tmp_path / "head")


def test_a_folder_that_is_no_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a head"):
        load_head(tmp_path)
    save_head(LinearHead(5), tmp_path / "head")
    with pytest.raises(InputError, match="reads features that no model here computes"):
        load_ideal(tmp_path / "head")
    (tmp_path / "head" / CONFIG).write_text('{"kind": "linear"}')
    with pytest.raises(InputError, match="cannot be read: KeyError"):
        load_head(tmp_path / "head")
