# %% [markdown]
# # 10. How a run resumes to the bit
#
# A training of hours is interrupted sooner or later. After a resume it should do what it would have done, so that the
# weights at the end are equal in every bit. Then every difference is a bug that can be found.
#
# **Idea.** A step is a function: state -> state. A run resumes exactly if the checkpoint holds the *whole* state, and
# all else follows from the seed and the step. Random numbers usually break this: each depends on those before.

# %%
import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from autoencoders.data import load_dataset

IMAGES, BATCH, RATE = 1000, 64, 0.01

# %% [markdown]
# **Random numbers by name.** The generator is started from a hash of the seed and of what the numbers are for. So the
# order of epoch 3 is the same in every process, no matter what was drawn before. Philox scrambles a key and a counter,
# so streams of different keys are independent in practice. Python's `hash` would not do: it changes between processes.


# %%
def generator(seed, *key):
    digest = hashlib.blake2b(json.dumps([seed, *key]).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def rows_of(step, seed):  # the images of step 0, 1, ...; a rest at the end of an epoch is left out
    epoch, place = divmod(step, IMAGES // BATCH)
    return generator(seed, "shuffle", epoch).permutation(IMAGES)[place * BATCH : (place + 1) * BATCH]


# %% [markdown]
# **The training** is logistic regression with Adam (lesson 9) on noisy images. Its state has four parts.

# %%
data = load_dataset("fashion-mnist-sample")
images, is_shoe = data.train_images.reshape(-1, 784) / 255, np.isin(data.train_labels, [5, 7, 9])


def train(state, steps, seed=7):  # from any state to the one after `steps` steps in total
    w, m, v = (state[name].copy() for name in ("w", "m", "v"))
    for step in range(int(state["steps"]), steps):
        rows = rows_of(step, seed)
        x = images[rows] + 0.1 * generator(seed, "noise", step).standard_normal((BATCH, 784))
        g = x.T @ (1 / (1 + np.exp(-(x @ w))) - is_shoe[rows]) / BATCH
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= RATE * m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
    return {"w": w, "m": m, "v": v, "steps": np.array(steps)}


# %% [markdown]
# **The checkpoint.** A crash in the middle of writing leaves half a file. So write beside the old one, wait until the
# disk has it, then rename: the name always leads to a whole checkpoint, the old or the new one.


# %%
def save(path, state):
    part = path.with_suffix(".part")
    with open(part, "wb", buffering=0) as file:
        np.savez(file, **state)
        os.fsync(file.fileno())
    os.replace(part, path)


start = {"w": np.zeros(784), "m": np.zeros(784), "v": np.zeros(784), "steps": np.array(0)}
whole = train(start, 60)
with tempfile.TemporaryDirectory() as folder:
    for stop in (7, 23, 41):  # in the middle of an epoch, which has 15 steps
        save(Path(folder) / "checkpoint.npz", train(start, stop))
        with np.load(Path(folder) / "checkpoint.npz") as file:
            saved = dict(file)
        assert train(saved, 60)["w"].tobytes() == whole["w"].tobytes()
        difference = np.abs(train({**start, "w": saved["w"], "steps": saved["steps"]}, 60)["w"] - whole["w"]).max()
        print(f"stopped after {stop:2} steps: equal bytes; resumed from w alone, w differs by up to {difference:.3f}")

# %% [markdown]
# **What else could differ.** (0.1 + 0.2) + 0.3 is not 0.1 + (0.2 + 0.3) in floats. So threads that share a sum must
# share it in the same way each time: **minigrad** cuts a batch into 8 parts, however many threads there are. It has the
# same generator, and files with a checksum that run no code when read. Left out here: schedules, moving statistics and
# versions of libraries, which `autoencoders/training/checkpoints.py` keeps as well.

# %%
import minigrad.random
from minigrad.serialize import load_state, save_state

assert minigrad.random.generator(7, "noise", 3).random() == generator(7, "noise", 3).random()
with tempfile.TemporaryDirectory() as folder:
    save_state(Path(folder) / "state.safetensors", train(start, 23), {"seed": 7})
    arrays, record, _ = load_state(Path(folder) / "state.safetensors")
assert train(arrays, 60, record["seed"])["w"].tobytes() == whole["w"].tobytes()
print("the random numbers are those of minigrad, and its checkpoint resumes to the same bytes")

# %% [markdown]
# ## Exercise
# Names must not collide. Write `key_bytes(*key)` without JSON: bytes for strings and ints, different for different
# keys. Joining the parts is not enough, nor is a separator that may be in a string.


# %%
def check_key_bytes(key_bytes):
    keys = [("a", "bc"), ("ab", "c"), ("X", "Y"), ("1",), (1,), ("a", ""), ("a",), (1, 23), (12, 3), ()]
    text = bytes(key_bytes("X", "Y")).decode("latin1")  # its glue in one string must give other bytes
    keys += [(f"X{text[text.find('X') + 1 : text.rfind('Y')]}Y",), ("1", "bcdefghij"), ("s9bcdefghij",)]
    found = {}
    for key in keys:
        other = found.setdefault(bytes(key_bytes(*key)), key)
        assert other == key, f"{key} and {other} have the same bytes"
    return "key_bytes: right"


key_bytes = None  # write `def key_bytes(*key): ...` here
print(check_key_bytes(key_bytes) if key_bytes else "key_bytes: not written yet")
