"""What a training shows: lines, tables, bars, and the film."""

import errno
import subprocess
import sys
from unittest import mock

import pytest
from interruptions import At, interrupt, interrupted, resumed
from trainings import BATCH, COUNT, compiled, pictures, steps_of, trainer_of

from autoencoders import Callback, History
from autoencoders.training.display import progress_bar
from autoencoders.training.history import epoch_line


def test_the_bar_of_a_run_that_goes_on_begins_where_it_stands(tmp_path, monkeypatch):
    interrupted(trainer_of("plain", tmp_path, [At(9, interrupt)]))
    monkeypatch.setattr("tqdm.autonotebook.tqdm", bar := mock.Mock())
    again = resumed(tmp_path)
    for again.display.show, disable in ((True, None), (False, True)):
        with again.display.shown(again.progress):
            pass
        asked = bar.call_args.kwargs
        assert (asked["total"], asked["initial"], asked["unit"]) == (3 * COUNT, COUNT + 2 * BATCH, " images")
        assert asked["disable"] is disable


def test_a_notebook_gets_its_own_bar_and_without_widgets_no_warning(monkeypatch):
    code = """if True:
        import sys, types
        shell = types.SimpleNamespace(config={"IPKernelApp": {}})  # a kernel is played
        sys.modules |= {"IPython": types.SimpleNamespace(get_ipython=lambda: shell), "ipywidgets": None}
        sys.modules["ipykernel.zmqshell"] = sys
        from autoencoders.training.display import progress_bar
        progress_bar(3, " images", show=True)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.setattr("tqdm.autonotebook.tqdm", bar := mock.Mock(__module__="tqdm.notebook"))
    for show in (True, False):
        progress_bar(3, " images", show=show)
        assert bar.call_args.kwargs["disable"] is (not show)


def test_a_history_prints_as_a_table_and_draws_itself():
    history = compiled("vae").train(pictures(), BATCH, 2, validation=3, progress=False)
    names, *rows = [line.split() for line in repr(history).splitlines()]
    assert names == ["epoch", "loss", "reconstruction", "kl", "val_loss", "val_reconstruction", "val_kl"]
    assert [row[0] for row in rows] == ["1", "2"]
    assert float(rows[1][1]) == pytest.approx(history["loss"][1], rel=1e-4)
    assert history._repr_html_().count("<td>") == 3 * len(names)
    drawn = history.plot()
    assert drawn.axes[0].get_ylabel() == "nats per image"
    assert drawn._repr_png_().startswith(b"\x89PNG"), "a notebook shows it"
    many = [line.split()[0] for line in repr(History([{"epoch": i} for i in range(1, 1001)])).splitlines()]
    assert many[:6] + many[-1:] == ["epoch", "1", "2", "3", "...", "984", "1000"]
    assert repr(History()) == "no epochs"


def test_a_line_shows_what_an_epoch_has(capsys):
    row = {"epoch": 2, "loss": 0.0123456, "reconstruction": 0.0123456, "images_per_second": 99.6, "seconds": 3.2}
    assert epoch_line(row, 8) == "epoch 2/8  loss 0.012346  3 s"
    row |= {"loss": 1.5, "reconstruction": 1.25, "kl": 0.25, "val_loss": 2.0, "val_kl": 0.125}
    assert epoch_line(row, 8) == "epoch 2/8  loss 1.5 nats (recon 1.25, KL 0.25)  val 2  3 s"
    large = dict.fromkeys(row, 123456.789) | {"epoch": 100, "seconds": 99.0}
    assert epoch_line(large, 100) == "epoch 100/100  loss 123,457 nats (recon 123,457, KL 123,457)  val 123,457  99 s"
    compiled("vae").train(pictures(), BATCH, 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    compiled("vae").train(pictures(), BATCH, 1, progress=False)
    assert capsys.readouterr() == ("", "")


class Hangup(Callback):
    """The signal of a closed terminal comes at the end of an epoch."""

    def on_epoch_end(self, trainer):
        trainer.received.append(1)


@pytest.mark.parametrize(("callbacks", "ends"), [([Hangup()], KeyboardInterrupt), ([], OSError)])
def test_a_terminal_that_takes_no_line_any_more_hides_no_signal(callbacks, ends, tmp_path, monkeypatch):
    trainer = trainer_of("ae", tmp_path, callbacks)
    trainer.display.show = True
    closed = mock.Mock(side_effect=OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr("autoencoders.training.display.print", closed, raising=False)
    with pytest.raises(ends):
        trainer.run()
    assert steps_of(tmp_path)
