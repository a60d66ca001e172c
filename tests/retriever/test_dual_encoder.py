from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_encoders import (
    FAMILIES,
    MAX_LENGTH,
    TEXTS,
    save_checkpoint,
    tiny_model,
    tiny_processor,
)
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.retriever import DualEncoder

# Two fp32 runs of one model with other batch shapes differ in the last bits; measured 2e-7.
TOLERANCE = 2e-6


def unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features, dim=-1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
class TestAgainstTransformers:
    """Plainly, by the checkpoint's own processor and the model's forward, one item at a time."""

    @torch.inference_mode()
    def test_images_and_texts(self, family, checkpoints, encoders, pictures):
        model = AutoModel.from_pretrained(checkpoints[family], dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(checkpoints[family])
        options = {"padding": "longest" if family == "clip" else "max_length"}
        if family == "siglip2":  # its processor puts the real models' sizes over the saved ones
            options |= {"patch_size": 8, "max_num_patches": 16}
        expected_images, expected_texts = [], []
        for i, picture in enumerate(pictures):
            inputs = processor(
                images=Image.fromarray(picture),
                text=[TEXTS[i % len(TEXTS)]],
                truncation=True,
                max_length=MAX_LENGTH,
                return_tensors="pt",
                **options,
            )
            output = model(**inputs)
            expected_images.append(output.image_embeds)
            expected_texts.append(output.text_embeds)
        images = encoders[family].encode_documents(pictures, batch_size=3, progress=False)
        texts = encoders[family].encode_texts([TEXTS[i % len(TEXTS)] for i in range(7)])
        np.testing.assert_allclose(images, unit(torch.cat(expected_images)), atol=TOLERANCE)
        np.testing.assert_allclose(texts, unit(torch.cat(expected_texts)), atol=TOLERANCE)

    def test_shape_dtype_and_norm(self, family, encoders, pictures):
        encoder = encoders[family]
        for vectors in (encoder.encode_documents(pictures), encoder.encode_texts(TEXTS)):
            assert vectors.dtype == np.float32
            assert vectors.shape[1] == encoder.dim
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_batch_size_and_order_do_not_matter(self, family, encoders, pictures):
        encoder = encoders[family]
        order = np.random.default_rng(1).permutation(len(pictures))
        expected = encoder.encode_documents(pictures, batch_size=1)
        shuffled = encoder.encode_documents([pictures[i] for i in order], batch_size=4)
        np.testing.assert_allclose(shuffled, expected[order], atol=TOLERANCE)
        expected = encoder.encode_texts(TEXTS, batch_size=1)
        reverse = encoder.encode_texts(TEXTS[::-1], batch_size=2)
        np.testing.assert_allclose(reverse, expected[::-1], atol=TOLERANCE)


class TestTexts:
    def test_long_text_is_cut(self, encoder):
        start = "the quick brown fox jumps over the lazy dog " * 3
        vectors = encoder.encode_texts([start + "one", start + "two"])
        np.testing.assert_allclose(vectors[0], vectors[1], atol=TOLERANCE)

    @pytest.mark.parametrize("text", ["", "  \n"])
    def test_empty_text(self, encoder, text):
        with pytest.raises(ValueError, match="text 1 is empty"):
            encoder.encode_texts(["a", text])

    def test_types(self, encoder):
        with pytest.raises(TypeError, match="not one string"):
            encoder.encode_texts("a cat")
        with pytest.raises(TypeError, match="text 1 must be a string, not int"):
            encoder.encode_texts(["a", 3])

    def test_threads(self, encoder):
        expected = encoder.encode_texts(TEXTS)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda i: encoder.encode_texts([TEXTS[i % 5]]), range(100)))
        for i, vectors in enumerate(results):
            np.testing.assert_allclose(vectors[0], expected[i % 5], atol=TOLERANCE)


class TestImages:
    def test_every_kind_of_source(self, encoder, pictures, tmp_path):
        path = tmp_path / "a.png"
        image = Image.fromarray(pictures[0])
        image.save(path)
        sources = [path, str(path), path.read_bytes(), image, pictures[0], Document(path, id="a")]
        vectors = encoder.encode_documents(sources)
        np.testing.assert_allclose(vectors, np.tile(vectors[0], (6, 1)), atol=TOLERANCE)

    def test_none_at_all(self, encoder):
        assert encoder.encode_documents([]).shape == (0, encoder.dim)
        assert encoder.encode_texts([]).shape == (0, encoder.dim)

    def test_unreadable_image_is_named(self, encoder, pictures):
        documents = [Document(picture, id=str(i)) for i, picture in enumerate(pictures)]
        documents[5] = Document(b"not a picture", id="the bad one")
        with pytest.raises(ImageError, match="the bad one"):
            encoder.encode_documents(documents, batch_size=2)

    def test_batch_size(self, encoder, pictures):
        with pytest.raises(ValueError, match="batch_size=0"):
            encoder.encode_documents(pictures, batch_size=0)
        with pytest.raises(ValueError, match="batch_size=0"):
            encoder.encode_texts(TEXTS, batch_size=0)

    def test_progress_bar_is_off_by_one_flag(self, encoder, pictures, capsys):
        encoder.encode_documents(pictures, progress=False)
        assert capsys.readouterr().err == ""


class TestLoading:
    def test_image_processor_and_tokenizer_without_a_processor(self, tmp_path, encoder, pictures):
        tiny_model("clip").save_pretrained(tmp_path)
        processor = tiny_processor("clip")
        processor.image_processor.save_pretrained(tmp_path)
        processor.tokenizer.save_pretrained(tmp_path)
        assert not (tmp_path / "processor_config.json").exists()
        other = DualEncoder.from_pretrained(tmp_path, device="cpu")
        assert other.fingerprint == encoder.fingerprint
        expected = encoder.encode_documents(pictures)
        np.testing.assert_allclose(other.encode_documents(pictures), expected, atol=TOLERANCE)

    @pytest.mark.slow
    def test_no_warnings(self, checkpoints):
        # in a process of its own: transformers says each of its warnings once
        program = (
            "import sys, numpy; from ragvl.retriever import DualEncoder\n"
            "for folder in sys.argv[1:]:\n"
            "    encoder = DualEncoder.from_pretrained(folder, device='cpu')\n"
            "    encoder.encode_documents([numpy.zeros((40, 30))])\n"
            "    encoder.encode_texts(['a', 'a longer text ' * 20])\n"
        )
        command = [sys.executable, "-W", "error", "-c", program, *checkpoints.values()]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        lines = re.split(r"[\r\n]+", result.stderr + result.stdout)
        # transformers' weight bar, and what it says about the defaults of its own SigLIP config
        expected = ("Loading weights", "token_id must be `None`")
        assert [line for line in lines if line and not any(e in line for e in expected)] == []

    def test_pickled_weights_are_refused(self, checkpoints, tmp_path):
        folder = shutil.copytree(checkpoints["clip"], tmp_path / "clip")
        (folder / "model.safetensors").unlink()
        torch.save(tiny_model("clip").state_dict(), folder / "pytorch_model.bin")
        with pytest.raises(OSError, match="safetensors"):
            DualEncoder.from_pretrained(folder)

    def test_missing_weights_are_refused(self, checkpoints, tmp_path):
        folder = shutil.copytree(checkpoints["clip"], tmp_path / "clip")
        model = tiny_model("clip")
        weights = model.state_dict()
        del weights["text_projection.weight"]
        model.save_pretrained(folder, state_dict=weights)
        with pytest.raises(ValueError, match=r"lacks 1 .*text_projection\.weight"):
            DualEncoder.from_pretrained(folder)

    def test_what_was_saved_beside_the_weights_shapes_no_call(
        self, checkpoints, encoders, pictures, tmp_path
    ):
        for family, encoder in encoders.items():
            folder = shutil.copytree(checkpoints[family], tmp_path / family)
            file = folder / "tokenizer_config.json"
            saved = json.loads(file.read_text())
            saved |= {"model_max_length": 4, "max_length": 4, "truncation_side": "left"}
            if family == "clip":
                saved["padding_side"] = "left"
            file.write_text(json.dumps(saved))
            other = DualEncoder.from_pretrained(folder, device="cpu")
            other.image_processor.return_tensors = "np"
            np.testing.assert_array_equal(other.encode_texts(TEXTS), encoder.encode_texts(TEXTS))
            np.testing.assert_array_equal(
                other.encode_documents(pictures), encoder.encode_documents(pictures)
            )

    def test_damaged_files_are_named(self, checkpoints, tmp_path):
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            folder = shutil.copytree(checkpoints["clip"], tmp_path / name)
            (folder / name).write_bytes((folder / name).read_bytes()[:-50])
            with pytest.raises(ValueError, match=re.escape(str(folder / name))) as caught:
                DualEncoder.from_pretrained(folder)
            assert "\n" not in str(caught.value)

    def test_nan_weights(self):
        model, processor = tiny_model("clip"), tiny_processor("clip")
        model.text_projection.weight.data[0, 0] = float("nan")
        with pytest.raises(FloatingPointError, match="not finite"):
            DualEncoder(model, processor.image_processor, processor.tokenizer)
        model = tiny_model("clip")
        model.visual_projection.weight.data[0, 0] = float("nan")
        encoder = DualEncoder(model, processor.image_processor, processor.tokenizer)
        with pytest.raises(FloatingPointError, match="document '7'"):
            encoder.encode_documents([Document(np.zeros((8, 8)), id="7")])

    def test_a_model_with_one_tower_is_refused(self):
        model = BertModel(
            BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=10)
        )
        processor = tiny_processor("clip")
        with pytest.raises(ValueError, match=r"'bert'.*dual encoder"):
            DualEncoder(model, processor.image_processor, processor.tokenizer)

    def test_dtype(self, checkpoints, encoder, pictures):
        half = DualEncoder.from_pretrained(checkpoints["clip"], device="cpu", dtype="bfloat16")
        assert half.model.dtype == torch.bfloat16
        vectors = half.encode_documents(pictures)
        assert vectors.dtype == np.float32
        # bfloat16 keeps 8 bits: cosines near 1, and not the fp32 vectors
        cosines = (vectors * encoder.encode_documents(pictures)).sum(axis=1)
        assert 0.999 < cosines.min() < 1 - 1e-7

    @pytest.mark.gpu
    @pytest.mark.parametrize("family", FAMILIES)
    def test_gpu_agrees_with_cpu(self, family, checkpoints, encoders, pictures):
        encoder = DualEncoder.from_pretrained(checkpoints[family], device="cuda", dtype="float32")
        expected = encoders[family].encode_documents(pictures)
        # TF32 is off by default for matrix products but on for convolutions (the patch embedding)
        np.testing.assert_allclose(encoder.encode_documents(pictures), expected, atol=2e-3)
        expected = encoders[family].encode_texts(TEXTS)
        np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-5)


class TestFingerprint:
    def test_same_checkpoint(self, checkpoints, encoder):
        encoder.encode_texts(TEXTS)  # leaves padding and truncation behind in the tokenizer
        again = DualEncoder(encoder.model, encoder.image_processor, encoder.tokenizer)
        loaded = DualEncoder.from_pretrained(checkpoints["clip"], dtype="bfloat16")
        assert again.fingerprint == loaded.fingerprint == encoder.fingerprint

    def test_other_weights(self, encoder, tmp_path):
        folder = save_checkpoint(tmp_path, "clip", seed=1)
        assert DualEncoder.from_pretrained(folder).fingerprint != encoder.fingerprint

    def test_other_image_processor(self, encoder):
        processor = tiny_processor("clip")
        processor.image_processor.image_mean = [0.5, 0.5, 0.5]
        other = DualEncoder(encoder.model, processor.image_processor, processor.tokenizer)
        assert other.fingerprint != encoder.fingerprint

    def test_other_tokenizer(self, encoder):
        processor = tiny_processor("clip")
        processor.tokenizer.backend_tokenizer.normalizer = None
        other = DualEncoder(encoder.model, processor.image_processor, processor.tokenizer)
        assert other.fingerprint != encoder.fingerprint

    def test_weights_that_change_later(self, checkpoints):
        encoder = DualEncoder.from_pretrained(checkpoints["clip"], device="cpu")
        before = encoder.fingerprint
        with torch.no_grad():
            encoder.model.text_projection.weight[-1, -1] += 1
        assert encoder.fingerprint != before
