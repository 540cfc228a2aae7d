"""The programs on a user's own images."""

import json
import shutil
from pathlib import Path

import pytest
from program_cases import content, photos, pictures, record
from programs import EVALUATE, GENERATE, NETWORK, TRAIN

pytestmark = pytest.mark.usefixtures("working_folder")


def test_how_images_are_read_is_recorded_and_applied_again(call, monkeypatch, undrawn):
    words = (*NETWORK, "--dataset", photos("holiday photos", 40), "--epochs", 1, "--out", "run")
    call(TRAIN, *words).failed(3, "20 of 40 are not 24 x 20", "--image-size 20", "1 cannot be read (broken.jpg)")
    call(TRAIN, *words, "--image-size", 8).failed(3, "broken.jpg: cannot identify", "--skip-broken")
    call(TRAIN, *words, "--image-size", 8, 8, 8).failed(2, "--image-size is 8 8 8")
    reading = ("--image-size", 8, 12, "--grayscale", "--skip-broken", "--test-dir", photos("kept", 10))
    call(TRAIN, *words, *reading, "--augment", "--limit-train", 30).ok("--model-dir run --dataset 'holiday photos'")
    recorded = record(Path("run"))
    wanted = {"image_size": [8, 12], "grayscale": True, "skip_broken": True, "test_dir": str(Path("kept").absolute())}
    assert recorded["data"] | wanted == recorded["data"]
    assert recorded["options"]["augment"]
    assert recorded["model"]["input_shape"] == [8, 12, 1]
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    words = ("--model-dir", "../run", "--dataset", "../holiday photos")
    again = ("--init-from", "../run", "--epochs", 1, "--out", "new")
    for program, *rest in ((EVALUATE, *words), (TRAIN, "--out", "../run", "--resume"), (TRAIN, *again)):
        call(program, *rest).ok("10 of them for testing", "50 of them resized and cropped to 12 x 8")
    found = json.loads(Path("../run/evaluation.json").read_text())["data"]["content_hash"]
    assert found == recorded["data"]["content_hash"] == record(Path("new"))["data"]["content_hash"]
    # other pictures get the size and colour of the model's; the folder of test images is not theirs
    call(GENERATE, "--model-dir", "../run", "--dataset", "../kept", "--out", "drawn").ok(
        "10 images from the folder ../kept, 1 of them, drawn at random from each class, for testing"
    )
    recorded["data"]["image_size"] = "large"
    Path("../run/run.json").write_text(json.dumps(recorded))
    call(GENERATE, *words).failed(3, "image size is large but must be")


def test_single_pictures_are_reconstructed_without_a_data_set(call, trained, monkeypatch):
    face = photos("a ü", 4) / "a/0.png"
    monkeypatch.setattr(GENERATE.module, "data_of_model", lambda *_: pytest.fail("loads a data set"))
    shutil.copytree(trained(), "run")
    call(GENERATE, "--model-dir", "run", "--image", face, "a ü/b/3.png").ok(
        f"{face}: turned to grey, resized and cropped to 28 x 28"
    )
    before = content(Path("run"))
    call(GENERATE, "--model-dir", "run", "--image", "a ü/b/broken.jpg").failed(3, "a ü/b/broken.jpg: cannot identify")
    call(GENERATE, "--model-dir", "run", "--image", "a ü").failed(3, "a ü: is a folder; --image 'a ü'/* takes")
    call(GENERATE, "--model-dir", "run", "--image", "a ü/a/0.pgn").failed(3, "no such file; did you mean 0.png?")
    assert content(Path("run")) == before
    conditional = ("--model-dir", trained("vae", 2, "--conditional"), "--image", face, "--out", "drawn")
    call(GENERATE, *conditional).failed(2, "--image needs the --class of the pictures")
    assert call(GENERATE, *conditional, "--class", "Bag").code == 0
    assert pictures(Path("drawn")) == {"image"}
