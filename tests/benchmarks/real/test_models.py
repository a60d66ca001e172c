"""The real world's models, made of tiny towers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from real import mllm as real_mllm
from real.dual_encoder import (
    Pairs,
    recall,
    text_vectors,
    tower_with_classes,
    train,
    trained_tower,
    zero_shot,
)
from real.features import features_of
from real.known_things import measure as measure_known_things
from real.layout import Layout
from real.learning import Lesson
from real.mllm import IMAGE, assemble, fit_to_words, mean_word, processor_of, read_as_words
from real.retriever import changed
from real.retriever import make as make_retriever
from real.sets import write_lines
from real.tuned import keep
from real.tuned import make as make_tuned
from real.tuning import Schedule
from real.weights import CLASS_NAMES, CLASSIFIER, image_processor
from runs.real_tables import TABLES
from safetensors.torch import load_file, save_file
from tiny_models.eight import llava_tokenizer
from tiny_models.parts import text_config
from torch.nn import functional as F
from typer.testing import CliRunner

from ragvl import Document, Reranker
from ragvl.cli import app
from ragvl.data.synthetic import Places, write_world
from ragvl.mllm import ConvolutionalVisionConfig, ConvolutionalVisionModel
from ragvl.retriever import DualEncoder
from ragvl.training.adapters import layers_to_adapt
from ragvl.training.command import Stage, plan, run
from ragvl.training.run_record import learned_questions

RETRIEVER = Path(__file__).parents[3] / "ragvl" / "assets" / "tiny-retriever"
RECIPES = Path(real_mllm.__file__).parent / "recipes"
NAMES = ["barn", "old house", "river"]
FEATURES, SIZE = 12, 40  # of pictures; the map has 5 x 5 places, of which at most 2 x 2 are a token


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    config = ConvolutionalVisionConfig(
        stages=[(8, 3, 2, 1, 1), (8, 3, 2, 2, 1)],
        stem_channels=8,
        hidden_size=FEATURES,
        image_size=SIZE,
        norm="group",
    )
    ConvolutionalVisionModel(config).save_pretrained(folder)
    image_processor(SIZE).save_pretrained(folder)
    classifier = {"weight": torch.randn(len(NAMES), FEATURES), "bias": torch.randn(len(NAMES))}
    save_file(classifier, folder / CLASSIFIER)
    (folder / CLASS_NAMES).write_text(json.dumps(NAMES))
    return folder


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(1)
    tokenizer = llava_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(2)
    tokenizer = llava_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": []})
    config = transformers.LlamaConfig(**text_config(tokenizer, tie_word_embeddings=True))
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(70)]
    for path in paths:
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48), Image.Resampling.NEAREST).save(path)
    return paths


def test_a_zero_shot_picture_lies_where_its_classes_names_do(
    tower_folder: Path, text_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    model = zero_shot(tower_folder, text_folder)
    model.save_pretrained(tmp_path)
    llava_tokenizer().save_pretrained(tmp_path)
    image_processor(SIZE).save_pretrained(tmp_path)
    encoder = DualEncoder.from_pretrained(tmp_path, device="cpu", dtype="float32")
    saved = trained_tower(tmp_path).state_dict()
    for name, weight in tower_with_classes(tower_folder).state_dict().items():
        assert torch.equal(saved[name], weight)
    plain = transformers.AutoModel.from_pretrained(tower_folder).eval()
    classifier = tower_with_classes(tower_folder).classifier
    pixels = image_processor(SIZE)(Image.open(pictures[0]), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        believed = classifier(plain(pixels).pooler_output).softmax(-1)[0].numpy()
    expected = believed @ encoder.encode_texts([f"a {name}" for name in NAMES])
    vector = encoder.encode_documents([Document(pictures[0])])[0]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_what_is_computed_of_pictures_is_kept(
    tower_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    tower, processor = tower_with_classes(tower_folder), image_processor(SIZE)
    features = features_of(pictures, tower, processor, tmp_path)
    assert features.shape == (len(pictures), FEATURES + len(NAMES))
    with torch.inference_mode():
        pixels = processor(Image.open(pictures[-1]), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(features[-1:], tower(pixels).pooler_output)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(kept) == 2, "of 70 pictures, 64 in a shard"
    some = [*pictures[65:], *pictures[3:1:-1]]
    rows = [pictures.index(path) for path in some]
    assert torch.equal(features_of(some, tower, processor, tmp_path), features[rows])
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    with torch.no_grad():
        tower.classifier.bias.add_(torch.randn(len(NAMES)))
    assert not torch.equal(features_of(some, tower, processor, tmp_path), features[rows])


def test_training_adds_what_finds_pictures_of_unseen_texts(
    tower_folder: Path, text_folder: Path
) -> None:
    """Pictures whose features are a linear function of their texts' vectors."""
    model = zero_shot(tower_folder, text_folder)
    by_class = model.visual_projection.weight[:, FEATURES:].clone()
    random = torch.Generator().manual_seed(0)
    texts = torch.randn(300, 1, 16, generator=random)
    features = texts[:, 0] @ torch.randn(16, FEATURES, generator=random)
    classes = torch.full((300, len(NAMES)), 1 / len(NAMES))
    texts, features = F.normalize(texts, dim=-1), torch.cat([features, classes], dim=1)
    pairs, held_out = Pairs(features[:200], texts[:200]), Pairs(features[200:], texts[200:])
    figures = train(model, pairs, held_out, steps=300, learning_rate=0.02)
    assert figures["zero_shot"] < 0.1 and figures["trained"] > 0.5
    assert recall(model.visual_projection, held_out) == pytest.approx(figures["trained"])
    assert torch.equal(model.visual_projection.weight[:, FEATURES:], by_class)


def test_what_finds_nothing_is_not_added(tower_folder: Path, text_folder: Path) -> None:
    model = zero_shot(tower_folder, text_folder)
    before = model.visual_projection.weight.clone()
    random = torch.Generator().manual_seed(0)
    features = torch.cat(
        [torch.randn(60, FEATURES, generator=random), torch.eye(3).repeat(20, 1)], 1
    )
    names = F.normalize(before[:, FEATURES:].T.detach(), dim=-1)
    held_out = Pairs(features[:3], names[:, None])
    noise = F.normalize(torch.randn(60, 1, 16, generator=random), dim=-1)
    figures = train(model, Pairs(features, noise), held_out, steps=5)
    assert (figures["zero_shot"], figures["weight"]) == (1.0, 0.0)
    assert torch.equal(model.visual_projection.weight, before)


@pytest.mark.slow
def test_a_trained_retriever_is_made_again_of_what_was_kept(
    tower_folder: Path, text_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    def layout(name: str) -> Layout:
        made = Layout(tmp_path / name)
        made.weights.mkdir(parents=True)
        (made.weights / "efficientnet-lite0").symlink_to(tower_folder)
        (made.weights / "minilm").symlink_to(text_folder)
        return made

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return load_file(folder / "model.safetensors")

    lessons = [Lesson(str(n), path, f"barn {n}", None) for n, path in enumerate(pictures)]
    schedule = Schedule(steps=2, batch_size=8, tested=1, views=1, blocks=1)
    anew = make_retriever(layout("anew"), lessons, lessons[:5], None, schedule)
    again = make_retriever(layout("again"), [], [], anew / "trained.safetensors")
    torch.testing.assert_close(weights(again), weights(anew), rtol=0, atol=0)
    assert json.loads((anew / "training.json").read_text())["held_out"] > 5
    assert not (again / "training.json").exists(), "figures of a training that was not"

    model = zero_shot(tower_folder, text_folder)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        model.text_projection.weight.add_(0.1)
        model.visual_projection.weight.mul_(1.5)
    kept = changed(before, model.state_dict())
    assert kept.keys() == {"text_projection.weight", "visual_projection.weight"}
    save_file(kept, tmp_path / "kept.safetensors")
    found = weights(make_retriever(layout("kept"), [], [], tmp_path / "kept.safetensors"))
    for name, weight in found.items():
        expected = model.state_dict()[name] if name in kept else before[name]
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-3)
        assert name in kept or torch.equal(weight, expected)


def test_known_things_are_told_from_others(
    tower_folder: Path, text_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    layout = Layout(tmp_path)
    layout.weights.mkdir()
    (layout.weights / "efficientnet-lite0").symlink_to(tower_folder)
    (layout.weights / "minilm").symlink_to(text_folder)
    with pytest.raises(FileNotFoundError, match="retriever yet"):
        measure_known_things(layout)
    model = zero_shot(tower_folder, text_folder)
    with torch.no_grad():
        model.visual_projection.weight.neg_()  # the most similar picture becomes the least so
    model.save_pretrained(layout.models / "retriever")
    llava_tokenizer().save_pretrained(layout.models / "retriever")
    image_processor(SIZE).save_pretrained(layout.models / "retriever")

    things = ["river", "a tall tower of stone", "barn", "whale?"]
    folder = layout.sets / "blind"
    folder.mkdir(parents=True)
    documents = [{"id": str(n), "image": str(one)} for n, one in enumerate(pictures[:8])]
    encoder = DualEncoder(zero_shot(tower_folder, text_folder), image_processor(SIZE),
                          llava_tokenizer(), device="cpu")  # fmt: skip
    asked = [f"Where is the {name}?" for name in things]
    similar = encoder.encode_texts(asked) @ encoder.encode_documents(pictures[:8]).T
    # Zero-shot finds the first and the third, whatever their names; the negated finds the second
    gold = [similar[0].argmax(), similar[1].argmin(), similar[2].argmax(), similar[3].argsort()[3]]
    questions = [
        {"id": name, "question": text, "gold": [str(one)]}
        for name, text, one in zip(things, asked, gold, strict=True)
    ]
    write_lines(folder / "documents.jsonl", documents)
    write_lines(folder / "test.jsonl", questions)

    result = measure_known_things(layout)
    named = encoder.encode_texts([f"a {name}" for name in NAMES])
    told = []
    for row in result["rows"]:
        least, most = (row[end] or infinite for end, infinite in (("least", -9), ("most", 9)))
        inside = [
            name
            for name in things
            if least <= max(named @ encoder.encode_texts([f"a {name}"])[0]) < most
        ]
        assert row["things"] == inside
        assert row["questions"] == len(inside) > 0
        found = {"zero_shot": {"river", "barn"}, "trained": {things[1]}}
        for model_name, names in found.items():
            assert row[model_name] == pytest.approx(len(names & {*inside}) / len(inside))
        told += inside
    assert sorted(told) == sorted(things)
    assert {"river", "barn"} <= {*result["rows"][0]["things"]}
    text = TABLES["real_known_things"]({"real_known_things": result})
    assert "| is a class's, or nearly (0.9 or more) |" in text
    assert "first of 8" in text
    assert "not measured" in TABLES["real_known_things"]({})


def test_texts_that_say_the_same_have_each_others_pictures() -> None:
    texts = torch.eye(2)[torch.tensor([0, 0, 1])][:, None]
    assert recall(torch.nn.Identity(), Pairs(texts[[1, 0, 2], 0], texts)) == 1.0
    assert recall(torch.nn.Identity(), Pairs(texts[[2, 0, 0], 0], texts)) == pytest.approx(2 / 3)


def test_text_vectors_do_not_depend_on_their_company(tower_folder: Path, text_folder: Path) -> None:
    model, tokenizer = zero_shot(tower_folder, text_folder), llava_tokenizer()
    together = text_vectors(model, tokenizer, ["a barn", "a longer text about old houses"])
    torch.testing.assert_close(together[:1], text_vectors(model, tokenizer, ["a barn"]))


def test_a_picture_reads_as_the_names_of_its_classes(
    tower_folder: Path, decoder_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    tower = tower_with_classes(tower_folder)
    model, tokenizer = assemble(tower, decoder_folder)
    embeddings = model.get_input_embeddings().weight.detach()
    words = mean_word(embeddings, tokenizer, NAMES)
    # All of a picture is in its classes, so there is nothing else to fit
    features = torch.cat([torch.randn(20, FEATURES), torch.eye(3).repeat(7, 1)[:20]], dim=1)
    texts = [NAMES[number % 3] for number in range(20)]
    fitted, figures = fit_to_words(
        embeddings, tokenizer, words, (features, texts), (features, texts)
    )
    read_as_words(model, fitted, words)
    assert figures["classes"] == pytest.approx(1, abs=1e-4)
    assert figures["fitted"] == pytest.approx(1, abs=1e-4)

    processor = processor_of(tower, tower_folder, tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = processor.image_processor(Image.open(pictures[3]), return_tensors="pt")
    with torch.no_grad():
        tokens = loaded.model.get_image_features(**inputs).pooler_output[0]
        believed = tower(**inputs).last_hidden_state[0, :, -len(NAMES) :]
    assert len(tokens) == 1 + 3 * 3, "the whole, and a map of 5 x 5 places in squares"
    torch.testing.assert_close(tokens, believed @ words, atol=1e-4, rtol=1e-4)
    assert tokenizer.convert_ids_to_tokens(loaded.config.image_token_index) == IMAGE


def test_a_picture_reads_as_its_color(
    tower_folder: Path, text_folder: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    layout = Layout(tmp_path)
    layout.weights.mkdir()
    for name, folder in (("efficientnet-lite0", tower_folder), ("smollm2", decoder_folder)):
        (layout.weights / name).symlink_to(folder)
    zero_shot(tower_folder, text_folder).save_pretrained(layout.models / "retriever")
    pictures = {
        f"{color} {shade}": Image.new("RGB", (SIZE, SIZE), tuple(shade * x for x in rgb))
        for color, rgb in {"red": (1, 0, 0), "blue": (0, 0, 1)}.items()
        for shade in range(120, 250, 10)
    }
    lessons = []
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        lessons.append(Lesson(name, tmp_path / f"{name}.png", "A barn.", "Houses."))
    base = real_mllm.make(layout, lessons[::2], lessons[1::2], trained=None)
    model = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    red, blue = mean_word(model.get_input_embeddings().weight, tokenizer, ["red", "blue"])
    inputs = image_processor(SIZE)([*pictures.values()], return_tensors="pt")
    with torch.no_grad():
        whole = torch.stack(
            [one[0] for one in model.model.get_image_features(**inputs).pooler_output]
        )
    redness = whole @ (red - blue)
    assert redness[: len(pictures) // 2].min() > redness[len(pictures) // 2 :].max()

    kept = (base / "trained.safetensors").rename(tmp_path / "kept.safetensors")
    bits = (base / "model.safetensors").read_bytes()
    assert (real_mllm.make(layout, [], [], trained=kept) / "model.safetensors").read_bytes() == bits


def test_the_base_is_a_reranker_that_ragvl_loads(
    tower_folder: Path, decoder_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    tower = tower_with_classes(tower_folder)
    model, tokenizer = assemble(tower, decoder_folder)
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_1.weight)
    model.save_pretrained(tmp_path)
    processor_of(tower, tower_folder, tokenizer).save_pretrained(tmp_path)
    reranker = Reranker.from_pretrained(tmp_path, device="cpu", dtype="float32")
    documents = [Document(path, caption="Buildings.") for path in pictures[:3]]
    pairs = [("What is the main color of the barn?", document) for document in documents]
    scores = reranker.score(pairs)
    assert len(set(scores.tolist())) == 3
    assert torch.equal(scores[1:2], reranker.score(pairs[1:2]))


@pytest.mark.parametrize("stage", ["reranker", "generator"])
def test_the_recipes_train_decoder_and_projector(
    stage: Stage, tower_folder: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    tower = tower_with_classes(tower_folder)
    model, tokenizer = assemble(tower, decoder_folder)
    model.save_pretrained(tmp_path / "base")
    processor_of(tower, tower_folder, tokenizer).save_pretrained(tmp_path / "base")
    flags = [f"--config={RECIPES / stage}.yaml", f"--model={tmp_path / 'base'}"]
    flags += [f"--data={tmp_path}", f"--output_dir={tmp_path / 'out'}"]
    flags += ["--ranking=samples.jsonl"] if stage == "reranker" else []
    planned = plan(stage, flags)
    mllm = planned.run.load_model()
    adapted = layers_to_adapt(mllm, planned.lora, freeze_vision=planned.run.freeze_vision)
    assert not adapted.left_out
    # Two layers of seven, and the projector's two
    assert len(adapted.targets) == 2 * 7 + 2
    assert not any("vision_tower" in name for name in adapted.targets)


@pytest.mark.slow
def test_a_model_of_kept_adapters_is_the_one_that_was_trained(
    tower_folder: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    layout, kept = Layout(tmp_path / "real"), tmp_path / "trained"
    world = write_world(tmp_path / "world", Places(), counts={"train": 2}, seed=4)
    with pytest.raises(FileNotFoundError, match="base yet: make it first"):
        make_tuned(layout, "describer", kept)
    model, tokenizer = assemble(tower_with_classes(tower_folder), decoder_folder)
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_1.weight)
    model.to(torch.bfloat16).save_pretrained(layout.models / "base")
    processor_of(model.model.vision_tower, tower_folder, tokenizer).save_pretrained(
        layout.models / "base"
    )
    kept.mkdir()
    for file in ("retriever.safetensors", "projector.safetensors"):
        (kept / file).write_bytes(b"of the base")
    ranking = tmp_path / "ranking.jsonl"
    flags = ["data", "ranking", str(world), "--encoder", str(RETRIEVER), "--out", str(ranking)]
    assert CliRunner().invoke(app, flags).exit_code == 0

    for stage, name, start in (
        ("generator", "describer", "base"),
        ("reranker", "reranker", "describer"),
    ):
        with pytest.raises(FileNotFoundError, match="not finished"):
            keep(layout, name, kept)
        flags = [f"--config={RECIPES / stage}.yaml", f"--model={layout.models / start}"]
        flags += [f"--data={world}", f"--output_dir={layout.training / name}", "--max_steps=2"]
        flags += ["--learning_rate=0.01", "--report_to=none", "--disable_tqdm=true"]
        flags += [f"--ranking={ranking}"] if stage == "reranker" else []
        run(stage, flags)
        keep(layout, name, kept)
        made = load_file(make_tuned(layout, name, kept) / "model.safetensors")
        trained = load_file(layout.training / name / "model.safetensors")
        before = load_file(layout.models / start / "model.safetensors")
        assert made.keys() == trained.keys()
        moved = [key for key in made if not torch.equal(made[key], before[key])]
        assert len(moved) == 2 * 7 + 2
        for key in made:  # both are rounded to bfloat16, in another order
            torch.testing.assert_close(made[key], trained[key], rtol=2**-7, atol=1e-4)
    folder = layout.models / "reranker"
    assert learned_questions(folder) == learned_questions(layout.training / "reranker") != set()
    assert Reranker.from_pretrained(folder, device="cpu").template_name == "instruction-first"
    assert (
        json.loads((kept / "reranker" / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]
        == "describer"
    )
    weights = layout.models / "base" / "model.safetensors"
    changed_base = {key: one + 1 for key, one in load_file(weights).items()}
    save_file(changed_base, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"describer did not start from this .*base: move it"):
        keep(layout, "describer", kept)
    (kept / "projector.safetensors").write_bytes(b"of another base")
    with pytest.raises(ValueError, match=r"another projector.safetensors: .*real.sh describer"):
        make_tuned(layout, "describer", kept)
    make_tuned(layout, "reranker", kept)
    weights = kept / "describer" / "adapter_model.safetensors"
    save_file({key: 2 * one for key, one in load_file(weights).items()}, weights)
    with pytest.raises(ValueError, match=r"another describer/adapter_model.safetensors: "):
        make_tuned(layout, "reranker", kept)


def test_pairs_have_each_wording_of_their_own_lesson(
    tower_folder: Path, text_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    lessons = [
        Lesson("a", pictures[0], "A rather old house by a river.", "Buildings."),
        Lesson("b", pictures[1], "A barn.", "Buildings.", ("river", "old")),
        Lesson("c", pictures[0], "A barn.", None),
    ]
    model = zero_shot(tower_folder, text_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_folder)
    pairs = Pairs.read(lessons, model, tower_folder, text_folder, tmp_path)
    for lesson, vectors in zip(lessons, pairs.texts, strict=True):
        expected = text_vectors(model, tokenizer, lesson.wordings)
        torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(pairs.features[0], pairs.features[2])
    assert not torch.equal(pairs.features[0], pairs.features[1])
