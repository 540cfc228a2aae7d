"""Every benchmark runs, if only for one step; its record, tables and plots are made; what is wrong is refused."""

import contextlib
import importlib
import io
import itertools
import json
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import faults
import numpy as np
import pytest
from faults import started
from PIL import Image
from test_backends import kernels_of, subclasses

from autoencoders import VAE, TrainingOptions, shipped
from autoencoders.conv_autoencoder import from_config
from autoencoders.evaluation.bounds import neg_elbo
from minigrad import Tensor
from minigrad.backend.chain import ChainBackend
from minigrad.backend.cpu.numpy_kernels import NumpyBackend
from minigrad.backend.memory import keep_freed_memory

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUNS = {  # result: program and options
    "train": ("train.py", "--peers", "plain,numpy", "--models", "vae,ae", "--batches", "3"),
    "startup": ("train.py", "--startup", "--peers", "numpy"),
    "reconstruct": ("train.py", "--reconstruct", "--peers", "numpy", "--models", "ae"),
    "coloured": ("train.py", "--coloured", "--peers", "numpy", "--batches", "2"),
    "memory": ("train.py", "--memory", "--peers", "numpy,numpy-returned", "--batches", "3"),
    "ops": ("ops.py", "--no-torch", "--batch", "2"),
    "scaling": ("scaling.py",),
}


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quick results of all programs."""
    folder = tmp_path_factory.mktemp("results")
    for name, (program, *options) in RUNS.items():
        done = run(program, *options, "--quick", "--threads", "2", "--out", str(folder / f"{name}.json"))
        assert (done.returncode, done.stderr) == (0, ""), f"{name}: {done.stderr}"
        assert done.stdout
    return folder


def read(results: Path, name: str) -> dict:
    return json.loads((results / f"{name}.json").read_text())


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """A function that imports one of the programs; afterwards its name is free again."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield lambda name: importlib.import_module(name)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


# ---- what the programs write ----


@pytest.mark.parametrize("name", RUNS)
def test_a_record_says_what_was_run_and_on_what(results, name):
    record = read(results, name)
    program, *options = RUNS[name]
    assert record["command"].startswith(" ".join(["python", f"benchmarks/{program}", *options, "--quick"]))
    assert record["measures"] == name
    assert set(record["machine"]) == {"processor", "cores", "system"}
    assert record["settings"]["threads"] == 2
    assert {"date", "commit", "dirty", "python", "versions"} <= set(record)
    text = json.dumps(record)
    assert str(Path.home()) + "/" not in text
    assert str(results) not in text


def test_training_has_a_row_for_each_program_model_and_work(results):
    record = read(results, "train")
    rows = {(row["model"], row["what"], row["peer"]): row for row in record["rows"]}
    assert len(rows) == len(record["rows"])
    assert set(rows) == set(itertools.product(("vae", "ae"), ("step", "predict"), ("plain", "numpy")))
    for row in rows.values():
        assert (row["batch"], row["ratio"]) == (3, None)  # there is no PyTorch in this run
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert row["images_per_second"]["median"] == pytest.approx(3 / row["seconds"]["median"])
        assert row["gflops"] > 0
        assert all(error >= 0 for error in row["errors"].values())
    for what, wanted in (("step", 112.5), ("predict", 37.5)):  # MFLOP per image, of the default model
        row = rows["vae", what, "numpy"]
        assert row["gflops"] * 1e3 / row["images_per_second"]["median"] == pytest.approx(wanted, abs=0.5)
    assert record["faults"] == []
    assert "kernels numpy" in record["versions"]["numpy"]["backend"]
    assert [(row["peer"], row["what"]) for row in read(results, "startup")["rows"]] == [("numpy", "startup")]
    found = [(row["peer"], row["what"], row["images"]) for row in read(results, "reconstruct")["rows"]]
    assert found == [("numpy", "reconstruct", 8)]
    rows = read(results, "memory")["rows"]
    found = [(row["model"], row["peer"], row["kept"]) for row in rows]
    assert found == [(model, peer, peer == "numpy") for model in ("vae", "ae") for peer in ("numpy", "numpy-returned")]
    assert all(0 < row["memory_before"] < row["memory_peak"] for row in rows)


HUNGRY = """
import sys; sys.path.insert(0, {folder!r})
import numpy as np
from protocol import Program, Service, serve
class Hungry(Program):
    versions = {{}}
    def __init__(self, *_):
        np.ones(8 << 20)
        self.held = np.ones(2 << 20)
    def step(self):
        return np.ones(4 << 20)[0]
serve(Service(Hungry))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_memory_is_what_the_steps_add(load, tmp_path):
    """Of a program that takes 64 MiB while it is built and gives them back, holds 16 more, and takes 32 for a step."""
    worker = tmp_path / "worker.py"
    worker.write_text(HUNGRY.format(folder=str(BENCHMARKS / "workers")))
    np.savez(tmp_path / "arrays.npz", images=np.zeros(1), noise=np.zeros(1))
    with load("driver").Worker("hungry", str(worker), python=sys.executable, threads=1) as process:
        before = process.build(spec={}, arrays=str(tmp_path / "arrays.npz"), options={})["memory"]
        process.ask("step", count=2)
        peak = process.ask("memory")["memory"]
    assert 16 << 20 < before < 64 << 20
    assert 30 << 20 < peak - before < 34 << 20


def test_every_kernel_that_a_cpu_backend_overrides_is_measured(results):
    record = read(results, "ops")
    measured = {row["kernel"] for row in record["rows"]}
    subclasses()  # imports the modules of all backends
    classes: list[type] = [NumpyBackend]
    for cls in classes:
        classes.extend(cls.__subclasses__())
    overridden = {name for cls in classes for name in kernels_of(cls) if hasattr(ChainBackend, name)}
    assert overridden <= measured, f"benchmarks/ops.py: add a case for {sorted(overridden - measured)}"
    for row in record["rows"]:
        assert {"plain", "numpy"} <= set(row)
        assert all(row[name]["seconds"]["median"] > 0 for name in record["programs"])
        assert row["plain"]["ratio"] == 1
        assert row["bytes"] > 0


def test_scaling_names_the_growth_of_each_axis(results):
    axes = read(results, "scaling")["axes"]
    assert set(axes) == {"batch", "side", "channels", "threads"}
    for axis, found in axes.items():
        work = [row["work"] for row in found["rows"]]
        assert all(row["memory_peak"] > row["memory_before"] > 0 for row in found["rows"])
        if axis != "threads":
            assert work == sorted(work)
            assert all(fit["linear"] == (fit["slope"] <= 1.1) for fit in found["growth"].values())


def test_the_slope_of_a_power_is_its_exponent(load):
    scaling = load("scaling")
    work = [1.0, 3.0, 10.0]
    assert scaling.slope(work, [7 * w**1.3 for w in work]) == pytest.approx(1.3)
    rows = [{"work": w, "seconds": {"median": w**1.3}, "memory_before": 5, "memory_peak": 5 + 9 * w} for w in work]
    assert {name: fit["linear"] for name, fit in scaling.growth(rows).items()} == {"time": False, "memory": True}


def test_the_report_is_made_of_the_records(results):
    done = run("report.py", "--results", str(results))
    assert (done.returncode, done.stderr) == (0, "")
    for name in RUNS:
        assert read(results, name)["command"] in (results / f"{name}.md").read_text()
    text = (results / "train.md").read_text()
    assert "| **minigrad numpy** |" in text
    assert "| **minigrad numpy, memory returned** |" in (results / "memory.md").read_text()
    for picture in ("train", "predict", "memory", "ops", "scaling"):
        assert (results / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"
    assert run("report.py", "--results", str(results / "none")).returncode == 1


# ---- recipes ----


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quick result of one recipe and two seeds."""
    folder = tmp_path_factory.mktemp("recipes")
    options = ["--recipes", "vae10", "--seeds", "0,1", "--quick", "--runs", str(folder / "runs")]
    done = run("quality.py", *options, "--out", str(folder / "quality"))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


def test_a_run_of_a_recipe_keeps_its_commands_options_and_figures(recipes):
    assert sorted(path.name for path in (recipes / "quality").iterdir()) == ["vae10-0.json", "vae10-1.json"]
    text = (recipes / "quality/vae10-1.json").read_text()
    assert str(recipes) not in text
    assert str(Path.home()) + "/" not in text
    record = json.loads(text)
    assert record["training"]["command"] == "python scripts/train_conv_autoencoder.py --config vae10 --seed 1"
    assert record["evaluation"]["command"] == "python scripts/evaluate.py --model-dir vae10-1 --iw-samples 0"
    assert (record["recipe"], record["seed"], record["training"]["options"]["seed"]) == ("vae10", 1, 1)
    assert record["training"]["training_seconds"] > 0
    assert record["evaluation"]["model"]["latent_space_dim"] == 10
    assert record["evaluation"]["neg_elbo"] > 0


def test_the_table_of_recipes_has_mean_and_deviation_over_seeds(recipes, tmp_path):
    readme = tmp_path / "README.md"
    marks = "<!-- quality: made by benchmarks/report.py -->", "<!-- end of quality -->"
    readme.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    done = run("report.py", "--results", str(recipes), "--readme", str(readme))
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads((recipes / f"quality/vae10-{seed}.json").read_text()) for seed in (0, 1)]
    a, b = (record["evaluation"]["neg_elbo"] for record in records)
    row = next(line for line in readme.read_text().splitlines() if line.startswith("| `--config vae10`"))
    assert "on the test images of fashion-mnist-sample" in readme.read_text()
    assert f"| 0, 1 | {(a + b) / 2:.1f} ± {abs(a - b) / 2**0.5:.1f} |" in row
    assert readme.read_text().startswith("before\n<!--")
    assert readme.read_text().endswith(f"{marks[1]}\nafter\n")
    assert "old" not in readme.read_text()
    readme.write_text("no marks\n")
    assert "no file has the marks" in run("report.py", "--results", str(recipes), "--readme", str(readme)).stderr
    assert readme.read_text() == "no marks\n"


# ---- trials and limits ----


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quick results of two trials, one of them measured twice, and of what limits one of them."""
    folder = tmp_path_factory.mktemp("trials")
    place = ["--quick", "--out", str(folder / "trials.json"), "--threads", "2"]
    for names in ("vae2,vae2-hidden", "vae2"):
        done = run("trials.py", "--trials", names, "--runs", str(folder / "runs"), *place)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    done = run("limits.py", str(folder / "runs/vae2-hidden-0"), "--quick", "--out", str(folder / "limits.json"))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


def test_a_trial_is_measured_on_images_that_it_was_not_trained_on(trials):
    rows = {row["trial"]: row for row in read(trials, "trials")["rows"]}
    assert list(rows) == ["vae2-hidden-0", "vae2-0"], "a row measured again takes the place of the earlier one"
    assert {row["held_out"] for row in rows.values()} == {20}
    assert rows["vae2-hidden-0"]["parameters"] - rows["vae2-0"]["parameters"] == 2 * 256 * 3136 + 8 * 256 - 6 * 3136


def test_a_trial_is_compared_with_the_one_that_lacks_its_last_word(trials):
    rows = {row["trial"]: row for row in read(trials, "trials")["rows"]}
    assert rows["vae2-0"]["changes"] == {}
    changes = rows["vae2-hidden-0"]["changes"]
    for key in ("neg_elbo", "mse"):
        a, b = (np.load(trials / "runs" / name / "held_out.npz")[key] for name in ("vae2-hidden-0", "vae2-0"))
        assert changes[key] == pytest.approx([(a - b).mean(), (a - b).std(ddof=1) / 20**0.5])


def test_a_trial_with_16_dimensions_has_a_linear_probe(tmp_path):
    pytest.importorskip("sklearn")
    place = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "trials.json"), "--threads", "2"]
    done = run("trials.py", "--trials", "ae16", "--quick", *place)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (row,), right = read(tmp_path, "trials")["rows"], np.load(tmp_path / "runs/ae16-0/held_out.npz")["probe"]
    assert set(right) <= {0.0, 100.0}
    assert (len(right), row["probe"]) == (20, right.mean())
    assert run("report.py", "--results", str(tmp_path)).returncode == 0
    assert f"| {right.mean():.1f} |" in (tmp_path / "trials.md").read_text()


def test_the_changes_of_trials_do_what_they_say(load):
    changes = load("changes")
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    model, options = VAE((8, 8, 1), (4,), 3, 2, 2, momentum=0.5), TrainingOptions(batch_size=8, epochs=2)
    vamp = changes.vamp_prior(model, images, options, 1e-2)
    assert len(vamp.network.layers["prior"].logits.data) == 24
    with vamp.evaluating():
        mean, log_variance = (x.numpy() for x in vamp.components())
    z = np.random.default_rng(1).normal(0, 2, (5, 2)).astype(np.float32)
    densities = np.exp(-((z[:, None] - mean) ** 2) / np.exp(log_variance) / 2 - log_variance / 2).prod(axis=2)
    expected = np.log(densities.mean(axis=1) / (2 * np.pi))
    np.testing.assert_allclose(changes.log_prior_rows(vamp, z), expected, rtol=1e-5)
    np.testing.assert_allclose(vamp.log_prior(Tensor(z)).numpy(), expected, rtol=1e-4)
    _, bound, weighted = changes.bounds_of(vamp, images, 50)
    assert (weighted < bound).all()
    _, bound, _ = changes.bounds_of(model, images, 2000)
    assert bound.mean() == pytest.approx(neg_elbo(model, images, 0, 200)["neg_elbo"], rel=1e-3)

    before = model.network.state_dict()
    after = changes.encoder_alone(model, images, options, 1e-2).network.state_dict()
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("decoder")}

    further = changes.weighted_bound(model, images, options, 1e-2)
    after = further.network.state_dict()
    assert further.trained_steps == 9
    assert all(0 < abs(before[name] - after[name]).max() < 0.1 for name in before if "moving" not in name), "from there"

    changes.DECAY = 0.0
    last = changes.trained_again(from_config(model.config), images, options, 1e-2).network.state_dict()
    averaged = changes.averaged(model, images, options, 1e-2).network.state_dict()
    same = {name for name in last if np.allclose(last[name], averaged[name], atol=1e-6)}
    assert same == {name for name in last if "moving" not in name}, "the average without a memory is the last one"


def test_the_parts_of_the_bound_add_up(trials):
    (row,) = read(trials, "limits")["rows"]
    assert row["held_out"] == "held out"
    for group in ("trained", "held out"):
        parts = {name: row[group][name][0] for name in ("neg_elbo", "amortisation", "approximation", "nll")}
        assert parts["neg_elbo"] == pytest.approx(sum(parts.values()) - parts["neg_elbo"])
        assert parts["amortisation"] >= 0
    assert row["many"]["held out"][0] == 20
    assert run("report.py", "--results", str(trials)).returncode == 0
    assert row["run"] == "runs/vae2-hidden-0"
    assert "| `runs/vae2-hidden-0` | held out | 8 |" in (trials / "limits.md").read_text()
    text = (trials / "trials.md").read_text()
    assert "| `vae2-hidden-0` | 1,815,685 |" in text
    assert "--hidden 256" in text


def test_a_mixture_is_measured_beside_the_prior(trials, load):
    pytest.importorskip("sklearn")
    out = trials / "mixtures.json"
    done = run("mixtures.py", str(trials / "runs/vae2-hidden-0"), "--quick", "--out", str(out), "--threads", "2")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (row,) = read(trials, "mixtures")["rows"]
    assert (row["components"], row["test_images"]) == (50, 200)
    assert row["changes"]["neg_elbo"][0] == pytest.approx(row["mixture"]["neg_elbo"][0] - row["normal"]["neg_elbo"][0])
    text = load("report").readme_tables(trials)["mixtures"]
    assert f"| `vae2-hidden-0` | 2 | {row['normal']['neg_elbo'][0]:,.1f} |" in text


def test_the_best_q_is_the_one_that_a_search_finds(load):
    """With one latent, -ELBO of any q is an integral, and the best of many q is near the best of all."""
    limits = load("limits")
    model = VAE((6, 6, 1), (4,), 3, 2, 1, momentum=0.5, seed=2)
    rng = np.random.default_rng(0)
    for name, x in model.network.named_tensors():
        x.data[...] += rng.uniform(0, 0.3, x.shape) if name.endswith("moving_variance") else rng.normal(0, 0.3, x.shape)
    images = rng.integers(0, 256, (3, 6, 6, 1), dtype=np.uint8)
    z = np.linspace(-6, 6, 2001)
    means, pixels = model.decode(z[:, None]).reshape(len(z), -1).astype(float), images.reshape(3, -1) / 255
    costs = -(np.log(means) @ pixels.T + np.log1p(-means) @ (1 - pixels.T))  # (points, images)

    def bound(mu, log_variance):
        q = np.exp(-0.5 * (z - mu) ** 2 / np.exp(log_variance))
        return (q / q.sum()) @ costs + 0.5 * (mu**2 + np.exp(log_variance) - 1 - log_variance)

    grid = [bound(mu, s) for mu in np.linspace(-3, 3, 121) for s in np.linspace(-3, 1, 41)]
    encoded = limits.distribution_of(model, images)
    mu, log_variance = limits.best_q(model, images, encoded, 400)
    found = [bound(m[0], s[0])[i] for i, (m, s) in enumerate(zip(mu, log_variance, strict=True))]
    np.testing.assert_allclose(found, np.min(grid, axis=0), atol=0.03)
    rows = limits.neg_elbo_rows(model, images, (mu, log_variance), 400)
    np.testing.assert_allclose(rows, found, atol=0.3)
    before = [bound(m[0], s[0])[i] for i, (m, s) in enumerate(zip(*encoded, strict=True))]
    assert np.mean(before) > np.mean(found) + 0.1, "the encoder that was never trained is worse"
    prior = np.exp(-0.5 * z**2)
    exact = -np.log((prior / prior.sum()) @ np.exp(-costs))
    np.testing.assert_allclose(limits.nll_bound_rows(model, images, (mu, log_variance), 4000), exact, atol=0.05)


def test_what_unseen_images_cost_is_found_at_the_same_difficulty(load):
    """The unseen images are more difficult by 5 and cost 2 more besides."""
    limits, rng = load("limits"), np.random.default_rng(0)
    known = [np.column_stack([np.ones(400), rng.normal(shift, 20, 400)]) for shift in (0, 5)]
    losses = [200 + x[:, 1] + rng.normal(0, 1, 400) for x in known]
    found = limits.unseen_costs(losses[0], losses[1] + 2, (known[0], known[1]))
    assert found["difference"] == pytest.approx(2, abs=0.25)
    assert found["difference_se"] == pytest.approx(2**0.5 / 20, rel=0.1)
    assert found["explained"] > 0.99


# ---- colour ----


def test_a_coloured_set_is_drawn_trained_and_measured(load, tmp_path):
    places = [f"--{name}={tmp_path / name}" for name in ("data", "runs")]
    places.append(f"--out={tmp_path / 'colour.json'}")
    done = run("colour.py", "--sets", "faces", "--quick", *places)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert len(list((tmp_path / "data/faces").glob("*.png"))) == 60
    (row,) = read(tmp_path, "colour")["rows"]
    assert (row["images"], row["test_images"], row["model"]["input_shape"]) == (54, 6, [64, 64, 3])
    assert row["model"]["likelihood"] == "gaussian-learned"
    for picture in ("reconstructions", "samples"):
        assert (tmp_path / f"colour_faces_{picture}.png").read_bytes()[:4] == b"\x89PNG"
    text = load("report").readme_tables(tmp_path)["colour"]
    assert f"| faces | 64 x 64 x 3 | `--config colour64` | 54 | 32 | {row['test']['bits_per_dim']:.2f} |" in text


def test_a_face_is_the_same_every_time(load):
    colour = load("colour")
    first, second, again = (np.asarray(next(colour.faces(2))), *map(np.asarray, colour.faces(2)))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (64, 64, 3)
    assert (first != again).any()


def test_emoji_are_read_from_a_font_each_once_on_white(load, tmp_path):
    colour = load("colour")
    assert colour.main(["--sets", "emoji", "--font", str(tmp_path / "no.ttf"), "--data", str(tmp_path / "data")]) == 1
    files = []
    for level in (0, 200):
        buffer = io.BytesIO()
        picture = Image.new("RGBA", (136, 128))
        picture.paste((level, 0, 0, 255), (0, 0, 68, 128))  # the right half is transparent
        picture.save(buffer, "PNG")
        files.append(buffer.getvalue())
    (tmp_path / "font.ttf").write_bytes(b"head" + files[0] + b"xx" + files[1] + files[0] + b"tail")
    found = [np.asarray(x) for x in colour.emoji(10, tmp_path / "font.ttf")]
    assert [x.shape for x in found] == [(32, 32, 3)] * 2
    assert found[1][16, 4].tolist() == [200, 0, 0]
    assert found[1][16, 28].tolist() == [255, 255, 255]


CAMPAIGN = {"command": "pytest", "seed": 7, "date": "today", "commit": "0123456789abcdef", "dirty": True}
CAMPAIGN |= {"seconds": 90.0, "machine": "2 cores", "python": "3.11", "versions": {"NumPy": "2.4"}}


def test_the_parts_of_the_campaign_stand_below_each_other(load, tmp_path):
    record = CAMPAIGN | {"rows": [{"what": "kills", "injected": 1200, "lost": 0, "seconds": 3.4}], "commit": None}
    gpu = {"gpu": {"name": "NVIDIA X", "driver": "580.1"}}
    for name, more in (("campaign", {}), ("campaign_gpu", gpu), ("campaign_mpi", {})):
        (tmp_path / f"{name}.json").write_text(json.dumps({**record, **more}))
    assert load("report").main(["--results", str(tmp_path)]) == 0
    text = (tmp_path / "campaign.md").read_text()
    assert text.count("| kills |  |  | 1,200 |") == 3
    below = text.splitlines()[-1]
    assert "**Failed**" not in text
    failed = load("report").campaign({**record, "failed": ["tests/test_x.py::test_y"]})
    assert "**Failed**: `tests/test_x.py::test_y`" in failed
    assert "commit unknown, with changes, 2 min on NVIDIA X, driver 580.1, 2 cores, Python 3.11, NumPy 2.4." in below


@pytest.mark.parametrize("whole", [True, False])
def test_a_campaign_that_lost_something_is_recorded_with_its_losses(monkeypatch, tmp_path, whole):
    """Rows of several tests and workers add up, a failed test is named, and a part of the campaign is no record."""
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    monkeypatch.setattr(faults, "ROOT", tmp_path)
    options = Namespace(file_or_dir=[] if whole else ["tests/test_x.py"], numprocesses=2)
    asked = {"-m": "campaign", "-k": "", "--campaign-seed": 3}
    terminal = Namespace(write_line=lambda _: None)
    config = Namespace(option=options, getoption=asked.get, pluginmanager=Namespace(get_plugin=lambda _: terminal))
    result = faults.Result(config)
    for number, lost in enumerate((0, 2)):
        campaign = faults.Campaign("test_y", True, 3, False)
        with pytest.raises(AssertionError, match="2 of 10 lost; seed 3") if lost else contextlib.nullcontext():
            campaign.survived("kills", 10, lost, runs=4, in_save=number)
        row = [(faults.ROW, {"what": "kills", **campaign.row, "seconds": 1.0})]
        for when, failed in (("call", bool(lost)), ("teardown", False)):
            report = {"nodeid": f"test_y[{number}]", "when": when, "failed": failed, "longreprtext": ""}
            result.pytest_runtest_logreport(Namespace(**report, user_properties=row))
    result.pytest_sessionfinish(pytest.ExitCode.TESTS_FAILED)
    file = tmp_path / "benchmarks/results/campaign.json"
    assert file.exists() == whole
    if whole:
        record = json.loads(file.read_text())
        counted = {"runs": 8, "injected": 20, "effective": None, "in_save": 1, "lost": 2, "seconds": 2.0}
        assert record["rows"] == [{"what": "kills", **counted}]
        assert record["failed"] == ["test_y[1]"]
        file.unlink()
        result.pytest_sessionfinish(pytest.ExitCode.INTERRUPTED)
        assert not file.exists()


@pytest.fixture
def remade(load, tmp_path):
    """A function that makes a recipe of a run.json, in vain."""
    folder = tmp_path / "runs/vae10-0"
    folder.mkdir(parents=True)

    def remade(text: str) -> None:
        (folder / "run.json").write_text(text)
        places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
        assert load("quality").main(["--recipes", "vae10", "--seeds", "0", *places]) == 1
        assert not (tmp_path / "out").exists()

    return remade


def test_a_run_that_fails_is_no_result(remade, capfd):
    started = "python scripts/train_conv_autoencoder.py --config vae10 --seed 0 --out runs/vae10-0"
    remade(json.dumps({"status": "failed", "commands": [started]}))  # to be resumed, but there is no checkpoint
    assert "ended with exit code 3" in capfd.readouterr().err
    remade("{")
    error = capfd.readouterr().err
    assert (error.startswith("error: "), error.count("\n")) == (True, 1)


@pytest.mark.parametrize("words", ["--smoke --dataset fashion-mnist-sample", "--lr 0.1", None])
def test_a_run_of_other_options_is_not_measured_as_the_recipe(remade, capsys, words):
    command = f"'/a place/python' scripts/train_conv_autoencoder.py --config vae10 --seed 0 --out x/vae10-0 {words}"
    remade(json.dumps({"status": "finished"} | ({"commands": [command]} if words else {})))
    assert "vae10-0 was not trained with --config vae10 --seed 0" in capsys.readouterr().err


# ---- models that ship ----


def test_a_recipe_becomes_a_shipped_model_with_a_card(load, tmp_path, monkeypatch, capsys):
    """Trained for two batches, copied again without training; an unfinished or another run is refused."""
    models, runs = tmp_path / "models", tmp_path / "runs"
    options = ["--models", "vae16", "--quick", "--runs", str(runs), "--out", str(models)]
    done = run("ship.py", *options)
    assert (done.returncode, done.stderr) == (0, "")

    def content() -> dict[str, bytes]:
        return {path.relative_to(models).as_posix(): path.read_bytes() for path in models.rglob("*") if path.is_file()}

    files = content()
    assert not [name for name, text in files.items() if str(tmp_path).encode() in text]
    card, results = files["vae16/README.md"].decode(), json.loads(files["vae16/quality.json"])
    assert f"| {results['evaluation']['neg_elbo']:.1f} | ± {results['evaluation']['neg_elbo_image_se']:.1f} |" in card
    assert f"Commit {(results['commit'] or 'unknown')[:12]}" in card
    assert "--config vae16 --seed 0`" in card
    monkeypatch.setattr(shipped, "MODELS", models)
    assert shipped.shipped_folder("vae16") == models / "vae16"
    ship = load("ship")
    assert ship.main(options) == 0, "only copied"
    assert content() == files
    for change, fault in (
        (lambda record: record.update(status="interrupted"), "has not run to its end"),
        (lambda record: record["training"].update(epochs=0), "has not run to its end"),
        (lambda record: (runs / "vae16-0/model.safetensors").write_bytes(b"other"), "not the one that was measured"),
    ):
        record = json.loads(files["vae16/run.json"])
        change(record)
        (runs / "vae16-0/run.json").write_text(json.dumps(record))
        assert ship.main(options) == 1
        assert fault in capsys.readouterr().err


def test_a_card_is_what_the_program_makes_of_the_results(load):
    ship = load("ship")
    folders = [path for path in ship.MODELS.glob("*") if path.is_dir()]
    assert folders
    for folder in folders:
        assert (folder / "README.md").read_text() == ship.card(folder)


# ---- parity ----


def test_parity_compares_the_mean_loss_of_each_epoch(load):
    parity = load("parity")
    ours, theirs = np.linspace(500, 300, 120), np.linspace(500, 300, 120) + np.tile([9.0, -9.0], 60)
    theirs[0] = ours[0]
    rows, faults = parity.compare(ours.tolist(), theirs.tolist(), 2)
    for epoch, row in enumerate(rows):
        a, b = ours[60 * epoch : 60 * epoch + 60].mean(), theirs[60 * epoch : 60 * epoch + 60].mean()
        assert (row["epoch"], row["minigrad"], row["torch"]) == (epoch + 1, pytest.approx(a), pytest.approx(b))
        assert row["difference"] == pytest.approx(abs(a - b) / b)
    assert faults == []
    theirs[60:] *= 1.006
    assert [fault.partition(":")[0] for fault in parity.compare(ours.tolist(), theirs.tolist(), 2)[1]] == ["epoch 2"]
    theirs[0] *= 1 + 2e-4
    assert parity.compare(ours.tolist(), theirs.tolist(), 2)[1][0].startswith("first loss")
    for place, wrong in ((0, float("nan")), (1, float("inf"))):
        broken = [*ours[:place], wrong, *ours[place + 1 :]]
        for pair in ((broken, theirs.tolist()), (theirs.tolist(), broken)):
            with pytest.raises(parity.BenchmarkError, match="not finite"):
                parity.compare(*pair, 2)


def test_parity_without_torch_says_so_before_it_trains(load, monkeypatch, capsys):
    parity = load("parity")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(parity, "ours", lambda *_: pytest.fail("it trained"))
    assert parity.main(["--quick"]) == 1
    assert capsys.readouterr().err == "error: parity.py needs PyTorch: pip install torch\n"


# ---- ratios ----


def test_a_ratio_compares_rows_with_the_same_setting_of_the_library(load):
    train = load("train")
    times = {"numpy": 2.0, "torch-kept": 8.0, "torch-fused-kept": 4.0, "numpy-returned": 3.0, "torch": 6.0, "jax": 12.0}
    rows = [train.row_of("step", "vae", 3, peer) | {"seconds": {"median": times[peer]}} for peer in times]
    rows += [row | {"what": "predict", "seconds": {"median": 1.0}} for row in rows]
    train.add_ratios(rows)
    assert [row["ratio"] for row in rows] == [2.0, 0.5, 1.0, 2.0, 1.0, 0.5, *[1.0] * 6]
    train.add_ratios(alone := [row for row in rows if row["peer"] in ("numpy", "torch")])
    assert [row["ratio"] for row in alone] == [None, 1.0, None, 1.0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_every_layout_of_torch_is_measured_with_both_settings(load, monkeypatch):
    """And ours: the setting is in the environment of the process, PyTorch's with the numbers that minigrad uses."""
    train = load("train")
    for name, peer in train.PEERS.items():
        if name.startswith("torch") and not name.endswith("-kept"):
            kept = train.PEERS[f"{name}-kept"]
            assert (kept.options, kept.environment, kept.kept) == (peer.options, train.KEEP, True)
            assert (peer.environment, peer.kept) == ({}, False)
    asked = {}
    monkeypatch.delenv("MINIGRAD_KEEP_MEMORY", raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda _: Namespace(mallopt=lambda what, size: asked.update({what: size}) or 1))
    assert keep_freed_memory()
    names = {-3: "MALLOC_MMAP_THRESHOLD_", -1: "MALLOC_TRIM_THRESHOLD_"}  # by the numbers in malloc.h
    assert {names[what]: str(size) for what, size in asked.items()} == train.KEEP
    for name in ("numpy", "numba"):
        for peer, kept in ((name, "1"), (f"{name}-returned", "0")):
            assert train.PEERS[peer].environment == {"MINIGRAD_KEEP_MEMORY": kept}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_a_worker_has_the_setting_that_its_row_names(load, monkeypatch):
    train = load("train")
    monkeypatch.setenv("MINIGRAD_KEEP_MEMORY", "0")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")  # is not handed on to any worker
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    with train.Programs(Namespace(threads=1, python={}, quick=True), "vae", 2) as programs:
        for name in ("numpy", "numpy-returned"):
            worker, about = programs.built(name, train.PEERS[name])
            environment = Path(f"/proc/{worker.process.pid}/environ").read_bytes()
            assert b"MALLOC_" not in environment
            assert b"OPENBLAS_CORETYPE" not in environment
            assert about["remarks"]["freed memory is kept"] == train.PEERS[name].kept


# ---- who does not compute the same is no row ----


@pytest.fixture
def programs(load):
    """The workers of a tiny VAE problem, and the reference's results."""
    train: ModuleType = load("train")
    args = Namespace(threads=1, python={}, quick=True)
    with train.Programs(args, "vae", 3) as found:
        reference, _ = found.built("reference", train.PEERS["plain"], dtype="float64")
        yield train, found, found.checked(reference)


@pytest.mark.parametrize(
    "name", [None, "encoder_conv_layer_2.weight", "decoder_bn_2.beta", "encoder_bn_1.moving_variance", "noise"]
)
def test_a_program_with_other_weights_is_found(programs, name):
    train, found, expected = programs
    with np.load(found.problem) as file:
        arrays = {key: file[key] for key in file.files}
    if name is not None:
        arrays[name] = arrays[name] + np.float32(0.05)
    np.savez(found.problem, **arrays)
    worker, _ = found.built("numpy", train.PEERS["numpy"])
    result = found.checked(worker)
    if name is None:
        assert train.check("numpy", result, expected).keys() == train.LIMITS.keys()
    else:
        with pytest.raises(train.BenchmarkError, match="numpy does not compute what"):
            train.check("numpy", result, expected)


def test_other_results_are_found(programs):
    train, _, expected = programs
    # by so much the images differ if the moving statistics stand still, as measured
    for name, wrong, told in (
        ("after", expected["after"] + 3e-3, "reconstruction after training"),
        ("losses", [float("nan")] * 3, "first loss"),
    ):
        with pytest.raises(train.BenchmarkError, match=told):
            train.check("numpy", {**expected, name: wrong}, expected)


# ---- errors ----


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("train", ["--peers", "numpy,theano"], "theano is not known"),
        ("train", ["--batches", "0"], "0 is not positive"),
        ("train", ["--python", "theano=python"], "LIBRARY is jax"),
        ("train", ["--startup", "--reconstruct"], "ask for one"),
        ("ops", ["--only", "conv3d"], "conv3d is not known"),
        ("scaling", ["--kernels", "fortran"], "fortran is not installed"),
        ("quality", ["--quick"], "--quick needs --out"),
        ("ship", ["--models", "ae2"], "ae2 is not known; there are vae2, vae16, vae40-binarised"),
        ("ship", ["--quick"], "--quick needs --out"),
        ("report", ["--format", "pdf"], "unrecognized arguments"),
    ],
)
def test_unknown_options_are_usage_errors(load, capsys, program, arguments, message):
    with pytest.raises(SystemExit) as stop:
        load(program).main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_library_that_is_not_there_is_listed_with_its_remedy(load, monkeypatch):
    train = load("train")
    peer = train.Peer("ghost", "ghost", "no_such_module", "ghost")
    monkeypatch.setitem(train.PEERS, "ghost", peer)
    assert train.installed(["numpy", "ghost"], {}) == (["numpy"], {"ghost": "not installed: pip install ghost"})


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise SystemExit('out of luck')", r"worker 'bad' died in 'build' \(exit code 1\):\nout of luck"),
        ("print('{\"threads\": 7}', flush=True)\ninput()", "uses 7 threads instead of 1"),
    ],
)
def test_a_bad_worker_is_refused(load, tmp_path, code, told):
    driver = load("driver")
    (tmp_path / "bad_worker.py").write_text(f"input()\n{code}\n")
    with (
        driver.Worker("bad", str(tmp_path / "bad_worker.py"), python=sys.executable, threads=1) as worker,
        pytest.raises(driver.BenchmarkError, match=told),
    ):
        worker.build()
    assert worker.process.poll() is not None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see the processes")
def test_ctrl_c_ends_all_workers(tmp_path):
    out = tmp_path / "train.json"
    command = [sys.executable, str(BENCHMARKS / "train.py"), "--peers", "plain,numpy", "--models", "vae"]
    command += ["--batches", "2", "--rounds", "10000", "--threads", "1", "--out", str(out)]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers: list[str] = []
        while len(workers) < 3:  # two programs, and at least one who measures the roofline
            assert process.poll() is None
            time.sleep(0.02)
            workers = children.read_text().split()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "interrupted\n")
    # One that the driver had no time to wait for is a zombie until the system's first process takes it.
    for status in (Path(f"/proc/{worker}/stat") for worker in workers):
        with contextlib.suppress(FileNotFoundError):
            while status.read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.05)
    assert not out.exists()
