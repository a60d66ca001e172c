from __future__ import annotations

import json

import common
import torch


def test_a_saved_result_says_where_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    record = json.loads(common.save("name", {"rounds": 3}, torch.device("cpu")).read_text())
    assert record["rounds"] == 3
    assert record["machine"]["device"].startswith(record["machine"]["cpu"])
    assert record["versions"]["torch"] == torch.__version__
    assert record["commit"]
