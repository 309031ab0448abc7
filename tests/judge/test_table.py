import inspect
import subprocess
import sys

import pytest

from tiebreak.judge.rule import RULES
from tiebreak.judge.speaker import speaker
from tiebreak.judge.table import JUDGES, WHO
from tiebreak.records import InputError


@pytest.mark.parametrize("name", [row.name for row in JUDGES])
def test_the_knobs_of_a_row_are_the_parameters_of_its_maker(name):
    parameters = dict(inspect.signature(JUDGES[name].load()).parameters)
    asks = parameters.pop("who", None) is not None
    own = {key: value.default for key, value in parameters.items()}
    assert {**(WHO if asks else {}), **own} == dict(JUDGES[name].knobs)


def test_whom_to_ask_is_what_a_speaker_takes():
    assert {key: value.default for key, value in inspect.signature(speaker).parameters.items()} == WHO


@pytest.mark.parametrize("name", [row.name for row in RULES])
def test_every_rule_loads(name):
    assert callable(RULES[name].load())


def test_a_misspelt_judge_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="'pairwise'"):
        JUDGES["pairwize"]


def test_listing_judges_loads_no_client():
    code = "import sys, tiebreak.judge.table; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
