"""The comparison with vLLM: with vLLM itself where it is installed, and what needs none."""

from __future__ import annotations

import json
from pathlib import Path

import bench_vllm
import pytest
import torch
from common import RESULTS
from figures import figures
from models import build_model, write_model
from peers.vllm.scorer import VllmError, VllmScorer, publish_names
from shapes import SHAPES
from workload import write_documents

from ragvl import Reranker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, SHAPES["tiny"])
    publish_names(folder)
    return folder


def test_published_names_change_no_weight(folder: Path) -> None:
    written, _ = build_model(SHAPES["tiny"])
    found = Reranker.from_pretrained(folder, dtype="float32").mllm.model.state_dict()
    assert found.keys() == written.state_dict().keys()
    for name, tensor in written.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_what_ends_at_once_is_an_error(folder: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(VllmError, match="ended with 3"):
        VllmScorer(python, folder, Reranker.from_pretrained(folder), "float32", threads=1)


def test_a_prompt_has_one_token_for_its_picture(folder: Path, tmp_path: Path) -> None:
    # Stands in for vLLM: a reply for each line, the lengths of its prompts
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\nexec python3 -c "import json, sys\n'
        "print(json.dumps({}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps([one['token_ids'] for one in json.loads(line)]), flush=True)\"\n"
    )
    python.chmod(0o755)
    reranker = Reranker.from_pretrained(folder)
    documents = write_documents(tmp_path, 2)
    with VllmScorer(python, folder, reranker, "float32", threads=1) as peer:
        prompts = peer.score(["What?", "Who?"], documents, known_as="")
    picture = reranker.mllm.model.config.image_token_index
    pairs = [(query, document) for query in ("What?", "Who?") for document in documents]
    for ids, pair in zip(prompts, pairs, strict=True):
        assert ids.count(picture) == 1
        place = ids.index(picture)
        whole = [id for part in reranker.split_prompt(*pair) for id in part]
        length = whole.count(picture)
        assert ids[:place] + [picture] * length + ids[place + 1 :] == whole


@pytest.mark.slow
@pytest.mark.skipif(not bench_vllm.PYTHON.exists(), reason="vLLM is not installed: make bench-vllm")
def test_both_give_the_same_scores() -> None:
    # Of heads as small as the tiny model's vLLM has no attention
    result = bench_vllm.measure(bench_vllm.PYTHON, "mid", 16, rounds=2, num_documents=3)
    exact = [case for case in result["cases"] if case["dtype"] == "float32"]
    assert max(case["max_score_difference"] for case in exact) < bench_vllm.TOLERANCE
    assert all(case["against"][bench_vllm.WARM]["min"] > 0 for case in result["cases"])
    machine = {"device": "Some CPU", "cpu kernels": "amx"}
    table = bench_vllm.vllm_table({"vllm_amx": {**result, "goals": [], "machine": machine}})
    assert f"vLLM {result['peer']['vllm']}'s" in table


def test_nothing_is_said_before_it_is_measured() -> None:
    assert "not measured" in bench_vllm.vllm_table({})


def test_the_readme_tells_it_once_it_is_measured() -> None:
    results = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*_cpu.json")}
    assert "vLLM" not in figures(results)
    cases = [
        {
            "dtype": dtype,
            "against": {bench_vllm.WARM: {"median": warm}, bench_vllm.SHORT: {"median": short}},
        }
        for dtype, warm, short in (("float32", 1.5, 4.0), ("bfloat16", 2.0, 3.0), ("int8", 9, 9))
    ]
    machine = {"device": "Another CPU"}
    told = figures({**results, "vllm_amx": {"cases": cases, "machine": machine}})
    assert "Another CPU" in told
    ends = [line.rsplit("|", 2)[1].strip() for line in told.splitlines() if "vLLM" in line]
    assert ends == ["1.5x to 2.0x", "3.0x to 4.0x", "9.0x"]
