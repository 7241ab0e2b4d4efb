"""Where a report links to: what lies beside it, and W&B only where the address is certain."""

from urllib.parse import unquote

import pytest

from softgate.evaluation.reports.links import beside, tracked
from softgate.evaluation.runs import Run

WANDB = {"entity": "a team", "project": "soft/gate", "offline": False}


def test_an_address_leads_from_the_page_to_the_run_and_is_never_a_scheme(tmp_path):
    page = tmp_path / "report"
    for path in (tmp_path / "sweep" / "0-a b?#", page / "javascript:alert(1)", page):
        address = beside(path, page)
        assert address.startswith((".", ".."))
        assert not set(address) & set(":?#' ")
        assert (page / unquote(address)).resolve() == path
    assert beside(None, page) is beside(page, None) is None


def run(directory, **wandb):
    directory.mkdir(exist_ok=True)
    (directory / "wandb-id").write_text("abc12\n")
    return Run(directory, "x", {"logger": {"wandb": WANDB | wandb}}, {}, {}, {}, [], [])


def test_a_run_in_wandb_has_an_address_where_all_of_it_is_known(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    end = "/a%20team/soft%2Fgate/runs/abc12"
    assert tracked(run(tmp_path)) == f"https://wandb.ai{end}"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert tracked(run(tmp_path)) == f"https://wandb.example.org{end}"
    for other in ("https://api.wandb.ai", "javascript:alert(1)"):
        monkeypatch.setenv("WANDB_BASE_URL", other)
        assert tracked(run(tmp_path)) == f"https://wandb.ai{end}"


@pytest.mark.parametrize("missing", [{"entity": None}, {"project": None}, {"offline": True}])
def test_no_address_is_guessed(tmp_path, missing):
    assert tracked(run(tmp_path, **missing)) is None


def test_a_run_that_was_written_offline_has_no_address_nor_has_one_without_an_id(tmp_path):
    known = run(tmp_path)
    (tmp_path / "wandb" / "offline-run-20261126_000000-other").mkdir(parents=True)
    assert tracked(known)
    (tmp_path / "wandb" / "offline-run-20261126_000000-abc12").mkdir()
    assert tracked(known) is None
    (tmp_path / "wandb-id").unlink()
    assert tracked(known) is None
