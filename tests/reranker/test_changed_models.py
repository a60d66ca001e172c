"""A model that was changed, or another one, never takes prefixes that are not its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from plain import plain_scores
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ragvl import Document, PrefixCache, Reranker
from ragvl.compression import COMPRESSIONS
from ragvl.mllm import MLLM, UnsupportedModelError
from ragvl.reranker import PromptTemplate, SavedThresholds, ThresholdError

TINY = "llava"


def documents() -> list[Document]:
    noise = np.random.default_rng(0).integers(0, 255, (2, 48, 60, 3), np.uint8)
    return [Document(noise[0], caption="A barn"), Document(noise[1], caption="Velmora, 1987")]


PAIRS = [("What color is the roof?", document) for document in documents()]


def scores(reranker: Reranker) -> Tensor:
    return reranker.score(PAIRS, progress=False)


def load(folder: Path, **options: str) -> MLLM:
    return MLLM.from_pretrained(folder, device="cpu", dtype="float32", **options)


@pytest.fixture
def own(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint that may be changed."""
    return shutil.copytree(tiny_model(TINY), tmp_path / "own")


# --- in one process -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        (TINY, r".*language_model.*(q_proj|k_proj|v_proj|up_proj)"),
        ("qwen3_5", r".*language_model.*(in_proj_qkv|in_proj_a|out_proj|k_proj)"),
    ],
)
def test_adapters_that_are_added_disabled_and_switched(
    architecture: str, targets: str, tiny_model: Callable[[str], Path]
) -> None:
    reranker = Reranker(load(tiny_model(architecture)))
    before = scores(reranker)
    model = reranker.mllm.model
    lora = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)

    def disable() -> None:
        model.disable_adapters()

    steps: list[tuple[Callable[[], None], bool]] = [
        (lambda: model.add_adapter(lora, "one"), False),
        (lambda: model.add_adapter(lora, "other"), False),
        (disable, True),
        (model.enable_adapters, False),
        (lambda: model.set_adapter("one"), False),
    ]
    seen = [before]
    for step, as_before in steps:
        step()
        result = scores(reranker)
        torch.testing.assert_close(result, plain_scores(reranker, PAIRS), rtol=0, atol=1e-5)
        assert torch.allclose(result, before, rtol=0, atol=1e-6) is as_before
        seen.append(result)
    assert torch.equal(seen[1], seen[5]), "the first adapter again"
    assert not torch.allclose(seen[2], seen[1], rtol=0, atol=1e-5), "the other one is another"


@pytest.mark.parametrize("wrapped", ["norm", "q_proj"])
def test_hooks_are_on_the_modules_that_are_there_now(own: Path, wrapped: str) -> None:
    reranker = Reranker(load(own))
    before = scores(reranker)
    decoder = reranker.mllm.model.get_decoder()
    with torch.no_grad():
        if wrapped == "norm":
            decoder.norm = type(decoder.norm)(len(decoder.norm.weight))
            decoder.norm.weight.mul_(1 + torch.rand(len(decoder.norm.weight)))
        else:
            attention = decoder.layers[-1].self_attn
            attention.q_proj = nn.Linear(*attention.q_proj.weight.T.shape, bias=False)
    result = scores(reranker)
    torch.testing.assert_close(result, plain_scores(reranker, PAIRS), rtol=0, atol=1e-5)
    assert not torch.allclose(result, before, rtol=0, atol=1e-5)


def set_everywhere(name: str, value: object) -> Callable[[nn.Module], None]:
    def change(decoder: nn.Module) -> None:
        for module in decoder.modules():
            if hasattr(module, name):
                setattr(module, name, value)

    return change


def wrap_forward(decoder: nn.Module) -> None:
    mlp = decoder.layers[0].mlp
    usual = mlp.forward
    mlp.forward = lambda hidden: 2 * usual(hidden)


def steer(decoder: nn.Module) -> None:
    decoder.layers[0].mlp.register_forward_hook(lambda _module, _args, output: output + 0.5)


MODULES: dict[str, Callable[[nn.Module], None]] = {
    "activation": set_everywhere("act_fn", nn.ReLU()),
    "epsilon": set_everywhere("variance_epsilon", 0.5),
    "scaling": set_everywhere("scaling", 1.5),
    "rotary scaling": set_everywhere("attention_scaling", 2.0),
    "forward": wrap_forward,
    "hook": steer,
}


@pytest.mark.slow
@pytest.mark.parametrize("change", MODULES)
def test_modules_that_are_set_otherwise(change: str, own: Path) -> None:
    """No weight differs, and yet it is another model."""
    reranker = Reranker(load(own))
    before, name = scores(reranker), reranker.mllm.fingerprint
    MODULES[change](reranker.mllm.model.get_decoder())
    expected = plain_scores(reranker, PAIRS)
    assert not torch.allclose(expected, before, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores(reranker), expected, rtol=0, atol=1e-5)
    assert reranker.mllm.fingerprint != name


def test_a_hook_that_is_taken_off_again(own: Path) -> None:
    reranker = Reranker(load(own))
    before, name = scores(reranker), reranker.mllm.fingerprint
    mlp = reranker.mllm.model.get_decoder().layers[0].mlp
    names = set()
    for shift in (0.5, -0.5):
        handle = mlp.register_forward_hook(lambda _m, _a, output, shift=shift: output + shift)
        scores(reranker)
        names.add(reranker.mllm.fingerprint)
        handle.remove()
    assert torch.equal(scores(reranker), before)
    assert len({*names, name}) == 3
    assert reranker.mllm.fingerprint == name


def test_a_processors_size_that_is_edited_in_place(own: Path) -> None:
    reranker = Reranker(load(own))
    before = scores(reranker)
    reranker.mllm.prompting.processor.image_processor.size.shortest_edge *= 2
    expected = plain_scores(reranker, PAIRS)
    assert not torch.allclose(expected, before, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores(reranker), expected, rtol=0, atol=1e-5)


def test_prefixes_made_with_dropout_are_not_kept_for_a_model_at_rest(own: Path) -> None:
    reranker = Reranker(load(own))
    model = reranker.mllm.model
    for module in model.get_decoder().modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    before = plain_scores(reranker, PAIRS)
    assert reranker.mllm.fingerprint
    model.train()
    assert not torch.allclose(scores(reranker), before, rtol=0, atol=1e-4)
    model.eval()
    torch.testing.assert_close(scores(reranker), before, rtol=0, atol=1e-5)


def test_prefixes_computed_together_are_not_served_as_deterministic(
    tiny_mllm: Callable[[str], MLLM],
) -> None:
    cache = PrefixCache("8MiB")
    mllm = tiny_mllm(TINY)
    assert Reranker(mllm, prefix_cache=cache, deterministic=False).warm(documents()).built == 2
    assert Reranker(mllm, prefix_cache=cache).warm(documents()).built == 2
    assert Reranker(mllm, prefix_cache=cache).warm(documents()).known == 2


def test_the_precision_of_float32_products_is_part_of_the_environment(
    tiny_mllm: Callable[[str], MLLM],
) -> None:
    mllm, part = tiny_mllm(TINY), torch.backends.mkldnn.matmul
    before, usual = mllm.environment_name, part.fp32_precision
    part.fp32_precision = "bf16"
    try:
        assert mllm.environment_name != before
    finally:
        part.fp32_precision = usual
    assert mllm.environment_name == before


def test_another_attention_is_set(own: Path) -> None:
    reranker = Reranker(load(own, attn_implementation="sdpa"))
    model, before = reranker.mllm.fingerprint, scores(reranker)
    built = reranker.prefix_cache.statistics()["device"].misses
    reranker.mllm.model.set_attn_implementation("eager")
    torch.testing.assert_close(scores(reranker), before, rtol=0, atol=1e-5)
    assert reranker.prefix_cache.statistics()["device"].misses == 2 * built
    assert reranker.mllm.fingerprint == model


def test_adapters_on_the_head_are_refused(own: Path) -> None:
    """Its rows are read, and an adapter is beside them."""
    reranker = Reranker(load(own))
    scores(reranker)
    lora = LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    reranker.mllm.model.add_adapter(lora)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="logits otherwise than as"):
            scores(reranker)


def test_a_model_in_another_dtype_needs_another_cache(own: Path) -> None:
    reranker = Reranker(load(own))
    scores(reranker)
    reranker.mllm.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"another dtype.*make another PrefixCache"):
        scores(reranker)
    assert scores(Reranker(reranker.mllm)).isfinite().all()


# --- on disk ------------------------------------------------------------------------------------


def edit_a_row(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("embed_tokens.weight"))
    weights[name][-1, -1] += 1e-3  # of a token that no prompt holds
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder: Path, *keys: str, value: float) -> None:
    config = json.loads((folder / "config.json").read_text())
    part = config["text_config"]
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


CHANGES: dict[str, Callable[[Path], None]] = {
    "one value": edit_a_row,
    "rope_theta": lambda folder: set_config(folder, "rope_parameters", "rope_theta", value=500.0),
    "rms_norm_eps": lambda folder: set_config(folder, "rms_norm_eps", value=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_no_checkpoint_takes_anothers_prefixes_thresholds_or_journals(
    change: str, own: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    def cache() -> PrefixCache:
        return PrefixCache("8MiB", folder=tmp_path / "prefixes", keep="kv")

    first = Reranker(load(tiny_model(TINY)), prefix_cache=cache())
    first.warm(documents(), progress=False)
    assert Reranker(load(own), prefix_cache=cache()).warm(documents(), progress=False).known == 2
    CHANGES[change](own)
    changed = Reranker(load(own), prefix_cache=cache())
    assert torch.equal(scores(changed), scores(Reranker(load(own), prefix_cache=None)))
    names = [(r.fingerprint, r.weights, r.mllm.fingerprint) for r in (first, changed)]
    assert not set(names[0]) & set(names[1])


def test_attention_dtype_and_library_are_part_of_a_prefixs_name(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdpa, eager = (load(own, attn_implementation=name) for name in ("sdpa", "eager"))
    assert sdpa.environment_name != eager.environment_name
    assert sdpa.fingerprint == eager.fingerprint
    before, weights = Reranker(sdpa).fingerprint, sdpa.weights_name
    monkeypatch.setattr("ragvl.mllm.mllm.library_versions", lambda: {"torch": "another"})
    assert Reranker(sdpa).fingerprint != before
    assert sdpa.weights_name == weights, "thresholds stay"


@pytest.mark.slow
def test_names_are_the_same_in_another_process(own: Path) -> None:
    program = (
        "import sys\nfrom ragvl import Reranker\n"
        "reranker = Reranker.from_pretrained(sys.argv[1], device='cpu', dtype='float32')\n"
        "print('names', reranker.fingerprint, reranker.weights, reranker.prompts_name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(own)],
        env={**os.environ, "PYTHONHASHSEED": "1"},  # that of this process is drawn
        check=True,
        capture_output=True,
        text=True,
    )
    reranker = Reranker(load(own))
    here = [reranker.fingerprint, reranker.weights, reranker.prompts_name]
    assert done.stdout.split()[-3:] == here


# --- prompts ------------------------------------------------------------------------------------


def test_prompts_are_known_by_what_they_say(tiny_mllm: Callable[[str], MLLM]) -> None:
    mllm = tiny_mllm(TINY)
    mine = PromptTemplate("mine", "<image>\nIs it about {query}?")
    rerankers = [
        Reranker(mllm, template=mine),
        Reranker(mllm, template=replace(mine, text="<image>\nDoes it show {query}?")),
        Reranker(mllm, template=replace(mine, system_turn="Judge.")),
        Reranker(mllm, template=mine, answers=("No", "Yes")),
        Reranker(mllm, template=mine, caption_tokens=4),
        Reranker(mllm),
    ]
    assert len({reranker.prompts_name for reranker in rerankers}) == len(rerankers)
    assert len({reranker.fingerprint for reranker in rerankers}) == len(rerankers)
    compressed = [
        Reranker(mllm, template=mine, prefix_cache=PrefixCache("8MiB", compression=compression))
        for compression in COMPRESSIONS
    ]
    assert {one.prompts_name for one in compressed} == {rerankers[0].prompts_name}
    assert len({one.fingerprint for one in [rerankers[0], *compressed]}) == 1 + len(COMPRESSIONS)
    own = SavedThresholds(
        model=rerankers[0].weights,
        template="mine",
        prompts=rerankers[0].prompts_name,
        encoder="e",
        pool="full",
        num_candidates=20,
        top_k=2,
        data="d",
        questions=(),
        values={"f1": 0.25},
    )
    assert Reranker(mllm, template=mine, thresholds=own, threshold="f1").threshold == 0.25
    with pytest.raises(ThresholdError, match=r"other texts of its prompts \(mine\), answers or"):
        Reranker(mllm, template=rerankers[1].template, thresholds=own)
    with pytest.raises(ThresholdError, match="answers or caption_tokens"):
        Reranker(mllm, template=mine, answers=("No", "Yes"), thresholds=own)
