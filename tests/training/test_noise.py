"""The loss inside the model equals the formula on whole logits, and noise goes where it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import ARCHITECTURES
from torch import Tensor

from ragvl.data.webqa import WebQA
from ragvl.mllm import MLLM, UnsupportedModelError
from ragvl.ops import diffusion_noise
from ragvl.ops.diffusion_noise import alphas_cumprod
from ragvl.training.examples import IGNORE, AnswerExamples, Collator
from ragvl.training.noise import (
    ARMS,
    NoiseSettings,
    _noised,
    install_loss,
    released_loss,
    token_gaps,
    uninstall_loss,
)

# Gaps of random models are small: so that they differ, the lower bound is too
TOKENS = replace(ARMS["token"], clamp_low=1e-6)
PIXELS = replace(TOKENS, token_level="pixels")


@pytest.fixture
def fresh(tiny_model: Callable[[str], Path]) -> Callable[[str], MLLM]:
    """A model that the test may change."""
    return lambda architecture: MLLM.from_pretrained(tiny_model(architecture), device="cpu")


def batch_of(mllm: MLLM, questions: WebQA, size: int = 3) -> dict[str, Tensor]:
    examples = AnswerExamples(questions, mllm.prompting, num_pictures=2)
    return Collator(mllm)([examples[i] for i in range(size)])


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def weighted(logits: Tensor, noisy: Tensor | None, labels: Tensor, window: int = 3) -> Tensor:
    """The formula, position by position, with the lower bound of `TOKENS`."""
    total, weights = logits.new_zeros(()), logits.new_zeros(())
    for b, row in enumerate(labels):
        positions = [t - 1 for t in range(1, len(row)) if row[t] != IGNORE]
        gaps = [
            1.0
            if noisy is None
            else float((logits.detach() - noisy)[b, t, row[t + 1]].clamp(TOKENS.clamp_low, 5))
            for t in positions
        ]
        for i, t in enumerate(positions):
            near = gaps[max(0, i - window // 2) : i + window // 2 + 1]
            weight = sum(near) / len(near)
            total += weight * F.cross_entropy(logits[b, t], row[t + 1])
            weights += weight
    return total / weights


# --- without noise ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_noise_it_is_plain_cross_entropy(
    architecture: str, fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    mllm = fresh(architecture)
    batch = batch_of(mllm, questions)
    mllm.model.train()
    logits = mllm.model(**without_labels(batch)).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    install_loss(mllm, NoiseSettings())
    loss = mllm.model(**batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    weight = mllm.model.get_output_embeddings().weight
    actual, wanted = (torch.autograd.grad(x, weight)[0] for x in (loss, expected))
    assert (actual - wanted).norm() < 1e-4 * wanted.norm()


def test_a_models_scale_of_logits_counts(
    fresh: Callable[[str], MLLM], questions: WebQA, monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm = fresh("llava")
    batch = batch_of(mllm, questions)
    logits = mllm.model(**without_labels(batch)).logits / 7
    monkeypatch.setattr(mllm.head, "scale", 1 / 7)
    install_loss(mllm, NoiseSettings())
    loss = mllm.model(**batch).loss
    expected = weighted(logits, None, batch["labels"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_softcap_is_refused(
    fresh: Callable[[str], MLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm = fresh("llava")
    monkeypatch.setattr(mllm.head, "softcap", 30.0)
    with pytest.raises(UnsupportedModelError, match="softcap"):
        install_loss(mllm, NoiseSettings())


def test_under_autocast_the_products_are_in_its_dtype(
    fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    mllm = fresh("llava")
    batch = batch_of(mllm, questions)
    install_loss(mllm, ARMS["token"])
    mllm.model.train()
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(mllm.model(**batch).loss)
    assert losses[0].dtype == losses[1].dtype == torch.float32
    assert losses[0] != losses[1]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=2e-2)
    losses[1].backward()
    grad = mllm.model.get_output_embeddings().weight.grad
    assert grad.dtype == torch.float32
    assert grad.isfinite().all()


# --- token level --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llava", "internvl"])
@pytest.mark.parametrize(
    "noise", [TOKENS, replace(TOKENS, timestep=800, window=1)], ids=["default", "stronger"]
)
def test_noise_on_visual_tokens(
    architecture: str, noise: NoiseSettings, fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    """Against two separate passes with whole logits, the second over noised embeddings."""
    mllm = fresh(architecture)
    model = mllm.model.train()
    batch = batch_of(mllm, questions)
    inputs = without_labels(batch)
    received = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kwargs: received.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    logits = model(**inputs).logits
    handle.remove()
    embeds = received[0].detach().clone()
    is_image = inputs["input_ids"] == model.config.image_token_id
    torch.manual_seed(4)
    features = embeds[is_image].unflatten(0, (-1, int(is_image[0].sum()) // 2))
    # LLaVA gives its features picture by picture, InternVL in one tensor
    parts = features.unbind() if architecture == "llava" else [features]
    noised = [
        diffusion_noise(part, timestep=noise.timestep, seed=int(torch.randint(2**62, ())))
        for part in parts
    ]
    embeds[is_image] = torch.cat([part.flatten(0, -2) for part in noised])
    noisy = model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits.detach()
    expected = weighted(logits, noisy, batch["labels"], noise.window)

    install_loss(mllm, noise)
    torch.manual_seed(4)
    loss = model(**batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() != pytest.approx(weighted(logits, None, batch["labels"]).item(), rel=1e-4)
    weight = model.get_output_embeddings().weight
    actual, wanted = (torch.autograd.grad(x, weight)[0] for x in (loss, expected))
    assert (actual - wanted).norm() < 1e-4 * wanted.norm()


def test_noise_on_pixels(fresh: Callable[[str], MLLM], questions: WebQA) -> None:
    mllm = fresh("llava")
    model = mllm.model.train()
    batch = batch_of(mllm, questions)
    inputs = without_labels(batch)
    logits = model(**inputs).logits
    torch.manual_seed(4)
    seed = int(torch.randint(2**62, ()))
    noised = diffusion_noise(inputs["pixel_values"], timestep=500, seed=seed)
    noisy = model(**{**inputs, "pixel_values": noised}).logits.detach()
    install_loss(mllm, PIXELS)
    torch.manual_seed(4)
    loss = model(**batch).loss
    expected = weighted(logits, noisy, batch["labels"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_vision_tower_runs_once_for_tokens_and_twice_for_pixels(
    architecture: str, fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    mllm = fresh(architecture)
    decoder = set(mllm.model.get_decoder().modules())
    vision = next(
        module
        for module in mllm.model.base_model.children()
        if module not in decoder and sum(1 for _ in module.modules()) > 10
    )
    calls = []
    vision.register_forward_hook(lambda *_: calls.append(1))
    batch = batch_of(mllm, questions)
    losses = {}
    for name, noise in (("none", NoiseSettings()), ("tokens", TOKENS), ("pixels", PIXELS)):
        calls.clear()
        install_loss(mllm, noise)
        mllm.model.train()
        torch.manual_seed(0)
        losses[name] = mllm.model(**batch).loss.item()
        assert len(calls) == (2 if name == "pixels" else 1), name
    assert losses["tokens"] != losses["none"]
    assert losses["pixels"] != losses["none"]


def test_the_second_pass_keeps_no_activations(
    fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    mllm = fresh("llava")
    batch = batch_of(mllm, questions)
    kept = {}
    for name in ("plain", "token"):
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        install_loss(mllm, ARMS[name])
        mllm.model.train()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            mllm.model(**batch)
        kept[name] = sum(sizes)
    assert kept["token"] == kept["plain"] > 0


def test_another_step_draws_other_noise_and_the_seed_repeats_it(
    fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    mllm = fresh("llava")
    batch = batch_of(mllm, questions)
    install_loss(mllm, TOKENS)
    mllm.model.train()
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        runs.append([mllm.model(**batch).loss.item() for _ in range(3)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3


@pytest.mark.parametrize(
    "noise", [TOKENS, replace(TOKENS, window=1, clamp_high=1e-3), ARMS["release"]], ids=str
)
def test_the_weights_of_the_answers_tokens_are_gathered(
    noise: NoiseSettings, fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    """Against whole logits of both passes; two batches, so that sums are over both."""
    mllm = fresh("internvl")
    model = mllm.model.train()
    batch = batch_of(mllm, questions)
    inputs, labels = without_labels(batch), batch["labels"]
    received = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kwargs: received.append(kwargs["inputs_embeds"].detach()),
        with_kwargs=True,
    )
    gathered = install_loss(mllm, noise)
    assert gathered.total() == {}
    for _ in range(2):
        model(**batch)
    handle.remove()
    gaps, weights, low, high = [], [], noise.clamp_low, noise.clamp_high
    for clean, noisy in zip(received[::2], received[1::2], strict=True):
        logits, noisy_logits = (
            model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
            for embeds in (clean, noisy)
        )
        fall = (logits - noisy_logits).detach()
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        if noise.as_released:  # column 0 at every position of the batch in one row
            rows, counts = [fall[..., 0].flatten()], [targets.flatten() != IGNORE]
        else:
            at_label = fall.gather(2, targets.clamp_min(0)[..., None])[..., 0]
            rows = [row[target != IGNORE] for row, target in zip(at_label, targets, strict=True)]
            counts = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        for row, counted in zip(rows, counts, strict=True):
            clamped, reach = row.clamp(low, high).tolist(), noise.window // 2
            near = [clamped[max(0, i - reach) : i + reach + 1] for i in range(len(row))]
            gaps += row[counted].tolist()
            weights += torch.tensor([sum(n) / len(n) for n in near])[counted].tolist()
    expected = {
        "weighted_tokens": len(gaps),
        "weights_at_floor": np.mean(np.array(gaps) <= low),
        "weights_at_ceiling": np.mean(np.array(gaps) >= high),
        "visual_gap": np.mean(gaps),
        "token_weight": np.mean(weights),
        "token_weight_spread": np.std(weights) / np.mean(weights),
    }
    assert gathered.recent() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert gathered.recent() == {}
    assert gathered.total() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_gaps_of_a_model_are_those_that_training_weighs_by(
    fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    mllm = fresh("llava")
    batch = batch_of(mllm, questions)
    noises = [TOKENS, PIXELS, replace(TOKENS, kind="scaled", timestep=900)]
    mllm.model.train()
    torch.manual_seed(3)
    measured = token_gaps(mllm, batch, noises)
    torch.manual_seed(3)
    for noise, gaps in zip(noises, measured, strict=True):
        gathered = install_loss(mllm, noise)
        mllm.model(**batch)
        assert gaps.logit.shape == ((batch["labels"] != IGNORE).sum(),)
        assert gathered.total()["visual_gap"] == pytest.approx(gaps.logit.mean().item(), rel=1e-3)
        assert gaps.logit.abs().max() > 0


@pytest.mark.parametrize("window", [1, 3])
def test_a_token_may_weigh_what_its_log_probability_falls(
    window: int, fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    """Gaps of log-probabilities are those of logits that are log-probabilities."""
    mllm = fresh("llava")
    batch = batch_of(mllm, questions)
    noise = replace(PIXELS, gap="log_probability", window=window)
    mllm.model.train()
    inputs = without_labels(batch)
    torch.manual_seed(3)
    seed = int(torch.randint(2**62, ()))
    pixels = diffusion_noise(inputs["pixel_values"], timestep=500, seed=seed)
    clean, noisy = (
        mllm.model(**{**inputs, "pixel_values": x}).logits.log_softmax(-1)
        for x in (inputs["pixel_values"], pixels)
    )
    expected = weighted(clean, noisy.detach(), batch["labels"], window)
    torch.manual_seed(3)
    (gaps,) = token_gaps(mllm, batch, [noise])
    gathered = install_loss(mllm, noise)
    torch.manual_seed(3)
    loss = mllm.model(**batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    head = mllm.model.get_output_embeddings().weight
    actual, wanted = (torch.autograd.grad(x, head)[0] for x in (loss, expected))
    assert (actual - wanted).norm() < 1e-4 * wanted.norm()
    measured = gathered.total()["visual_gap"]
    assert measured == pytest.approx(gaps.log_probability.mean().item(), rel=1e-3, abs=1e-6)
    batch["labels"].fill_(IGNORE)
    assert mllm.model(**batch).loss.item() == 0


def test_a_fall_of_log_probability_is_that_of_the_whole_vocabulary(
    fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    mllm = fresh("llava")
    batch = batch_of(mllm, questions)
    inputs, targets = without_labels(batch), batch["labels"][:, 1:]
    torch.manual_seed(3)
    (gaps,) = token_gaps(mllm, batch, [PIXELS])
    torch.manual_seed(3)
    seed = int(torch.randint(2**62, ()))
    pixels = diffusion_noise(inputs["pixel_values"], timestep=500, seed=seed)
    clean, noisy = (
        mllm.model(**{**inputs, "pixel_values": x}).logits[:, :-1].log_softmax(-1)
        for x in (inputs["pixel_values"], pixels)
    )
    fall = (clean - noisy).gather(2, targets.clamp_min(0)[..., None])[..., 0]
    expected = fall[targets != IGNORE]
    assert expected.abs().max() > 1e-4
    assert gaps.log_probability.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_batch_without_pictures_has_nothing_to_noise(fresh: Callable[[str], MLLM]) -> None:
    mllm = fresh("llava")
    prompt = mllm.prompting.encode_prompt(mllm.prompting.render("Is it a mill?"))
    batch = mllm.model_inputs([prompt])
    batch["labels"] = batch["input_ids"].clone()
    install_loss(mllm, TOKENS)
    mllm.model.train()
    expected = weighted(mllm.model(**without_labels(batch)).logits, None, batch["labels"])
    assert mllm.model(**batch).loss.item() == pytest.approx(expected.item(), rel=1e-5)


# --- evaluation, and back -----------------------------------------------------------------------


def test_evaluation_has_no_noise_and_counts_right_answers(
    fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    mllm = fresh("internvl")
    batch = batch_of(mllm, questions)
    logits = mllm.model(**without_labels(batch)).logits
    # The second example's labels become what the model says, all but one of the third's too
    labels = batch["labels"]
    said = F.pad(logits.argmax(-1)[:, :-1], (1, 0))
    labels[1] = torch.where(labels[1] != IGNORE, said[1], labels[1])
    labels[2] = torch.where(labels[2] != IGNORE, said[2], labels[2])
    last = (labels[2] != IGNORE).nonzero()[-1]
    labels[2, last] = (labels[2, last] + 1) % logits.shape[-1]
    install_loss(mllm, TOKENS)
    mllm.model.eval()
    output = mllm.model(**batch)
    assert output.logits.tolist() == [0, 1, 0]
    assert output.loss.item() == pytest.approx(weighted(logits, None, labels).item(), rel=1e-5)


def test_the_model_gets_its_own_forward_back(
    fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    mllm = fresh("llava")
    batch = batch_of(mllm, questions)
    before = mllm.model(**batch)
    install_loss(mllm, TOKENS)
    install_loss(mllm, PIXELS)
    assert mllm.model(**without_labels(batch)).logits.equal(before.logits), "no labels, no change"
    uninstall_loss(mllm)
    uninstall_loss(mllm)
    after = mllm.model(**batch)
    assert after.logits.equal(before.logits)
    assert after.loss == before.loss
    assert "forward" not in vars(mllm.model)


def test_prefixes_are_cached_as_before_after_training(
    fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    """What the cache keeps of a picture passes through the function that training shares."""
    mllm = fresh("llava")
    (document, *_), query = list(questions.documents()), questions.questions[0].text
    image = mllm.prompting.encode_image(document.load())
    prompt = mllm.prompting.encode_prompt(mllm.prompting.render("<image>\n{q}", q=query), [image])

    def prefill() -> Tensor:
        (done,) = mllm.prefill([prompt], lambda *_: None)
        return torch.cat(list(done.features.values()))

    before = prefill()
    install_loss(mllm, TOKENS)
    mllm.model.train()
    mllm.model(**batch_of(mllm, questions))
    mllm.model.eval()
    assert prefill().equal(before)
    uninstall_loss(mllm)
    assert prefill().equal(before)


# --- the release --------------------------------------------------------------------------------


def test_the_released_loss_has_the_releases_defects() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, noisy = torch.randn(2, 2, 5, 7, generator=generator).mul(3).unbind()
    labels = torch.tensor([[IGNORE, 3, 4, IGNORE, 2], [1, IGNORE, IGNORE, 6, IGNORE]])
    gaps = [
        min(max(float(logits[b, t, 0] - noisy[b, t, 0]), 1.0), 5.0)  # column 0
        for b in range(2)
        for t in range(5)
    ]
    weights = []
    for i in range(10):  # neighbours in one row, over the end of a sequence
        near = gaps[max(0, i - 1) : i + 2]
        weights.append(sum(near) / len(near))
    flat = labels.flatten()
    total = sum(
        weights[i] * float(F.cross_entropy(logits.flatten(0, 1)[i], flat[i]))
        for i in range(10)
        if flat[i] != IGNORE
    )
    expected = total / sum(weights)  # of all positions
    assert released_loss(logits, noisy, labels).item() == pytest.approx(expected, rel=1e-5)


def test_the_arm_release_trains_with_that_loss(
    fresh: Callable[[str], MLLM], questions: WebQA
) -> None:
    mllm = fresh("llava")
    batch = batch_of(mllm, questions)
    losses = {}
    for name in ("both", "release"):
        install_loss(mllm, ARMS[name])
        mllm.model.train()
        torch.manual_seed(0)
        losses[name] = mllm.model(**batch).loss
        losses[name].backward()
    share = (batch["labels"][:, 1:] != IGNORE).float().mean()
    assert losses["release"] < 3 * share * losses["both"], "it shrinks with unlabelled positions"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"data_level": -1}, "data_level=-1"),
        ({"token_level": "everything"}, "token_level='everything'"),
        ({"timestep": 1000}, "timestep=1000"),
        ({"kind": "loud"}, "kind='loud': expected 'diffusion', 'scaled', 'gaussian' or 'drop'"),
        ({"gap": "loss"}, "gap='loss': expected 'logit' or 'log_probability'"),
        (
            {"gap": "log_probability", "as_released": True, "token_level": "tokens"},
            "as_released compares logits",
        ),
        ({"clamp_low": 0.0}, "clamp_low=0"),
        ({"clamp_low": 6.0}, "clamp_low=6"),
        ({"clamp_high": float("nan")}, "clamp_high=nan"),
        ({"window": 2}, "window=2"),
        ({"as_released": True}, "as_released is about token_level"),
        ({"kind": "scaled"}, "kind is about token_level"),
        ({"gap": "log_probability"}, "gap is about token_level"),
    ],
)
def test_settings_out_of_range(settings: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        NoiseSettings(**settings)


@pytest.mark.parametrize("timestep", [0, 500, 999])
def test_scaled_noise_has_each_pictures_own_spread(timestep: int) -> None:
    """The same picture is as noisy whatever it is multiplied with; one of one value stays so."""
    torch.manual_seed(0)
    picture = torch.randn(300, 64) + 1
    x = torch.stack([picture, 2.5 * picture, torch.full_like(picture, 3.0)])
    settings = NoiseSettings(token_level="tokens", kind="scaled", timestep=timestep)
    noised = _noised(x, settings)
    kept = float(alphas_cumprod()[timestep])
    added = noised - kept**0.5 * x
    for i, factor in ((0, 1.0), (1, 2.5)):
        assert added[i].std().item() == pytest.approx(factor * (1 - kept) ** 0.5, rel=0.02)
        assert added[i].mean().item() == pytest.approx(0, abs=0.02 * factor)
    assert noised[2].equal(kept**0.5 * x[2])
    half = _noised(x.bfloat16(), settings)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


@pytest.mark.parametrize("timestep", [0, 500, 999])
def test_kinds_of_noise_are_of_one_strength(timestep: int) -> None:
    """Signal against noise is the same in diffusion and Gaussian; drop takes as many tokens."""
    torch.manual_seed(0)
    x = torch.full((4, 300, 64), 2.0)
    kept = float(alphas_cumprod()[timestep])
    noised = {
        kind: _noised(x, NoiseSettings(token_level="tokens", kind=kind, timestep=timestep))
        for kind in ("diffusion", "gaussian", "drop")
    }
    means = {kind: values.mean().item() for kind, values in noised.items()}
    spreads = {kind: values.std().item() for kind, values in noised.items()}
    assert means["gaussian"] == pytest.approx(2.0, abs=0.05)
    assert means["diffusion"] == pytest.approx(2.0 * kept**0.5, abs=0.05)
    for kind in ("diffusion", "gaussian"):
        ratio = spreads[kind] / means[kind]
        assert ratio == pytest.approx(((1 - kept) / kept) ** 0.5 / 2, rel=0.05, abs=1e-3)
    dropped = (noised["drop"] == 0).all(-1)
    assert torch.equal(noised["drop"][~dropped], x[~dropped])
    assert dropped.float().mean().item() == pytest.approx(1 - kept, abs=0.05)


def test_each_draw_is_another_and_follows_torchs_seed() -> None:
    x = torch.randn(2, 8, 16)
    for kind in ("diffusion", "gaussian", "drop"):
        noise = NoiseSettings(token_level="tokens", kind=kind)
        torch.manual_seed(3)
        first, second = _noised(x, noise), _noised(x, noise)
        torch.manual_seed(3)
        assert torch.equal(_noised(x, noise), first)
        assert not torch.equal(first, second)


def test_bad_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="kind='salt'"):
        NoiseSettings(kind="salt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none among the pixels"):
        NoiseSettings(token_level="pixels", kind="drop")
