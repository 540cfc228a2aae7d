"""A world without real data sets and network."""

import dataclasses
from pathlib import Path

import pytest
from data_cases import DIGITS, FASHION, digests

from autoencoders.data import collections, search


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No real cache, no system folder, no network, no apt; two small collections in the place of the real ones."""
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MINIGRAD_DATA", raising=False)
    monkeypatch.setattr(search, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    for name, arrays in (("fashion-mnist", FASHION), ("mnist", DIGITS)):
        small = dataclasses.replace(collections.COLLECTIONS[name], sha256=digests(arrays), mirrors=())
        monkeypatch.setitem(collections.COLLECTIONS, name, small)
    return tmp_path
