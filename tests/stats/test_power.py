import pytest

from tiebreak.stats.power import design_effect, detectable, half_width, n_for, n_for_paired


@pytest.mark.parametrize(
    ("p1", "at_80", "at_90"),
    [(0.52, 4904, 6563), (0.53, 2178, 2915), (0.55, 783, 1047), (0.60, 194, 259), (0.65, 85, 113)],
)
def test_published_sizes(p1, at_80, at_90):
    assert n_for(p1) == at_80
    assert n_for(p1, power=0.9) == at_90
    assert n_for(1 - p1) == at_80


@pytest.mark.parametrize(
    ("n", "half", "effect"), [(805, 3.5, 4.9), (100, 9.8, 14.0), (500, 4.4, 6.3), (2000, 2.2, 3.1)]
)
def test_published_resolutions(n, half, effect):
    assert round(100 * half_width(n), 1) == half
    assert round(100 * detectable(n), 1) == effect


def test_paired_size_and_design_effect():
    assert n_for_paired(0.05, 0.3) == 940
    assert design_effect(4, 0.5) == 2.5


def test_detectable_and_n_for_are_near_inverses():
    for n in (500, 2000, 10_000):
        assert n_for(0.5 + detectable(n)) == pytest.approx(n, rel=0.02)


@pytest.mark.parametrize(
    "call", [lambda: n_for(0.5), lambda: n_for(1.0), lambda: n_for_paired(0.4, 0.3), lambda: n_for_paired(0.0, 0.3)]
)
def test_questions_without_an_answer_are_refused(call):
    with pytest.raises(ValueError, match=r"0\.|0 <"):
        call()
