"""The scorer beside its peers: the page shows the figures of the result file, and the peers' code is found in any form."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.differential import PAGE, RESULTS, choice_outputs, peer, with_table

FOUND = json.loads(RESULTS.read_text("utf-8"))


def test_the_page_has_the_figures_of_the_result_file() -> None:
    page = PAGE.read_text("utf-8")
    assert page == with_table(page, FOUND), "run python -m experiments.differential"


def test_every_difference_has_a_reason() -> None:
    assert {row["against"] for row in FOUND} == {"lmms-eval 0.7.3", "Video-R1", "R1-V", "VLM-R1"}
    assert sum(row["outputs"] for row in FOUND) > 80_000
    assert [row["what"] for row in FOUND if "not explained" in row["reasons"]] == []


def test_outputs_are_of_every_kind() -> None:
    outputs = choice_outputs(400)
    assert outputs == choice_outputs(400)
    assert len(set(outputs)) > 200
    assert {"C)", "none", "Answer: c", "So (A) (D)"} <= set(choice_outputs(4000))


def test_functions_of_a_peer_are_found_without_what_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "peer.py"
    file.write_text(
        "import not_there\nimport re\nLIMIT = 3\nclass A(not_there.Base):\n    @staticmethod\n    def inner(x):\n"
        "        return len(re.findall('a', x)) + LIMIT\nsetup = not_there.run()\n"
    )
    assert peer(file)["inner"]("aba") == 5
