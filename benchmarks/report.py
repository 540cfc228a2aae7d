"""Tables (Markdown) and plots (PNG) of the benchmarks, made from their JSON files and from nothing else.

python benchmarks/report.py [--results benchmarks/results] [--readme README.md */README.md]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
OURS = ("plain", "numpy-returned", "numba-returned", "numpy", "numba")  # the first is the last in a table
# Okabe and Ito's palette, which all kinds of colour vision tell apart
COLOURS = {"plain": "#E69F00", "numpy": "#0072B2", "numba": "#D55E00", "torch": "#009E73"}
GREY, LIGHT = "#8C8C8C", "#C8C8C8"
MODELS = {"vae": "VAE", "ae": "autoencoder", "coloured": "VAE of coloured images"}
SHORT = {"numba": "Numba", "numpy": "NumPy alone"}
Rows = list[dict[str, Any]]


# ---- text ----


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    return "" if value is None else f"{value:,.{digits}f}{unit}"


def significant(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes and text else text


def heading(title: str, record: dict[str, Any]) -> str:
    """What was measured, on what, and how to do it again."""
    machine, settings = record["machine"], record["settings"]
    commit = "unknown" if record["commit"] is None else record["commit"][:12]
    changed = ", with changes" if record["dirty"] else ""
    facts = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"# {title}\n\n`{record['command']}`, {record['date']}, commit {commit}{changed}.\n"
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {record['python']}; {facts}.\n\n"
    )


def libraries(record: dict[str, Any]) -> dict[str, str]:
    """The libraries with their versions, each once."""
    found: dict[str, str] = {}
    for value in record["versions"].values():
        found |= {name: v for name, v in value.items() if name[:1].isupper() or name == "minigrad"}
    return dict(sorted(found.items()))


def versions(record: dict[str, Any]) -> str:
    """The libraries, what was not measured, and what went wrong."""
    lines = "Versions: " + ", ".join(f"{name} {v}" for name, v in libraries(record).items()) + ".\n"
    lines += "".join(f"\nNot measured: {name} ({why}).\n" for name, why in record.get("missing", {}).items())
    lines += "".join(f"\n**Failed:** {fault.splitlines()[0]}\n" for fault in record.get("faults", []))
    return lines


# ---- training ----


def training(title: str, pictures: dict[str, str]) -> Callable[[dict[str, Any], Path], str]:
    """Text and plots of train.json and coloured.json. pictures: the file for step and for predict."""

    def text(record: dict[str, Any], results: Path) -> str:
        rows: Rows = record["rows"]
        text = heading(title, record)
        text += (
            "A step is a whole training step on one batch; predict is encode, decode and sigmoid in evaluation mode. "
            "Every program first had to give the losses and images of minigrad's plain kernels in float64. Medians; "
            f"quartiles in brackets. {RATIO} `of sgemm` is the share of what the same cores reached in a 2048 x 2048 "
            "matrix product in the same minutes, where a convolution counts with all its multiplications, also where "
            "fewer are made.\n\n"
        )
        for model, batch in problems(rows):
            chosen = [row for row in rows if (row["model"], row["batch"]) == (model, batch)]
            roofline = chosen[0]["roofline_gflops"]
            text += f"## {MODELS[model]}, batch {batch}\n\nsgemm: {roofline:.0f} GFLOP/s.\n\n{batch_table(chosen)}\n"
        text += versions(record)
        for what, name in pictures.items():
            caption = {"step": "Training: images per second", "predict": "Prediction: images per second"}[what]
            bars(rows, what, lambda row: row["images_per_second"], caption, "images / s", results / name)
            text += f"\n![{caption}]({name})\n"
        return text

    return text


def batch_table(rows: Rows) -> str:
    heads = ["program", "ms / step", "images / s", "ratio", "GFLOP/s", "of sgemm"]
    heads += ["predict images / s", "ratio"]
    lines = []
    for peer in ordered(rows):
        step, predict = (
            next(row for row in rows if (row["peer"], row["what"]) == (peer, what)) for what in ("step", "predict")
        )
        cells = [step["label"], number(1e3 * step["seconds"]["median"], 1), quartiles(step["images_per_second"])]
        cells += [number(step["ratio"], 2), number(step["gflops"]), number(100 * step["roofline_share"], 0, " %")]
        cells += [quartiles(predict["images_per_second"]), number(predict["ratio"], 2)]
        lines.append([bold(cell, peer in OURS) for cell in cells])
    return table(heads, lines)


def quartiles(values: dict[str, float]) -> str:
    return f"{values['median']:,.0f} ({values['low']:,.0f} to {values['high']:,.0f})"


def ordered(rows: Rows) -> list[str]:
    """The peers, ours first, others by their first appearance in the list of names."""
    peers = sorted({row["peer"] for row in rows}, key=lambda peer: next(r["label"] for r in rows if r["peer"] == peer))
    return [peer for peer in OURS[::-1] if peer in peers] + [peer for peer in peers if peer not in OURS]


def bars(
    rows: Rows,
    what: str,
    value: Callable[[dict[str, Any]], dict[str, float]],
    title: str,
    unit: str,
    path: Path,
) -> None:
    """One panel for each model and batch, one bar for each program, with quartiles as error bars where there are."""
    rows = [row for row in rows if row["what"] == what]
    models, batches = (list(dict.fromkeys(row[name] for row in rows)) for name in ("model", "batch"))
    peers = ordered(rows)[::-1]  # the first one is drawn at the top
    labels = {row["peer"]: row["label"] for row in rows}
    size = 2.6 + 2.9 * len(batches), 1.2 + len(models) * (0.7 + 0.27 * len(peers))
    figure, axes = plt.subplots(len(models), len(batches), figsize=size, sharey=True, squeeze=False)
    for i, model in enumerate(models):
        for j, batch in enumerate(batches):
            ax = axes[i, j]
            found = {row["peer"]: row for row in rows if (row["model"], row["batch"]) == (model, batch)}
            for y, peer in enumerate(peers):
                if peer in found:
                    bar(ax, y, value(found[peer]), COLOURS[peer.partition("-")[0]] if peer in OURS else LIGHT)
            ax.set_title(f"{MODELS[model]}, batch {batch}", fontsize=10)
            ax.set_xlabel(unit)
            ax.margins(x=0.18)
            ax.set_xlim(left=0)
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(axis="y", length=0)
        axes[i, 0].set_yticks(range(len(peers)), [labels[peer] for peer in peers])
        for label, peer in zip(axes[i, 0].get_yticklabels(), peers, strict=True):
            label.set_fontweight("bold" if peer in OURS else "normal")
    figure.suptitle(title, fontweight="bold")
    save(figure, path)


def bar(ax: Any, y: int, values: dict[str, float], colour: str) -> None:
    median = values["median"]
    spread = [[median - values["low"]], [values["high"] - median]] if "low" in values else None
    ax.barh(y, median, 0.72, color=colour, xerr=spread, error_kw={"ecolor": "#333333", "elinewidth": 1})
    ax.text(values.get("high", median), y, f" {median:,.0f}", va="center", fontsize=8)


# ---- memory ----


def memory(record: dict[str, Any], results: Path) -> str:
    """Text and plot of memory.json."""
    rows: Rows = record["rows"]
    text = heading("Memory of a training step", record)
    text += "`before` is what a new process holds with everything imported and the model made, `steps` what its "
    text += "training steps add at most, both in MiB of resident memory.\n\n"
    for model, batch in problems(rows):
        chosen = [row for row in rows if (row["model"], row["batch"]) == (model, batch)]
        lines = []
        for peer in ordered(chosen):
            row = next(row for row in chosen if row["peer"] == peer)
            cells = [row["label"], number(row["memory_before"] / 2**20), number(added(row))]
            lines.append([bold(cell, peer in OURS) for cell in [*cells, number(row["memory_peak"] / 2**20)]])
        text += f"## {MODELS[model]}, batch {batch}\n\n{table(['program', 'before', 'steps', 'at most'], lines)}\n"
    title = "Memory that training steps add"
    bars(rows, "memory", lambda row: {"median": added(row)}, title, "MiB", results / "memory.png")
    return text + versions(record) + f"\n![{title}](memory.png)\n"


def added(row: dict[str, Any]) -> float:
    """MiB that the steps of a row have added."""
    return (row["memory_peak"] - row["memory_before"]) / 2**20


# ---- speed and memory in the README ----


def speed(records: dict[str, dict[str, Any]]) -> str:
    """The ratios of train.json with both settings of the C library, and what reconstruct.json and startup.json say."""
    train = records["train"]
    columns = [(model, kernels) for model in ("vae", "ae") for kernels in SHORT]
    ratios = {tuple(row[name] for name in ("model", "batch", "what", "peer")): row["ratio"] for row in train["rows"]}
    lines = [
        [
            number(batch),
            setting,
            *(number(ratios.get((model, batch, "step", p + suffix)), 2) for model, p in columns),
        ]
        for batch in dict.fromkeys(row["batch"] for row in train["rows"])
        for setting, suffix in (("kept", ""), ("returned", "-returned"))
    ]
    text = table(["batch", "freed memory", *(f"{MODELS[model]}, {SHORT[peer]}" for model, peer in columns)], lines)
    text += f"\nTraining: {where(train)}; [all rows](benchmarks/results/train.md).\n"
    found = {p: [ratio for key, ratio in ratios.items() if key[2:] == ("predict", p) and ratio] for p in SHORT}
    if told := [f"{min(of):.2f} to {max(of):.2f} ({SHORT[peer]})" for peer, of in found.items() if of]:
        text += f"Prediction of one batch, memory kept: {', '.join(told)}.\n"
    lacking = {"numba-returned": "our rows with memory returned", "torch-kept": "PyTorch's other rows with memory kept"}
    if told := [label for peer, label in lacking.items() if peer in train["missing"]]:
        text += f"**Not measured yet**: {' and '.join(told)}.\n"
    if record := records.get("reconstruct"):
        told = [
            f"{row['ratio']:.2f} ({MODELS[row['model']]}, {SHORT[row['peer']]})"
            for row in record["rows"]
            if row["peer"] in SHORT and row["ratio"]
        ]
        if told:
            text += f"[10,000 reconstructions](benchmarks/results/reconstruct.md), memory kept: {', '.join(told)}.\n"
    if record := records.get("coloured"):
        told = [
            f"{row['ratio']:.2f} ({SHORT[row['peer']]}, {row['batch']})"
            for row in record["rows"]
            if row["what"] == "step" and row["peer"] in SHORT and row["ratio"]
        ]
        if told:
            text += "A training step of [64 x 64 coloured images with 5 x 5 filters](benchmarks/results/coloured.md), "
            text += f"memory kept: {', '.join(told)}.\n"
    if record := records.get("startup"):
        found = {row["peer"]: row["seconds"]["median"] for row in record["rows"]}
        told = [f"{found[peer]:.2f} s ({name})" for peer, name in SHORT.items() if peer in found]
        torch = min((seconds for peer, seconds in found.items() if peer.startswith("torch")), default=None)
        text += f"From starting Python to the end of [the first step](benchmarks/results/startup.md): {', '.join(told)}"
        text += f", {torch:.2f} s (PyTorch's fastest row).\n" if torch else ".\n"
    return text


def memory_in_short(record: dict[str, Any]) -> str:
    """For each problem of memory.json what a process holds before the first step, and what the steps add."""
    rows: Rows = record["rows"]
    lines = []
    for model, batch in problems(rows):
        chosen = {row["peer"]: row for row in rows if (row["model"], row["batch"]) == (model, batch)}
        torch = sorted((row for peer, row in chosen.items() if peer.startswith("torch")), key=added)
        shown = [chosen.get("numba"), chosen.get("numpy"), chosen.get("torch"), torch[0] if torch else None]
        cells = [f"{row['memory_before'] / 2**20:.0f} + {added(row):.0f}" if row else "" for row in shown]
        lines.append([f"{MODELS[model]}, {batch}", *cells, torch[0]["label"].removeprefix("torch ") if torch else ""])
    heads = ["MiB before the first step + added by the steps", "Numba", "NumPy alone", "PyTorch as it comes"]
    text = table([*heads, "PyTorch's least addition", "which"], lines)
    return f"{text}\nMemory: {where(record)}; [all rows](benchmarks/results/memory.md).\n"


def problems(rows: Rows) -> list[tuple[str, int]]:
    """Model and batch of each problem."""
    return list(dict.fromkeys((row["model"], row["batch"]) for row in rows))


def where(record: dict[str, Any]) -> str:
    """When and on what a record was made."""
    commit = (record["commit"] or "unknown")[:7] + (", with changes" if record["dirty"] else "")
    machine = f"{record['machine']['cores']} cores of {record['machine']['processor']}"
    found = libraries(record)
    told = ", ".join(f"{name} {found[name]}" for name in ("NumPy", "Numba", "PyTorch") if name in found)
    return f"{record['date']}, commit {commit}, {machine}, Python {record['python']}, {told}"


# ---- start and reconstruction ----


def plain_list(title: str, remark: str) -> Callable[[dict[str, Any], Path], str]:
    """Text of startup.json and reconstruct.json."""

    def text(record: dict[str, Any], results: Path) -> str:
        lines = []
        for row in record["rows"]:
            seconds, rate = row["seconds"], row.get("images_per_second")
            cells = [row["label"], MODELS[row["model"]], number(seconds["median"], 2)]
            cells += [f"{seconds['low']:.2f} to {seconds['high']:.2f}", number(rate["median"]) if rate else ""]
            lines.append([bold(cell, row["peer"] in OURS) for cell in [*cells, number(row["ratio"], 2)]])
        heads = ["program", "model", "seconds", "quartiles", "images / s", "ratio"]
        return heading(title, record) + remark + "\n\n" + table(heads, lines) + "\n" + versions(record)

    return text


# ---- kernels ----


def kernels(record: dict[str, Any], results: Path) -> str:
    """Text and plot of ops.json."""
    programs, rows = record["programs"], record["rows"]
    ours = [name for name in programs if name in OURS]
    heads = ["kernel", *(f"{name} ms" for name in programs), *programs]
    heads += [f"{name} / plain" for name in ours if name != "plain"] + ["best / torch", "of the fastest"]
    fastest = max(row[name]["gflops"] or 0 for row in rows for name in programs if name in row)
    lines = []
    for row in rows:
        found = [row.get(name) for name in programs]
        cells = [f"`{row['kernel']}` {row['shape']}"]
        cells += [significant(x and 1e3 * x["seconds"]["median"]) for x in found]
        cells += [rate_of(x) for x in found]
        ratios = {name: row[name]["ratio"] for name in ours}
        cells += [number(ratio, 2) for name, ratio in ratios.items() if name != "plain"]
        cells.append(number(max(ratios.values()) / row["torch"]["ratio"], 2) if "torch" in row else "")
        rate = max(row[name]["gflops"] or 0 for name in ours)
        lines.append([*cells, number(100 * rate / fastest, 0, " %") if rate else ""])
    title = "Speed of each kernel, relative to the plain one"
    kernel_plot(rows, [name for name in programs if name != "plain"], title, results / "ops.png")
    remark = (
        "Medians. G is GFLOP/s, where there are products; GB is GB/s, each argument and result counted once. PyTorch "
        "works on channels_last images; its gradients are autograd's. `numpy / plain` is how many times faster the "
        "numpy kernel is, `best / torch` the same of our best one against PyTorch. `of the fastest` is the share that "
        f"our best one reaches of the highest rate of any program in this table, {number(fastest)} GFLOP/s.\n\n"
    )
    text = heading("CPU kernels", record) + remark + table(heads, lines)
    facts = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    return text + f"\nVersions: {facts}.\n\n![{title}](ops.png)\n"


def rate_of(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    unit, rate = ("G", found["gflops"]) if found["gflops"] else ("GB", found["gigabytes"])
    return f"{significant(rate)} {unit}"


def kernel_plot(rows: Rows, programs: Sequence[str], title: str, path: Path) -> None:
    """A dot for each program and kernel on a logarithmic axis."""
    figure, ax = plt.subplots(figsize=(10, 1.5 + 0.21 * len(rows)))
    positions = np.arange(len(rows))[::-1]
    markers = {"numpy": "o", "numba": "D", "torch": "s"}
    for name in programs:
        points = [(row[name]["ratio"], y) for row, y in zip(rows, positions, strict=True) if name in row]
        label = "torch" if name == "torch" else f"minigrad {name}"
        ours = name in OURS
        x, y = zip(*points, strict=True)
        ax.scatter(
            x,
            y,
            36 if ours else 26,
            COLOURS[name],
            marker=markers[name],
            label=label,
            zorder=3,
            alpha=1 if ours else 0.7,
        )
    ax.axvline(1, color=GREY, linewidth=1)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_yticks(positions, [f"{row['kernel']}  {row['shape']}" for row in rows], fontsize=7)
    ax.set_ylim(-1, len(rows))
    ax.grid(axis="both", color="#E5E5E5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_xlabel("times as fast as minigrad's plain kernel (1: the same; logarithmic)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(programs), frameon=False)
    figure.suptitle(title, fontweight="bold")
    save(figure, path)


# ---- scaling ----

AXIS_LABELS = {
    "batch": "batch (images)",
    "side": "image side (pixels)",
    "channels": "filters (multiple of the default)",
    "threads": "threads",
}


def scaling(record: dict[str, Any], results: Path) -> str:
    """Text and plot of scaling.json."""
    text = heading("How the VAE's training step scales", record)
    text += "Medians. Memory is what the process held at most; the growth is that of what its steps added.\n\n"
    heads = ["", "ms / step", "images / s", "GFLOP/s", "peak MiB", "of which steps"]
    for axis, found in record["axes"].items():
        lines = []
        for row in found["rows"]:
            speed = [1e3 * row["seconds"]["median"], row["images_per_second"], row["gflops"]]
            memory = [row["memory_peak"] / 2**20, (row["memory_peak"] - row["memory_before"]) / 2**20]
            lines.append([f"{axis} {row['value']}", *map(significant, speed), *map(number, memory)])
        text += f"## {AXIS_LABELS[axis].capitalize()}\n\n{table(heads, lines)}\n{verdict(found)}\n"
    scaling_plot(record["axes"], results / "scaling.png")
    return text + "![Time and memory of a training step](scaling.png)\n"


def processes(record: dict[str, Any], results: Path) -> str:
    """Text of processes.json."""
    text = heading("Several processes", record)
    text += "A training step of the default VAE; medians. PyTorch: channels_last, fused Adam; several processes with\n"
    text += "DistributedDataParallel over gloo, whose BatchNorm takes statistics of its own images. The C library has\n"
    text += "its default setting for PyTorch and keeps freed memory for minigrad.\n\n"
    rows = record["rows"]
    alone = {row["program"]: row["seconds"]["median"] for row in rows if (row["processes"], row["threads"]) == (1, 2)}
    heads = ["", "processes", "threads of each", "ms / step", "images / s", "ms waiting", "against 1 x 2 threads"]
    lines = []
    for row in rows:
        ms, program = 1e3 * row["seconds"]["median"], row["program"]
        waits = "" if row["wait"] is None else significant(1e3 * row["wait"])
        share = significant(1e3 * alone[program] / ms)
        numbers = f"{row['processes']}", f"{row['threads']}", significant(ms), number(row["images_per_second"])
        lines.append([program, *numbers, waits, share])
    return text + table(heads, lines)


def verdict(found: dict[str, Any]) -> str:
    """Whether the growth is linear; for threads how much faster the most are than the fewest."""
    if "growth" in found:
        lines = []
        for name, fit in found["growth"].items():
            word = "linear" if fit["linear"] else "**worse than linear**"
            lines.append(f"{name.capitalize()} grows with the power {fit['slope']:.2f} of the work: {word}.\n")
        return "\n".join(lines)
    first, last = found["rows"][0], found["rows"][-1]
    times = first["seconds"]["median"] / last["seconds"]["median"]
    return f"{last['threads']} threads are {times:.2f} times as fast as {first['threads']}.\n"


def scaling_plot(axes: dict[str, Any], path: Path) -> None:
    """Time above, memory below; one column an axis; dashed: proportional to the work."""
    figure, panels = plt.subplots(2, len(axes), figsize=(1 + 3.1 * len(axes), 6), squeeze=False)
    for column, (axis, found) in enumerate(axes.items()):
        rows = found["rows"]
        x = [row["value"] for row in rows]
        time, memory = panels[:, column]
        seconds = [row["seconds"] for row in rows]
        median = np.array([1e3 * s["median"] for s in seconds])
        errors = np.abs([[1e3 * s[end] for s in seconds] - median for end in ("low", "high")])
        time.errorbar(x, median, errors, color=COLOURS["numpy"], marker="o", capsize=2, label="measured")
        steps = [(row["memory_peak"] - row["memory_before"]) / 2**20 for row in rows]
        memory.plot(x, [row["memory_peak"] / 2**20 for row in rows], color=GREY, marker="s", label="whole process")
        memory.plot(x, steps, color=COLOURS["numba"], marker="o", label="added by the steps")
        if "growth" in found:
            work = np.array([row["work"] for row in rows])
            time.plot(x, median[-1] * work / work[-1], "--", color=GREY, label="proportional to the work")
            memory.plot(x, steps[-1] * work / work[-1], "--", color=LIGHT, label="proportional to the work")
            for ax, fit in ((time, found["growth"]["time"]), (memory, found["growth"]["memory"])):
                ax.set_title(f"power {fit['slope']:.2f} of the work", fontsize=9)
        else:
            time.plot(x, median[0] * x[0] / np.array(x), "--", color=GREY, label="as fast as threads allow")
        for ax, name in ((time, "ms / step"), (memory, "MiB")):
            if axis == "threads":
                ax.set_ylim(0, 1.2 * ax.get_ylim()[1])
            else:
                logarithmic(ax)
            ax.set_xticks(x, [f"{value:g}" for value in x], fontsize=8)
            ax.grid(color="#E5E5E5", linewidth=0.6)
            ax.set_xlabel(AXIS_LABELS[axis])
            ax.set_ylabel(name)
            ax.legend(fontsize=7, frameon=False)
    figure.suptitle("Time and memory of the VAE's training step", fontweight="bold")
    save(figure, path)


def logarithmic(ax: Any) -> None:
    """Make both axes logarithmic, with ticks at 1, 2, 5, 10, ..., or at powers of ten where those would be many."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.minorticks_off()
    low, high = ax.get_ylim()
    digits = (1,) if high / low > 1000 else (1, 2, 5)
    ticks = [d * 10.0**e for e in range(-4, 9) for d in digits]
    ax.set_yticks([tick for tick in ticks if low <= tick <= high])
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_ylim(low, high)


# ---- a GPU ----


def gpu(record: dict[str, Any], results: Path) -> str:
    """Text and plot of gpu.json."""
    device, rows = record["device"], record["rows"]
    copy, product = device["copy_bytes_per_second"], device["sgemm_flops_per_second"]
    steps = [row for row in rows if row["what"] == "step"]
    eager = {(row["batch"], row["precision"]): row["seconds"]["median"] for row in steps if row["program"] == "torch"}
    lines = []
    for row in steps:
        seconds = row["seconds"]
        cells = [row["program"] + _at(row), number(row["batch"]), row["precision"], number(1e6 * seconds["median"])]
        cells += [f"{1e6 * seconds['low']:,.0f} to {1e6 * seconds['high']:,.0f}", number(row["images_per_second"])]
        key = row["batch"], row["precision"]
        ratio = eager[key] / seconds["median"] if key in eager else None
        cells += [number(ratio, 2), number(100 * row["flops"] / product / seconds["median"], 0, " %")]
        lines.append([bold(cell, row["program"].startswith("minigrad")) for cell in cells])
    heads = ["program", "batch", "precision", "us / step", "quartiles", "images / s", "ratio", "of sgemm"]
    text = heading(f"Training step of the default VAE on {device['name']}, driver {device['driver']}", record)
    text += f"A copy moves {copy / 1e9:,.0f} GB/s, counted twice; a large float32 product does {product / 1e12:,.1f} "
    text += "TFLOP/s. `ratio` is the speed relative to PyTorch as it comes, in the same precision."
    text += "\n\n" + table(heads, lines)
    if "tests" in record:
        tests = record["tests"]
        text += f"\nTests that need a GPU{_at(tests)}: {tests['summary'].strip('= ')}.\n"
        text += "".join(f"\n`{test}`\n" for test in tests["failed"])
    lines = [
        [f"{row['kernel']}, batch {row['batch']}", row["precision"], number(1e6 * row["seconds"], 1)]
        + [number(100 * row["bytes"] / copy / row["seconds"], 0, " %")]
        + [number(100 * row["flops"] / product / row["seconds"], 0, " %") if row["flops"] else ""]
        for row in rows
        if row["what"] == "kernel"
    ]
    if lines:
        text += "\n## Kernels\n\nShares of the copy's speed, each argument and result counted once, and of the "
        text += "product's.\n\n" + table(["kernel", "precision", "us", "of a copy", "of sgemm"], lines)
    lines = [
        [number(row["batch"]), number(1e3 * row["cpu_seconds"], 2), number(1e3 * row["gpu_seconds"], 2)]
        for row in rows
        if row["what"] == "crossover"
    ]
    if lines:
        text += "\n## Against the CPU\n\n" + table(["batch", "CPU ms / step", "GPU ms / step"], lines)
    gpu_plot(steps, results / "gpu.png")
    return text + "\n![Training step](gpu.png)\n" + versions(record)


def _at(part: dict[str, Any]) -> str:
    """Says so if a part of a record was measured at another commit."""
    return f" (commit {part['commit']})" if "commit" in part else ""


def referee(record: dict[str, Any], results: Path) -> str:
    """Text of referee.json."""
    lines = []
    for row in record["rows"]:
        ours, library = (row[name] and 1e6 * row[name] for name in ("ours_seconds", "seconds"))
        rate = row["flops"] / row["seconds"] / 1e12 if library else None
        cells = [f"{row['layer']}, {row['operation']}", number(row["batch"]), row["precision"]]
        lines.append([*cells, number(ours, 1), number(library, 1), number(rate, 0)])
    heads = ["convolution", "batch", "precision", "minigrad, us", "cuDNN, us", "its TFLOP/s"]
    text = heading(f"Convolutions of the default VAE on an {record['device']}, ours and cuDNN's", record)
    text += "\n" + table(heads, lines)
    return text + "".join(f"\n- {fault}" for fault in record["faults"]) + "\n" + versions(record)


def gpu_in_short(record: dict[str, Any]) -> str:
    """minigrad's step in gpu.json beside the two PyTorch programs that matter: as it comes, and the fastest."""
    steps = [row for row in record["rows"] if row["what"] == "step"]
    lines = []
    for batch, precision in dict.fromkeys((row["batch"], row["precision"]) for row in steps):
        chosen = {row["program"]: row for row in steps if (row["batch"], row["precision"]) == (batch, precision)}
        times = {program: 1e6 * row["seconds"]["median"] for program, row in chosen.items()}
        best = min((name for name in times if name.startswith("torch")), key=times.__getitem__)
        ours = times["minigrad"] < times[best]
        cells = [number(batch), precision + _at(chosen["minigrad"]), bold(number(times["minigrad"]), ours)]
        cells += [number(chosen["minigrad"]["images_per_second"]), number(times["torch"])]
        lines.append([*cells, f"{bold(number(times[best]), not ours)}, {best.removeprefix('torch ')}"])
    programs = len({row["program"] for row in steps if row["program"].startswith("torch")})
    heads = ["batch", "precision", "minigrad", "images / s", "PyTorch as it comes", f"PyTorch's best of {programs}"]
    device = record["device"]
    text = f"Measured on {record['date']} at **commit {record['commit'][:7]}** on an {device['name']} (driver "
    text += f"{device['driver']}, Python {record['python']}, "
    text += ", ".join(f"{name} {v}" for name, v in libraries(record).items() if name != "minigrad")
    text += f"; `{record['command']}`; [all rows](benchmarks/results/gpu.md)). Microseconds of a training step of the "
    text += f"default VAE:\n\n{table(heads, lines)}"
    if small := [row for row in record["rows"] if row["what"] == "crossover"][:1]:
        cpu, device = (1e3 * small[0][f"{name}_seconds"] for name in ("cpu", "gpu"))
        text += f"\nA step on a batch of {small[0]['batch']} took {device:.2f} ms there, and {cpu:.2f} ms on that "
        text += f"machine's {record['machine']['cores']} cores.\n"
    return text


def gpu_plot(steps: Rows, path: Path) -> None:
    """Bars of the step's time for each batch."""
    sizes = sorted({row["batch"] for row in steps})
    bars = max(sum(row["batch"] == batch for row in steps) for batch in sizes)
    figure, axes = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 1 + bars / 3), squeeze=False)
    for ax, batch in zip(axes[0], sizes, strict=True):
        found = [row for row in steps if row["batch"] == batch]
        for y, row in enumerate(found):
            colour = COLOURS["numba"] if row["program"].startswith("minigrad") else GREY
            bar(ax, y, {key: 1e6 * value for key, value in row["seconds"].items()}, colour)
        ax.set_yticks(range(len(found)), [f"{row['program']}, {row['precision']}" for row in found], fontsize=8)
        ax.invert_yaxis()
        ax.set_title(f"batch {batch}", fontsize=10)
        ax.set_xlabel("us a step")
        ax.spines[["top", "right"]].set_visible(False)
    save(figure, path)


# ---- quality ----


def quality(records: Rows) -> str:
    """The table of all recipes."""
    recipes = dict.fromkeys(record["recipe"] for record in records)
    lines = []
    for recipe in sorted(recipes, key=natural):
        found = [record for record in records if record["recipe"] == recipe]
        options, model = found[0]["training"]["options"], found[0]["evaluation"]["model"]
        minutes = [record["training"]["training_seconds"] / 60 for record in found]
        cells = [f"`--config {recipe}`" if recipe != "default" else "none, `--model vae`"]
        cells += [str(model["latent_space_dim"]), f"{options['epochs']}", ", ".join(str(r["seed"]) for r in found)]
        cells += [over_seeds(found, "neg_elbo", 1), parts(found), over_seeds(found, "iw_nll", 1)]
        cells += [over_seeds(found, "mse", 5), over_seeds(found[:1], "pca_mse", 5)]
        cells += [over_seeds(found, name, 1, 100) for name in ("probe_accuracy", "knn_accuracy")]
        lines.append([*cells, over_seeds(found, "fd", 0), f"{np.median(minutes):.0f} min"])
    heads = ["recipe", "latent", "epochs", "seeds", "-ELBO", "reconstruction + KL", "NLL", "MSE", "PCA's MSE"]
    heads += ["probe %", "5-NN %", "FD", "training"]
    machines = dict.fromkeys(
        f"{r['machine']['cores']} core{'s' * (r['machine']['cores'] > 1)} of {r['machine']['processor']}, "
        f"{r['training']['environment']['device']}, "
        f"Python {r['python']}, NumPy {r['training']['environment']['numpy']}, {r['date']}"
        for r in records
    )
    data = dict.fromkeys(r["evaluation"]["data"]["name"] for r in records)
    errors = [r["evaluation"]["iw_nll_se"] for r in records if r["evaluation"]["iw_nll"] is not None]
    nll = f"The NLL's standard error over images is {max(errors):.1f}. " if errors else ""
    return (
        f"{table(heads, lines)}\nNats per image, MSE per pixel, on the test images of {', '.join(data)}; mean and "
        f"standard deviation over seeds. {nll}{'; '.join(machines)}.\n"
    )


def trials(record: dict[str, Any], _: Path) -> str:
    """The table of all trials, with the difference to the trial whose name lacks the last word."""
    lines: list[list[str]] = []
    for row in sorted(record["rows"], key=lambda row: natural(row["trial"])):
        changes = {name: plus_minus(x, 5 if name == "mse" else 1, sign="+") for name, x in row["changes"].items()}
        parts = f"{row['reconstruction']:.1f} + {row['kl']:.1f}" if "kl" in row else ""
        cells = [f"`{row['trial']}`", number(row["parameters"]), number(row.get("neg_elbo"), 1), parts]
        cells += [changes.get("neg_elbo", ""), number(row.get("train_neg_elbo"), 1)]
        cells += [number(row.get("nll"), 1), changes.get("nll", "")]
        cells += [f"{row['mse']:.5f}", changes.get("mse", ""), f"{row['train_mse']:.5f}"]
        cells += [number(row.get("probe"), 1), changes.get("probe", "")]
        lines.append([*cells, f"{row['seconds'] / 60:.0f} min", row["date"], (row["commit"] or "unknown")[:7]])
    heads = ["trial", "parameters", "-ELBO", "reconstruction + KL", "change", "-ELBO, trained", "NLL", "change"]
    heads += ["MSE", "change", "MSE, trained", "probe %", "change"]
    rows = record["rows"]
    how = {row["trial"]: f", then `{row['change']}` of changes.py" if row["change"] else "" for row in rows}
    options = "".join(
        f"- `{row['trial']}`: `{row['command']}` trains with `{row['options']}`{how[row['trial']]}\n" for row in rows
    )
    return (
        "# Trials\n\nEach trial was measured on images of the training set that it was not trained on, and never on "
        "the test images; those of `binarised` trials are binarised, also for their MSE. `change` is the difference to "
        "the trial whose name lacks the last word, on the same images, ± its standard error over images. The spread "
        "between trainings with other seeds is not in it. The NLL is that of 1,000 images with 200 samples each.\n\n"
        f"{table([*heads, 'time', 'date', 'commit'], lines)}\n{options}\n{machines_of(rows)}\n"
    )


def limits(record: dict[str, Any], _: Path) -> str:
    """What limits each model: the parts of its -ELBO."""
    lines, costs = [], []
    for row in sorted(record["rows"], key=lambda row: natural(row["run"])):
        for group in ("trained", "held out"):
            found = row[group]
            cells = [f"`{row['run']}`", group if group == "trained" else row["held_out"], number(found["images"])]
            lines.append(
                [*cells, *(plus_minus(found[x]) for x in ("neg_elbo", "amortisation", "approximation", "nll"))]
            )
        many, few = row["over_fitting"], row["over_fitting_nll"]
        means = (plus_minus(row["many"][x][1:]) for x in ("trained", "held out"))
        cells = [f"`{row['run']}`", number(row["many"]["held out"][0]), *means]
        cells += [plus_minus([x["difference"], x["difference_se"]]) for x in (many, few)]
        costs.append([*cells, f"{100 * many['explained']:.0f} %"])
    heads = ["run", "images", "number", "-ELBO", "amortisation", "approximation", "NLL"]
    text = (
        "# What limits the models\n\n-ELBO = NLL + amortisation + approximation, on the same images; nats per image, ± "
    )
    text += f"standard error over images.\n\n{table(heads, lines)}\n"
    text += "What images cost that were not trained on, at the same difficulty:\n\n"
    heads = ["run", "images each", "-ELBO, trained", "-ELBO, others", "others cost, -ELBO", "others cost, NLL"]
    commands = "".join(f"- `{row['command']}`\n" for row in record["rows"])
    return f"{text}{table([*heads, 'explained by difficulty'], costs)}\n{commands}\n{machines_of(record['rows'])}\n"


def colour(records: Rows) -> str:
    """The table of coloured data sets."""
    lines = []
    for row in records:
        test, options = row["test"], row["options"]
        size = " x ".join(map(str, row["model"]["input_shape"]))
        cells = [row["set"], size, f"`--config {row['recipe']}`", number(row["images"])]
        cells += [str(row["model"]["latent_space_dim"]), f"{test['bits_per_dim']:.2f}", number(test["neg_elbo"])]
        cells += [number(test["kl"]), f"{test['mse']:.4f}", f"{test['mean_mse']:.4f}", f"{row['pixel_std'] ** 2:.4f}"]
        lines.append([*cells, str(options["epochs"]), f"{row['seconds'] / options['epochs']:.0f} s"])
    heads = ["data", "size", "recipe", "trained on", "latent", "bits per value", "-ELBO, nats", "KL, nats", "MSE"]
    heads += ["of the mean image", "variance", "epochs", "time per epoch"]
    return f"{table(heads, lines)}\nOn test images; one seed. {machines_of(records)}\n"


def mixtures(rows: Rows) -> str:
    """What a fitted mixture gains as the prior of each model."""
    lines = []
    for row in sorted(rows, key=lambda row: natural(row["run"])):
        normal, mixture, changes = row["normal"], row["mixture"], row["changes"]
        cells = [f"`{row['run']}`", number(row["model"]["latent_space_dim"])]
        for name in ("neg_elbo", "nll"):
            both = normal.get(name), mixture.get(name)
            cells += [number(both[0][0], 1), number(both[1][0], 1)] if both[0] else ["", ""]
            cells.append(plus_minus(changes[name], sign="+") if name in changes else "")
        cells += [number(x["fd"], 0) for x in (normal, mixture)]
        lines.append([*cells, *(f"{100 * x['prior_holes']:.1f}" for x in (normal, mixture))])
    heads = ["run", "latent", "-ELBO", "with mixture", "change", "NLL", "with mixture", "change"]
    heads += ["FD", "with mixture", "holes %", "with mixture"]
    commands = "; ".join(f"`{row['command']}`" for row in rows)
    return f"{table(heads, lines)}\n{commands}. {machines_of(rows)}\n"


def plus_minus(value: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """A mean with its standard error."""
    return f"{value[0]:{sign}.{digits}f} ± {value[1]:.{digits}f}"


def machines_of(rows: Rows) -> str:
    """On what and with what the rows were measured."""
    found = dict.fromkeys(
        f"{row['machine']['cores']} core{'s' * (row['machine']['cores'] > 1)} of {row['machine']['processor']}, "
        + f"Python {row['python']}, "
        + ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        for row in rows
    )
    return "; ".join(found) + "."


def default_training(record: dict[str, Any]) -> str:
    """The test results of the default training, from the run.json that it left."""
    test, options, environment = record["test"], record["options"], record["environment"]
    lines = [
        ["-ELBO", f"**{test['neg_elbo']:.1f} nats per image**"],
        ["of which reconstruction", f"{test['reconstruction']:.1f}"],
        ["of which KL", f"{test['kl']:.1f}"],
        ["mean squared error at the mean", f"{test['mse']:.4f} per pixel"],
    ]
    what = f"latent {record['model']['latent_space_dim']}, {options['epochs']} epochs, seed {options['seed']}"
    minutes, seconds = divmod(round(record["training_seconds"]), 60)
    return (
        table([f"test images of {record['data']['name']}", what], lines)
        + f"\n`python {record['commands'][0].partition('python ')[2]}` "
        "([run.json](benchmarks/results/default_vae/run.json)): the training took "
        f"{minutes} min {seconds} s with the {environment['kernels']} kernels on {environment['threads']} threads, "
        f"Python {environment['python']}, NumPy {environment['numpy']}, {record['finished'][:10]}.\n"
    )


def over_seeds(found: Rows, name: str, digits: int, scale: float = 1.0) -> str:
    """Mean of a figure, with its standard deviation where there are several runs; empty where it is not measured."""
    values = [scale * r["evaluation"][name] for r in found if r["evaluation"][name] is not None]
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):,.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.{digits}f}{spread}"


def parts(found: Rows) -> str:
    """reconstruction + kl, the means."""
    means = [over_seeds(found, name, 1).partition(" ")[0] for name in ("reconstruction", "kl")]
    return " + ".join(means) if all(means) else ""


def natural(recipe: str) -> tuple[Any, ...]:
    """Sorts vae2 before vae10, and default before all."""
    return recipe != "default", *(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", recipe))


# ---- faults ----


TO_WHAT = re.compile(r" \(([\w-]+)\)")  # in the name of a row: the run or the kernels


def campaign(record: dict[str, Any]) -> str:
    """The table of the fault campaign, or of a part of it: a row a fault, whatever it was done to."""
    rows = record["rows"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(TO_WHAT.sub("", row["what"]), []).append(row)
    names = {
        "runs": "runs",
        "injected": "injected",
        "effective": "took effect",
        "in_save": "hit a save",
        "lost": "lost",
    }
    names["seconds"] = "seconds"
    lines = []
    for what, group in groups.items():
        victims = ", ".join(found[1] for row in group if (found := TO_WHAT.search(row["what"])))
        lines.append([what, victims, *(number(sum_of(group, name)) for name in names)])
    # no sum of what was injected, which differs in kind
    total = {name: number(sum_of(rows, name)) for name in names if name not in ("injected", "effective")}
    lines.append(["**all**", "", *(bold(total.get(name, ""), True) for name in names)])
    remark = "`runs` are trainings and programs that were started. An empty cell was not counted.\n\n"
    if not any("effective" in row for row in rows):
        remark = (
            "How many runs were made, how many faults took effect and how many hit a save was not recorded then.\n\n"
        )
    changed = ", with changes" if record["dirty"] else ""
    commit = (record["commit"] or "unknown")[:12]
    gpu = record.get("gpu")
    device = f"{gpu['name']}, driver {gpu['driver']}, " if gpu else ""
    libraries = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if name != "minigrad")
    failed = "".join(f"\n**Failed**: `{test}`\n" for test in record.get("failed", []))
    return (
        f"{table(['fault', 'of what', *names.values()], lines)}\n{remark}`{record['command']}`, seed {record['seed']}, "
        f"{record['date']}, commit {commit}{changed}, {record['seconds'] / 60:.0f} min on {device}"
        f"{record['machine']}, Python {record['python']}, {libraries}.\n{failed}"
    )


def sum_of(rows: Rows, name: str) -> float | None:
    """Of a counter; None if no row has it. Python's own sum rounds differently before 3.12."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return math.fsum(values) if values else None


def renew(readmes: Sequence[Path], name: str, text: str) -> None:
    """Write a table between its two marks, in the README that has them."""
    begin, end = f"<!-- {name}: made by benchmarks/report.py -->", f"<!-- end of {name} -->"
    for readme in readmes:
        before, found, rest = readme.read_text(encoding="utf-8").partition(begin)
        _, closed, after = rest.partition(end)
        if found and closed:
            readme.write_text(f"{before}{begin}\n{linked_from(readme, text)}{end}{after}", encoding="utf-8")
            return
    names = ", ".join(map(str, readmes))
    raise SystemExit(f"error: no file has the marks {begin} and {end}: {names}")


def linked_from(readme: Path, text: str) -> str:
    """The text with its links, which start at the project's folder, as a README in a folder below has them."""
    place = readme.resolve().parent
    to_root = os.path.relpath(FOLDER.parent, place) if place.is_relative_to(FOLDER.parent) else "."
    return re.sub(r"\]\((?=benchmarks/)", "](" if to_root == "." else f"]({to_root}/", text)


# ---- the program ----


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


RATIO = (
    "`ratio` is the speed relative to PyTorch's fastest row with the same setting of the C library: `memory kept`, as "
    "in our rows without a remark, tells glibc to keep freed memory (M_MMAP_THRESHOLD 1 GiB, M_TRIM_THRESHOLD 2 GiB)."
)
TITLES = {"quality": "Recipes", "campaign": "The fault campaign"}  # of the README's tables that have their own file
PARTS: dict[str, Callable[[dict[str, Any], Path], str]] = {
    "train": training(
        "Training and prediction of the default models", {"step": "train.png", "predict": "predict.png"}
    ),
    "coloured": training("A VAE of 64 x 64 coloured images with 5 x 5 filters", {}),
    "memory": memory,
    "startup": plain_list(
        "From starting Python to the end of the first training step", f"A new process each time. {RATIO}"
    ),
    "reconstruct": plain_list("Reconstruction of 10,000 images", f"256 images at a time. {RATIO}"),
    "ops": kernels,
    "scaling": scaling,
    "processes": processes,
    "gpu": gpu,
    "referee": referee,
    "trials": trials,
    "limits": limits,
}


def readme_tables(results: Path) -> dict[str, str]:
    """What stands in the README, too, by the name in its marks."""

    def read(*names: str) -> Rows:
        files = [file for name in names for file in sorted(results.glob(f"{name}.json"))]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    tables = {}
    if records := read("default_vae/run"):
        tables["default"] = default_training(records[0])
    times = {name: records[0] for name in ("train", "reconstruct", "coloured", "startup") if (records := read(name))}
    if "train" in times:
        tables["speed"] = speed(times)
    if records := read("memory"):
        tables["memory"] = memory_in_short(records[0])
    if (records := read("gpu")) and any("torch" in row.get("program", "") for row in records[0]["rows"]):
        tables["gpu"] = gpu_in_short(records[0])
    if records := read("quality/*"):
        tables["quality"] = quality(records)
    if records := read("colour"):
        tables["colour"] = colour(records[0]["rows"])
    if records := read("mixtures"):
        tables["mixtures"] = mixtures(records[0]["rows"])
    if records := read("campaign", "campaign_mpi", "campaign_gpu"):
        tables["campaign"] = "\n".join(map(campaign, records))
    return tables


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", metavar="DIR", type=Path, default=RESULTS, help="where the JSON files are")
    parser.add_argument("--readme", metavar="FILE", type=Path, nargs="+", help="renew the tables in these files")
    args = parser.parse_args(argv)
    results = args.results
    made = 0
    for name, part in PARTS.items():
        source = results / f"{name}.json"
        if source.exists():
            record = json.loads(source.read_text(encoding="utf-8"))
            (results / f"{name}.md").write_text(part(record, results), encoding="utf-8")
            print(f"{source.name} -> {name}.md")
            made += 1
    for name, text in readme_tables(results).items():
        if name in TITLES:
            (results / f"{name}.md").write_text(f"# {TITLES[name]}\n\n{text}", encoding="utf-8")
            print(f"{name} -> {name}.md")
            made += 1
        if args.readme:
            renew(args.readme, name, text)
    if not made:
        print(f"error: there is no result in {results.name}", file=sys.stderr)
    return 0 if made else 1


if __name__ == "__main__":
    sys.exit(main())
